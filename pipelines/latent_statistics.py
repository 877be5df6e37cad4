r"""Mean and deviation of an autoencoder's latents, channel by channel, over a set of images and videos.

Every file gets a record of its own: the number of latents, their mean and squared deviations and the divergence of
their posteriors, in float64. The result is made of all records in the order of their names, so it does not depend on
the order in which files were encoded, and an interrupted run continues with the records that it wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import reduce
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from diffusers_vidvae.media import VideoReader, load_image, media_kind, resample_frames, to_pixels

from .video_autoencoders import Lengths, Posterior, VideoAutoencoder, VideoGeometry, pad_clip


STATE_FORMAT = 1


@dataclass
class LatentStatistics:
    r"""Statistics of latents over many clips.

    Args:
        latents_mean: Mean of every channel.
        latents_std: Deviation of every channel of latents that are drawn from their posteriors.
        latents_mode_std: The same of the posteriors' modes; smaller by what the draws add.
        kl_per_element: Mean KL divergence of the posterior of a latent value from a standard normal, in nats; None for
            autoencoders without a posterior, like the next.
        kl_per_channel: The same for every channel.
        num_clips: Files that were read.
        num_frames: Frames that were encoded.
        num_positions: Latent positions `(frame, row, column)` that were counted.
    """

    latents_mean: list[float]
    latents_std: list[float]
    latents_mode_std: list[float]
    kl_per_element: float | None
    kl_per_channel: list[float] | None
    num_clips: int
    num_frames: int
    num_positions: int


@dataclass
class _Moments:
    """Moments of posterior modes over positions, and sums of the posteriors' variances and divergences, by channel."""

    num_frames: int
    num_positions: int
    mean: torch.Tensor
    deviations: torch.Tensor
    variances: torch.Tensor
    divergences: torch.Tensor | None

    @classmethod
    def of(cls, posterior: Posterior, num_frames: int) -> _Moments:
        modes = posterior.mode().double().cpu().transpose(0, 1).flatten(1)  # (C, positions)
        mean = modes.mean(dim=1)
        deviations = (modes - mean[:, None]).square().sum(dim=1)
        if not isinstance(posterior, DiagonalGaussianDistribution):
            return cls(num_frames, modes.shape[1], mean, deviations, torch.zeros_like(mean), None)
        variances = posterior.var.double().cpu().transpose(0, 1).flatten(1)
        divergences = 0.5 * (modes.square() + variances - 1 - variances.log()).sum(dim=1)
        return cls(num_frames, modes.shape[1], mean, deviations, variances.sum(dim=1), divergences)

    def __add__(self, other: _Moments) -> _Moments:
        """Moments of both sets of positions (Chan, Golub and LeVeque, 1983)."""
        total = self.num_positions + other.num_positions
        shift = other.mean - self.mean
        divergences = None
        if self.divergences is not None and other.divergences is not None:
            divergences = self.divergences + other.divergences
        return _Moments(
            self.num_frames + other.num_frames,
            total,
            self.mean + shift * (other.num_positions / total),
            self.deviations + other.deviations + shift.square() * (self.num_positions * other.num_positions / total),
            self.variances + other.variances,
            divergences,
        )

    def to_json(self) -> dict[str, Any]:
        return {name: value.tolist() if torch.is_tensor(value) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> _Moments:
        tensors = {n: torch.tensor(v, dtype=torch.float64) for n, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **tensors})


@torch.no_grad()
def latent_statistics(
    vae: Any,
    paths: Iterable[str | PathLike[str]],
    fps: float | Fraction | None = None,
    chunk_frames: int = 24,
    max_frames: int | None = None,
    state_file: str | PathLike[str] | None = None,
) -> LatentStatistics:
    r"""Encodes clips in chunks, in constant memory, and gathers `latents_mean` and `latents_std` of a model's config.

    So that padding is not counted, frames are cut, evenly on both sides, to a size that the autoencoder takes, and the
    last chunk to a number of frames that it takes; only clips that are smaller than any of these are padded.
    `AutoencoderKL3D` encodes a clip as a stream, whose latents do not depend on chunks.

    Args:
        vae: An autoencoder of diffusers or of this package.
        paths: Image and video files, in any order.
        fps: Rate that videos are resampled to.
        chunk_frames: Frames to encode at a time; made shorter where the autoencoder takes only certain numbers.
        max_frames: Frames to read of every clip, from its start; all by default.
        state_file: File of records, one for every file that was encoded. Files with a record are not encoded again, so
            a run that was interrupted, or that is given more files, continues from it. It belongs to one autoencoder
            and to the settings above.

    Raises:
        ValueError: There are no files, a file gives latents that are not finite, a number is below 1, or `state_file`
            belongs to another autoencoder or other settings.
        MediaError: A file cannot be read.
    """
    if chunk_frames < 1 or (max_frames is not None and max_frames < 1):
        raise ValueError(f"`chunk_frames` and `max_frames` must be at least 1, got {chunk_frames} and {max_frames}.")
    settings = {
        "fps": None if fps is None else str(Fraction(fps)),
        "chunk_frames": chunk_frames,
        "max_frames": max_frames,
    }
    records = _Records(state_file, vae, settings) if state_file is not None else None
    model = VideoAutoencoder(vae)
    moments: dict[str, _Moments] = {}
    for path in paths:
        name = os.fspath(path)
        known = None if records is None else records.find(name)
        moments[name] = known or _measure_file(model, name, fps, chunk_frames, max_frames)
        if records is not None and known is None:
            records.append(name, moments[name])
    if not moments:
        raise ValueError("There are no files to take statistics of.")
    return _summarize([moments[name] for name in sorted(moments)])


def _summarize(moments: list[_Moments]) -> LatentStatistics:
    total = reduce(_Moments.__add__, moments)
    mode_variance = total.deviations / total.num_positions
    divergences = None if total.divergences is None else total.divergences / total.num_positions
    return LatentStatistics(
        latents_mean=total.mean.tolist(),
        latents_std=(mode_variance + total.variances / total.num_positions).sqrt().tolist(),
        latents_mode_std=mode_variance.sqrt().tolist(),
        kl_per_element=None if divergences is None else float(divergences.mean()),
        kl_per_channel=None if divergences is None else divergences.tolist(),
        num_clips=len(moments),
        num_frames=total.num_frames,
        num_positions=total.num_positions,
    )


# Encoding


def _measure_file(
    model: VideoAutoencoder, path: str, fps: float | Fraction | None, chunk_frames: int, max_frames: int | None
) -> _Moments:
    frames = islice(_read_frames(path, fps), max_frames)
    encode = _encode_stream if model.is_a("AutoencoderKL3D") else _encode_chunks
    moments = reduce(_Moments.__add__, encode(model, frames, chunk_frames))
    if not moments.mean.isfinite().all() or not moments.variances.isfinite().all():
        raise ValueError(f"{path}: its latents are not finite.")
    return moments


def _read_frames(path: str, fps: float | Fraction | None) -> Iterator[torch.Tensor]:
    """Frames `(3, H, W)` in [-1, 1] of an image or a video."""
    if media_kind(path) == "image":
        yield to_pixels(load_image(path))[0, :, 0]
        return
    reader = VideoReader(path)
    for frame in reader if fps is None else resample_frames(reader, fps):
        yield to_pixels(frame)[0, :, 0]


def _encode_chunks(model: VideoAutoencoder, frames: Iterator[torch.Tensor], chunk_frames: int) -> Iterator[_Moments]:
    geometry = model.geometry
    if model.is_a("FrameSelectVAE"):
        chunk_frames = model.vae.config.clip_num_frames
    chunk_frames = _largest_frames(geometry, chunk_frames) or geometry.padded_frames(1)
    is_first = True
    while chunk := list(islice(frames, chunk_frames)):
        num_frames = _largest_frames(geometry, len(chunk)) or len(chunk) * is_first
        if num_frames:
            pixels = _cut_frames(torch.stack(chunk[:num_frames], dim=1)[None], geometry)
            size = geometry.padded_size(*pixels.shape[2:])
            with model.tiling(*size[1:]):
                posterior = model.encode(pad_clip(pixels.to(model.vae.device), size)).posterior
            yield _Moments.of(posterior, num_frames)
        is_first = False


def _encode_stream(model: VideoAutoencoder, frames: Iterator[torch.Tensor], chunk_frames: int) -> Iterator[_Moments]:
    num_read = num_encoded = 0
    ratio, side_ratio = model.vae.temporal_compression_ratio, model.vae.spatial_compression_ratio

    def pieces() -> Iterator[torch.Tensor]:
        nonlocal num_read
        while chunk := list(islice(frames, chunk_frames)):
            num_read += len(chunk)
            pixels = _cut_frames(torch.stack(chunk, dim=1)[None], model.geometry, multiple=side_ratio)
            size = model.geometry.padded_size(*pixels.shape[2:])
            yield pad_clip(pixels.to(model.vae.device), size)

    for parameters in model.vae.encode_stream(pieces()):
        num_frames = min(parameters.shape[2] * ratio, num_read - num_encoded)
        num_encoded += num_frames
        yield _Moments.of(DiagonalGaussianDistribution(parameters), num_frames)


def _largest_frames(geometry: VideoGeometry, num_frames: int) -> int:
    """The largest number of frames up to `num_frames` that is accepted, 0 if there is none."""
    return max(lengths.round_down(num_frames) for lengths in geometry.frames)


def _cut_frames(pixels: torch.Tensor, geometry: VideoGeometry, multiple: int = 1) -> torch.Tensor:
    """Cuts height and width of `(1, 3, T, H, W)`, evenly on both sides, to accepted lengths, if there are any."""
    for dim, lengths in ((3, geometry.height), (4, geometry.width)):
        length = Lengths(lengths.start, max(lengths.step, multiple)).round_down(pixels.shape[dim])
        if length:
            pixels = pixels.narrow(dim, (pixels.shape[dim] - length) // 2, length)
    return pixels


# Records


class _Records:
    """Lines of JSON: what they belong to, then the moments of a file on each."""

    def __init__(self, path: str | PathLike[str], vae: Any, settings: dict[str, Any]):
        self.path = Path(path)
        self.moments: dict[str, tuple[int, _Moments]] = {}
        header = {"format": STATE_FORMAT, "model": _fingerprint(vae), **settings}
        if not self.path.exists():
            self._write_line(header)
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        self._check_header(lines[0] if lines else "", header)
        for line in lines[1:]:
            if line.endswith("\n"):
                record = json.loads(line)
                self.moments[record["file"]] = record["bytes"], _Moments.from_json(record["moments"])
        if lines and not lines[-1].endswith("\n"):
            # The run was interrupted while it wrote this line.
            os.truncate(self.path, sum(len(line.encode()) for line in lines[:-1]))

    def _check_header(self, line: str, expected: dict[str, Any]):
        try:
            header = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path}: is no file of latent statistics.") from error
        for name, value in expected.items():
            if not isinstance(header, dict) or name not in header:
                raise ValueError(f"{self.path}: is no file of latent statistics.")
            if header[name] != value and name == "model":
                raise ValueError(f"{self.path}: belongs to an autoencoder with other weights.")
            if header[name] != value:
                raise ValueError(f"{self.path}: was made with `{name}` {header[name]!r}, not {value!r}.")

    def find(self, name: str) -> _Moments | None:
        """The moments of a file that has not changed its size since."""
        num_bytes, moments = self.moments.get(name, (-1, None))
        return moments if Path(name).is_file() and Path(name).stat().st_size == num_bytes else None

    def append(self, name: str, moments: _Moments):
        self._write_line({"file": name, "bytes": Path(name).stat().st_size, "moments": moments.to_json()})

    def _write_line(self, values: dict[str, Any]):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _fingerprint(vae: Any) -> str:
    """Of the weights, whatever their device."""
    digest = hashlib.sha256(type(vae).__name__.encode())
    for name, weight in sorted(vae.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
