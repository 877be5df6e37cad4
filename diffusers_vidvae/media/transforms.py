"""Pixels between what users hold and what models take: `(batch, channels, frames, height, width)` in [-1, 1]."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from .layouts import describe


def to_frames(pixels: torch.Tensor) -> NDArray[np.uint8]:
    r"""Converts `(B, C, T, H, W)` pixels in [-1, 1] to uint8 frames `(B, T, H, W, C)`.

    One clip `(C, T, H, W)` becomes `(T, H, W, C)`. Values are clamped and rounded, so that `to_frames(to_pixels(x))`
    returns the uint8 frames `x`.

    Raises:
        ValueError: Another shape or type, or the pixels hold NaN.
    """
    if not isinstance(pixels, torch.Tensor) or not pixels.is_floating_point() or pixels.ndim not in (4, 5):
        raise ValueError(f"expected a floating (B, C, T, H, W) or (C, T, H, W) tensor, got {describe(pixels)}.")
    if pixels.isnan().any():
        raise ValueError(f"the pixels hold NaN: {int(pixels.isnan().sum())} of {pixels.numel()} values.")
    # In place, since clips are large.
    levels = pixels.detach().float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
    return levels.movedim(-4, -1).cpu().numpy()


def to_pil(pixels: torch.Tensor) -> list[Image.Image] | list[list[Image.Image]]:
    """Converts `(C, T, H, W)` pixels in [-1, 1] to PIL images, or `(B, C, T, H, W)` to a list of them per clip."""
    frames = to_frames(pixels)
    if frames.ndim == 4:
        return [Image.fromarray(frame) for frame in frames]
    return [[Image.fromarray(frame) for frame in clip] for clip in frames]


def pad_to_multiple(pixels: torch.Tensor, height: int = 1, width: int = 1, frames: int = 1) -> torch.Tensor:
    """Repeats the last row, column and frame of `(..., T, H, W)` until each length is a multiple of the given number.

    `crop_to(padded, T, H, W)` undoes it.
    """
    for dim, multiple in ((-3, frames), (-2, height), (-1, width)):
        if multiple < 1:
            raise ValueError(f"multiples must be at least 1, got frames={frames}, height={height}, width={width}.")
        length = pixels.shape[dim]
        padded = -(-length // multiple) * multiple
        if padded != length:
            index = torch.arange(padded, device=pixels.device).clamp(max=length - 1)
            pixels = pixels.index_select(dim, index)
    return pixels


def crop_to(pixels: torch.Tensor, num_frames: int, height: int, width: int) -> torch.Tensor:
    """Keeps the first frames, rows and columns of `(..., T, H, W)`.

    Raises:
        ValueError: The pixels are smaller than that in some direction.
    """
    wanted, got = (num_frames, height, width), tuple(pixels.shape[-3:])
    if any(w > g for w, g in zip(wanted, got, strict=True)):
        raise ValueError(f"cannot crop (T, H, W) = {got} to the larger {wanted}.")
    return pixels[..., :num_frames, :height, :width]


def resize(
    pixels: torch.Tensor, height: int, width: int, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> torch.Tensor:
    """Resizes every frame of `(B, C, T, H, W)` pixels in [-1, 1], with antialiasing when it shrinks them."""
    if pixels.ndim != 5:
        raise ValueError(f"expected (B, C, T, H, W) pixels, got shape {tuple(pixels.shape)}.")
    if pixels.shape[-2:] == (height, width):
        return pixels
    batch, channels, num_frames = pixels.shape[:3]
    frames = pixels.movedim(2, 1).flatten(0, 1).float()  # (B*T, C, H, W)
    frames = F.interpolate(frames, (height, width), mode=mode, align_corners=False, antialias=True).clamp(-1, 1)
    return frames.view(batch, num_frames, channels, height, width).movedim(1, 2).to(pixels.dtype)
