r"""The basis in which latents of an autoencoder are best quantised, measured on clips.

It takes the mean and covariance of the latents, and the decoder's metric `E[J' J]`: for noise `v` of unit variance in
the pixels, `E[(J' v) (J' v)'] = E[J' J]`, so every backward pass of noise through the decoder is a draw of it at all
places of the latents at once (Hutchinson's estimator, 1990). Its correlation over time says how errors are best spread
over frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusers_vidvae.codec.axes_cycle import MAX_CYCLE_LENGTH, AxesCycle
from diffusers_vidvae.codec.latents_basis import CONFIG_KEY, LatentsBasis
from diffusers_vidvae.models.padding import pad_clip

from .latent_statistics import _cut_frames, _largest_frames, _read_frames
from .probing import open_autoencoder
from .video_autoencoder import VideoAutoencoder


# Clips are cut to this side, which a backward pass has memory for.
CUT_SIDE = 256
CUT_FRAMES = 17

# Noise of quality 50 for each part of the model's own error.
NOISE_SHARE = 0.15

# Earlier frames whose errors a frame makes up for.
SHAPED_FRAMES = 3


def measure_latents_basis(vae: Any, paths: Iterable[str | PathLike[str]], max_clips: int = 16) -> LatentsBasis:
    r"""Measures the basis on the start and the middle of clips, a forward and a backward pass for each.

    Args:
        vae: An autoencoder of diffusers or of this package.
        paths: Image and video files; about ten different ones are enough.
        max_clips: Files to read at most.

    Raises:
        ValueError: There are no files, latents are not finite, the decoder cannot be differentiated, or clips are too
            short to show all that takes turns.
        MediaError: A file cannot be read.
    """
    estimator = LatentsBasisEstimator(vae, max_clips)
    for path in islice(paths, max_clips):
        estimator.update(path)
    return estimator.basis()


class LatentsBasisEstimator:
    r"""What `measure_latents_basis` measures, gathered file by file in constant memory.

    Args:
        vae: An autoencoder of diffusers or of this package.
        max_clips: Files to look at; later ones are left out.
    """

    def __init__(self, vae: Any, max_clips: int = 16) -> None:
        self.model = open_autoencoder(vae)
        self.max_clips, self.num_clips = max_clips, 0
        self._cycle = axes_cycle(vae)
        self._groups: list[_GroupSums] = []
        self._error = 0.0  # sum over clips of the model's squared error, for each value of their latents
        self._generator = torch.Generator().manual_seed(0)

    def update(self, path: str | PathLike[str]) -> None:
        """Looks at the start and the middle of a file.

        Raises:
            ValueError: Latents or gradients are not finite, or the decoder cannot be differentiated.
            MediaError: The file cannot be read.
        """
        if self.num_clips >= self.max_clips:
            return
        z, gradient, error = _probe_decoder(self.model, _read_cut(self.model, path), self._generator)
        if not (z.isfinite().all() and gradient.isfinite().all() and gradient.any()):
            raise ValueError(f"{self.model.name}: latents or gradients are not finite, or all zero.")
        if not self._groups:
            self._cycle = self._cycle or AxesCycle(z.shape[1])
            self._groups = [_GroupSums(self._cycle, turn) for turn in range(len(self._cycle.groups))]
        for group in self._groups:
            group.add(z[0].double().cpu().numpy(), gradient[0].double().cpu().numpy())
        self._error += float(error.square().mean()) * (error.numel() // z[0, 0].numel()) / z.shape[1]
        self.num_clips += 1

    def basis(self) -> LatentsBasis:
        """The basis of all files so far.

        Raises:
            ValueError: There are none, or they are too short to show all that takes turns.
        """
        if self._cycle is None or not self.num_clips:
            raise ValueError("There are no files to measure a basis of.")
        unit = float(np.sqrt(12 * NOISE_SHARE * self._error / self.num_clips))
        return _join_groups(self._cycle, [group.axes() for group in self._groups], unit)


def axes_cycle(vae: Any) -> AxesCycle | None:
    r"""The turns that the latents of a model take in what they show; None for models without."""
    config = vae.config
    shared, length = config.get("cycle_channels") or 0, config.get("cycle_length") or 1
    if not shared or not 1 < length <= MAX_CYCLE_LENGTH:
        return None
    return AxesCycle(config["latent_channels"], shared, length)


class _Group(NamedTuple):
    """Axes of a group of channels, as `LatentsBasis` has them."""

    mean: np.ndarray
    forward: np.ndarray
    deviations: np.ndarray
    shaping: np.ndarray


class _GroupSums:
    """Moments of latents and of gradients of what all frames show (turn 0), or of what some show in their turn."""

    def __init__(self, cycle: AxesCycle, turn: int) -> None:
        self.channels = np.arange(-cycle.shared, 0) if turn else np.arange(cycle.channels - cycle.shared)
        self.frames = slice(turn - 1, None, cycle.length) if turn else slice(None)
        self.num_groups = cycle.length
        size = len(self.channels)
        self.count, self.num_clips, self.num_long = 0, 0, 0
        self.mean, self.squares, self.metric = np.zeros(size), np.zeros((size, size)), np.zeros((size, size))
        # Of gradients with those of so many frames later, over clips that are long enough for all of them.
        self.lags = np.zeros((SHAPED_FRAMES + 1, size, size))

    def add(self, latents: np.ndarray, gradient: np.ndarray) -> None:
        """Adds a clip, both `(channels, frames, height, width)`."""
        latents, gradient = (values[self.channels][:, self.frames] for values in (latents, gradient))
        if not latents.size:
            return
        self._add_values(latents.reshape(len(latents), -1))
        self.metric += _products(gradient, 0)
        self.num_clips += 1
        if gradient.shape[1] > SHAPED_FRAMES:
            self.lags += [_products(gradient, distance) for distance in range(SHAPED_FRAMES + 1)]
            self.num_long += 1

    def _add_values(self, values: np.ndarray) -> None:
        """Mean and squared deviations of values `(channels, positions)` (Chan, Golub and LeVeque, 1983)."""
        count, mean = values.shape[1], values.mean(axis=1)
        total, shift = self.count + count, mean - self.mean
        centred = values - mean[:, None]
        self.squares += centred @ centred.T + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def axes(self) -> _Group:
        """Principal axes in the decoder's metric."""
        if not self.count:
            raise ValueError(f"No clip is long enough to show each of {self.num_groups} groups of channels.")
        # Directions that the decoder does not see must stay invertible.
        strengths, directions = np.linalg.eigh(self.metric / self.num_clips)
        root = (directions * np.sqrt(np.maximum(strengths, 1e-4 * strengths[-1]))) @ directions.T
        variances, axes = np.linalg.eigh(root @ (self.squares / max(self.count - 1, 1)) @ root)
        deviations = np.sqrt(np.maximum(variances[::-1], 1e-8 * variances[-1]))
        forward = axes[:, ::-1].T @ root
        back = np.linalg.inv(forward).T
        return _Group(self.mean, forward, deviations, self._shaping(back))

    def _shaping(self, back: np.ndarray) -> np.ndarray:
        """Filters `(axes, SHAPED_FRAMES)` that make errors weigh as little as they may in the decoder's frames.

        With the autocorrelation of an axis's gradient over time this is linear prediction (Makhoul, 1975), which makes
        the spectrum of shaped errors the inverse of the decoder's.
        """
        if not self.num_long:
            return np.zeros((len(back), 0))
        lags = np.einsum("ac,kcd,ad->ak", back, self.lags / self.num_long, back)
        lags[:, 0] *= 1 + 1e-3
        order = np.arange(SHAPED_FRAMES)
        matrices = lags[:, np.abs(order[:, None] - order)]
        return -np.linalg.solve(matrices, lags[:, 1:, None])[..., 0]


def _products(gradient: np.ndarray, distance: int) -> np.ndarray:
    """Mean products `(channels, channels)` of a gradient `(channels, frames, ...)` with that of later frames."""
    rows = [gradient[:, distance:], gradient[:, : gradient.shape[1] - distance]]
    first, second = (row.reshape(len(row), -1) for row in rows)
    return first @ second.T / gradient[0].size


def _join_groups(cycle: AxesCycle, groups: list[_Group], unit: float) -> LatentsBasis:
    forward = np.zeros((cycle.num_axes, cycle.num_axes))
    for rows, group in zip(cycle.groups, groups, strict=True):
        forward[np.ix_(rows, rows)] = group.forward
    mean, deviations = (np.concatenate([getattr(group, name) for group in groups]) for name in ("mean", "deviations"))
    taps = max(group.shaping.shape[1] for group in groups)
    shaping = [np.pad(group.shaping, ((0, 0), (0, taps - group.shaping.shape[1]))) for group in groups]
    return LatentsBasis.from_arrays(mean, forward, deviations, unit, cycle, np.concatenate(shaping))


def store_latents_basis(vae: Any, basis: LatentsBasis) -> None:
    r"""Puts a basis into a model's config, which `save_pretrained` writes."""
    vae.register_to_config(**{CONFIG_KEY: basis.to_config()})


def _read_cut(model: VideoAutoencoder, path: str | PathLike[str]) -> torch.Tensor:
    """First frames `(1, 3, t, h, w)` of a file, the middle of them."""
    side = CUT_SIDE
    most = CUT_FRAMES
    if model.is_a("FrameSelectVAE"):
        side, most = model.vae.config.sample_size, model.vae.config.clip_num_frames
    frames = list(islice(_read_frames(str(path), None), most))
    frames = frames[: _largest_frames(model.geometry, len(frames)) or len(frames)]
    pixels = torch.stack(frames, dim=1)[None]
    for dim in (3, 4):
        length = min(side, pixels.shape[dim])
        pixels = pixels.narrow(dim, (pixels.shape[dim] - length) // 2, length)
    pixels = _cut_frames(pixels, model.geometry)
    return pad_clip(pixels, model.geometry.padded_size(*pixels.shape[2:])).to(model.vae.device)


def _probe_decoder(
    model: VideoAutoencoder, pixels: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, what noise in the pixels becomes on its way back to them, and the model's error."""
    with torch.no_grad(), model.tiling(*pixels.shape[3:]):
        z = model.encode(pixels).posterior.mode().float()
    z.requires_grad_()
    keep_mask = None
    if model.is_a("FrameSelectVAE"):
        keep_mask = torch.ones(1, z.shape[2], dtype=torch.bool, device=z.device)
    with torch.enable_grad(), model.tiling(*pixels.shape[3:]):
        decoded = model.decode(z, pixels.shape[2:], keep_mask=keep_mask).float()
        noise = torch.randn(decoded.shape, generator=generator).to(decoded.device)
        (gradient,) = torch.autograd.grad((decoded * noise).sum(), z)
    return z.detach(), gradient, (decoded - pixels).detach()
