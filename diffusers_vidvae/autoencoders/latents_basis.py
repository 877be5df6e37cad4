r"""The basis in which latents of an autoencoder are best quantised, measured on clips.

It takes the mean and covariance of the latents, and the decoder's metric `E[J' J]`: for noise `v` of unit variance in
the pixels, `E[(J' v) (J' v)'] = E[J' J]`, so every backward pass of noise through the decoder is a draw of it at all
places of the latents at once (Hutchinson's estimator, 1990).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch

from diffusers_vidvae.codec.latents_basis import CONFIG_KEY, LatentsBasis

from .geometry import pad_clip
from .latent_statistics import _cut_frames, _largest_frames, _read_frames
from .probing import open_autoencoder
from .video_autoencoder import VideoAutoencoder


# Clips are cut to this side, which a backward pass has memory for.
CUT_SIDE = 256
CUT_FRAMES = 17


def measure_latents_basis(vae: Any, paths: Iterable[str | PathLike[str]], max_clips: int = 16) -> LatentsBasis:
    r"""Measures the basis on the start and the middle of clips, a forward and a backward pass for each.

    Args:
        vae: An autoencoder of diffusers or of this package.
        paths: Image and video files; about ten different ones are enough.
        max_clips: Files to read at most.

    Raises:
        ValueError: There are no files, latents are not finite, or the decoder cannot be differentiated.
        MediaError: A file cannot be read.
    """
    model = open_autoencoder(vae)
    generator = torch.Generator().manual_seed(0)
    latents, metrics, errors, per_position = [], [], [], 0
    for path in islice(paths, max_clips):
        z, gradient, error = _probe_decoder(model, _read_cut(model, path), generator)
        per_position = error.numel() // z[0, 0].numel()
        latents.append(_rows(z))
        rows = _rows(gradient)
        metrics.append(rows @ rows.T / rows.shape[1])
        errors.append(float(error.square().mean()))
    if not latents:
        raise ValueError("There are no files to measure a basis of.")
    values = np.concatenate(latents, axis=1)
    metric = np.mean(metrics, axis=0)
    if not np.isfinite(values).all() or not np.isfinite(metric).all() or not metric.any():
        raise ValueError(f"{model.name}: latents or gradients are not finite, or all zero.")
    mean = values.mean(axis=1)
    return LatentsBasis.of_covariances(mean, np.cov(values), metric, float(np.mean(errors)), per_position)


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


def _rows(latents: torch.Tensor) -> np.ndarray:
    """float64 `(channels, positions)`."""
    return latents[0].flatten(1).double().cpu().numpy()
