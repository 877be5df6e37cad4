r"""Mean and deviation of an autoencoder's latents, channel by channel, over a set of images and videos.

Every file gets a record of its own: the number of latents, their mean and squared deviations and the divergence of
their posteriors, in float64. The result is made of all records in the order of their names, so it does not depend on
the order in which files were encoded, and an interrupted run continues with the records that it wrote.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from diffusers_vidvae.media import open_clips
from diffusers_vidvae.models.padding import pad_clip

from .geometry import Lengths, VideoGeometry
from .latent_moments import LatentMoments
from .probing import open_autoencoder
from .statistics_records import StatisticsRecords
from .video_autoencoder import VideoAutoencoder


if TYPE_CHECKING:
    from .latents_basis import LatentsBasisEstimator


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


@torch.no_grad()
def latent_statistics(
    vae: Any,
    paths: Iterable[str | PathLike[str]],
    fps: float | Fraction | None = None,
    chunk_frames: int = 24,
    max_frames: int | None = None,
    state_file: str | PathLike[str] | None = None,
    basis: LatentsBasisEstimator | None = None,
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
        basis: Is shown every file on the way, whether it has a record or not; see `measure_latents_basis`.

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
    records = StatisticsRecords(state_file, vae, settings) if state_file is not None else None
    model = open_autoencoder(vae)
    moments: dict[str, LatentMoments] = {}
    for path in paths:
        name = os.fspath(path)
        known = None if records is None else records.find(name)
        moments[name] = known or _measure_file(model, name, fps, chunk_frames, max_frames)
        if records is not None and known is None:
            records.append(name, moments[name])
        if basis is not None:
            basis.update(name)
    if not moments:
        raise ValueError("There are no files to take statistics of.")
    return _summarize([moments[name] for name in sorted(moments)])


def _summarize(moments: list[LatentMoments]) -> LatentStatistics:
    total = reduce(LatentMoments.__add__, moments)
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
) -> LatentMoments:
    frames = islice(_read_frames(path, fps), max_frames)
    encode = _encode_stream if model.is_a("AutoencoderKL3D") else _encode_chunks
    moments = reduce(LatentMoments.__add__, encode(model, frames, chunk_frames))
    if not moments.mean.isfinite().all() or not moments.variances.isfinite().all():
        raise ValueError(f"{path}: its latents are not finite.")
    return moments


def _read_frames(path: str, fps: float | Fraction | None) -> Iterator[torch.Tensor]:
    """Frames `(3, H, W)` in [-1, 1] of an image or a video."""
    (clip,) = open_clips(path, fps)
    return (frame.to_pixels() for frame in clip)


def _encode_chunks(
    model: VideoAutoencoder, frames: Iterator[torch.Tensor], chunk_frames: int
) -> Iterator[LatentMoments]:
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
            yield LatentMoments.of(posterior, num_frames)
        is_first = False


def _encode_stream(
    model: VideoAutoencoder, frames: Iterator[torch.Tensor], chunk_frames: int
) -> Iterator[LatentMoments]:
    num_read = num_encoded = num_latents = 0
    ratio, side_ratio = model.vae.temporal_compression_ratio, model.vae.spatial_compression_ratio

    def pieces() -> Iterator[torch.Tensor]:
        nonlocal num_read
        while chunk := list(islice(frames, chunk_frames)):
            num_read += len(chunk)
            pixels = _cut_frames(torch.stack(chunk, dim=1)[None], model.geometry, multiple=side_ratio)
            size = model.geometry.padded_size(*pixels.shape[2:])
            yield pad_clip(pixels.to(model.vae.device), size)

    for parameters in model.vae.encode_stream(pieces()):
        num_latents += parameters.shape[2]
        num_frames = min(num_latents * ratio - model.vae.num_missing_frames, num_read) - num_encoded
        num_encoded += num_frames
        yield LatentMoments.of(DiagonalGaussianDistribution(parameters), num_frames)


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
