r"""Clips padded at their ends by what stands there, so that padding is as easy to encode as what it pads."""

from __future__ import annotations

import torch


def edge_pad(sample: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    r"""Repeats the last entry of an axis up to `length`."""
    last = sample.shape[dim] - 1
    if last + 1 == length:
        return sample
    return sample.index_select(dim, torch.arange(length, device=sample.device).clamp(max=last))


def pad_clip(sample: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    r"""Repeats the last frame, row and column of `(..., frames, height, width)` until it has `size`."""
    for dim, length in zip((-3, -2, -1), size, strict=True):
        sample = edge_pad(sample, dim, length)
    return sample


def crop_clip(sample: torch.Tensor, size: tuple[int, ...] | torch.Size) -> torch.Tensor:
    r"""Inverse of `pad_clip`."""
    num_frames, height, width = size
    return sample[..., :num_frames, :height, :width]
