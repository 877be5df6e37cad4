r"""Pixels between [-1, 1], which the package speaks, and the range that a model was trained with."""

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
