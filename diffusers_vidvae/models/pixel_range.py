r"""Pixels between [-1, 1], which the package speaks, the range that a model was trained with, and 8-bit levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_pixel_range(pixels: torch.Tensor, pixel_range: Sequence[float]) -> torch.Tensor:
    r"""Maps pixels in [-1, 1] to the range `(low, high)` of a model."""
    low, high = pixel_range
    return (pixels + 1) * ((high - low) / 2) + low


def from_pixel_range(pixels: torch.Tensor, pixel_range: Sequence[float]) -> torch.Tensor:
    r"""Inverse of `to_pixel_range`."""
    low, high = pixel_range
    return (pixels - low) * (2 / (high - low)) - 1


def from_levels(levels: torch.Tensor) -> torch.Tensor:
    r"""Maps uint8 levels to float32 pixels in [-1, 1]."""
    return levels.to(torch.float32).div_(127.5).sub_(1)


def to_levels(pixels: torch.Tensor) -> torch.Tensor:
    r"""Maps pixels to the nearest uint8 levels, those beyond [-1, 1] to black and white; levels stay as they are."""
    if pixels.dtype == torch.uint8:
        return pixels
    return (pixels.float() / 2 + 0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
