r"""What pipelines return."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from diffusers_vidvae.codec import CompressedVideo


@dataclass
class GapDiTPipelineOutput(BaseOutput):
    r"""Output of `GapDiTPipeline`.

    Args:
        frames: For every video a list of PIL images; or an array `(batch, frames, height, width, channels)` or a
            tensor `(batch, frames, channels, height, width)` in [0, 1], shorter videos padded with black frames; or
            latent frames `(batch, channels, kept, height, width)`.
        gaps: Index of the first latent frame, then distances to the one before, int64 `(batch, kept)`; 0 for padding.
        positions: Frame index of every latent frame, int64 `(batch, kept)`; padding repeats the last one.
        num_frames: Length of every video, int64 `(batch,)`.
    """

    frames: list[list[Image.Image]] | np.ndarray | torch.Tensor
    gaps: torch.Tensor
    positions: torch.Tensor
    num_frames: torch.Tensor


@dataclass
class VideoCompressionPipelineOutput(BaseOutput):
    r"""Output of `VideoCompressionPipeline`.

    Args:
        frames: Decoded clips: lists of images, an array `(batch, frames, height, width, channels)` or a tensor
            `(batch, frames, channels, height, width)` in [0, 1], or latents `(batch, latent_channels, frames, height,
            width)` with zeros in the place of dropped frames; a list where clips differ in shape.
        compressed: The compressed clips.
        statistics: For every clip what it costs: kept frames, keep rate, latent values per pixel, bits per pixel of
            the whole file, pixel values per latent value, and so on.
    """

    frames: torch.Tensor | np.ndarray | list
    compressed: list[CompressedVideo]
    statistics: list[dict[str, Any]]


@dataclass
class VideoReconstructionPipelineOutput(BaseOutput):
    r"""Output of `VideoReconstructionPipeline`.

    Args:
        frames: Reconstructed clips: lists of images, an array `(batch, frames, height, width, channels)` or a tensor
            `(batch, frames, channels, height, width)` in [0, 1], or latents `(batch, latent_channels, latent_frames,
            latent_height, latent_width)`. An image is a clip of one frame.
        original: The clips that were encoded, in the same form; None with latents.
        metrics: Fidelity of every clip as `ClipMetrics.compute` of `diffusers_vidvae.metrics` gives it; None unless
            asked for.
        keep_mask: Frames that were decoded from their latents, bool `(batch, frames)`; None if all were.
        fps: Frame rate of the clips; None when unknown.
    """

    frames: torch.Tensor | np.ndarray | list
    original: torch.Tensor | np.ndarray | list | None = None
    metrics: list[dict[str, Any]] | None = None
    keep_mask: torch.Tensor | None = None
    fps: Fraction | None = None


@dataclass
class ReconstructedFile(BaseOutput):
    r"""What `VideoReconstructionPipeline.reconstruct_file` wrote.

    Args:
        output: The reconstruction.
        original_output: The original as it was encoded; None if it was not saved.
        num_frames: Frames in both, 1 for an image.
        height: Height in pixels.
        width: Width in pixels.
        fps: Frame rate; None for an image. Of a file of variable rate, its average.
        keep_rate: Share of the frames that were decoded from their latents; None if all were.
        metrics: Fidelity before the codec, see `diffusers_vidvae.metrics`; None unless asked for.
    """

    output: Path
    original_output: Path | None = None
    num_frames: int = 1
    height: int = 0
    width: int = 0
    fps: Fraction | None = None
    keep_rate: float | None = None
    metrics: dict[str, Any] | None = None
