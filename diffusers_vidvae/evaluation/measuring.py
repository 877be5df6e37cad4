r"""One clip through one method: what came back, what it cost, and a strip of frames to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusers_vidvae.metrics import ClipMetrics, PerceptualMetric, bits_per_pixel

from .clips import EvaluationClip


STRIP_FRAMES = 32
STRIP_WIDTH = 200
_PIECE = 16


@dataclass(frozen=True)
class Measured:
    """What a method made of a clip.

    Args:
        row: Figures, and the settings that they belong to, as plain values.
        strip: Frames beside each other, a WebP file; None where nobody looks at them.
    """

    row: dict[str, Any]
    strip: bytes | None = None


@dataclass(frozen=True)
class Part:
    """All that one model, or the codecs, gave for a clip.

    Args:
        measured: A method each.
        facts: What else is known, such as keep probabilities.
        failures: Methods that could not run, and why.
    """

    measured: list[Measured]
    facts: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def measure(
    clip: EvaluationClip,
    frames: NDArray[np.uint8],
    num_bits: int,
    keep_mask: torch.Tensor | None = None,
    boundaries: Sequence[int] = (),
    lpips: PerceptualMetric | None = None,
    shown: bool = False,
    **settings: Any,
) -> Measured:
    r"""Compares frames `(T, H, W, 3)` with a clip's.

    Args:
        clip: The original.
        frames: What came back.
        num_bits: Every bit that it takes to bring it back without the model.
        keep_mask: Frames that were kept, `(T,)`.
        boundaries: First frames of windows after the first one.
        lpips: Perceptual distance to measure.
        shown: Whether the frames are to be looked at.
        settings: What the row is called by.
    """
    metrics = ClipMetrics(keep_mask, boundaries, lpips=lpips)
    for start in range(0, len(frames), _PIECE):
        metrics.update(clip.frames[start : start + _PIECE], frames[start : start + _PIECE])
    figures = metrics.compute()
    psnr = figures["psnr"]
    assert psnr is not None
    row = {
        **settings,
        "num_bytes": -(-num_bits // 8),
        "bits_per_pixel": bits_per_pixel(num_bits, *clip.frames.shape[:3]),
        **figures,
        "mse": 0.0 if np.array_equal(frames, clip.frames) else 10 ** (-psnr / 10),
    }
    return Measured(row, make_strip(frames) if shown else None)


def make_strip(frames: NDArray[np.uint8], most_width: int = STRIP_WIDTH) -> bytes:
    """The first frames beside each other, none wider than `most_width`, as WebP."""
    height, width = frames.shape[1:3]
    size = (width, height) if width <= most_width else (most_width, max(1, round(height * most_width / width)))
    shown = frames[:STRIP_FRAMES]
    strip = Image.new("RGB", (size[0] * len(shown), size[1]))
    for index, frame in enumerate(shown):
        strip.paste(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS), (index * size[0], 0))
    content = BytesIO()
    strip.save(content, "webp", quality=80)
    return content.getvalue()
