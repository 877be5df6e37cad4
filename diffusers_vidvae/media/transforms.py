"""Pixels between what users hold and what models take: `(batch, channels, frames, height, width)` in [-1, 1]."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from .errors import MediaWarning
from .frames import Frame, FrameBatch


ACCEPTED = (
    "a path, a PIL image, a list of PIL images or of (H, W, C) arrays, a (T, H, W, C) array of uint8 or of floats in "
    "[0, 1], or a (B, C, T, H, W) tensor in [-1, 1]"
)

# Models overshoot a little; what lies further out was never meant to be in the range.
_OVERSHOOT = 0.5
_ROUNDING = 1e-3


def to_pixels(
    video: Any, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    r"""Converts what users pass for an image or a video into a `(B, C, T, H, W)` tensor in [-1, 1].

    Args:
        video: A path to an image or a video; a PIL image; a list of PIL images or of `(H, W, C)` arrays, the frames of
            one clip; a `FrameBatch`; an array (or tensor) of uint8, or an array of floats in [0, 1], of shape
            `(H, W, C)`, `(T, H, W, C)` or `(B, T, H, W, C)`; a floating `(B, C, T, H, W)` tensor in [-1, 1]; or a list
            of such clips, all of one size. C is 3; grey images (1) are spread over three channels, alpha (4) is
            dropped with a `MediaWarning`.
        device, dtype: Of the result.

    Raises:
        ValueError: It is something else; the message says what.
        MediaError: The path cannot be read.
    """
    return _to_tensor(video).to(device=device, dtype=dtype)


def to_frames(pixels: torch.Tensor) -> NDArray[np.uint8]:
    r"""Converts `(B, C, T, H, W)` pixels in [-1, 1] to uint8 frames `(B, T, H, W, C)`.

    One clip `(C, T, H, W)` becomes `(T, H, W, C)`. Values are clamped and rounded, so that `to_frames(to_pixels(x))`
    returns the uint8 frames `x`.

    Raises:
        ValueError: Another shape or type, or the pixels hold NaN.
    """
    if not isinstance(pixels, torch.Tensor) or not pixels.is_floating_point() or pixels.ndim not in (4, 5):
        raise ValueError(f"expected a floating (B, C, T, H, W) or (C, T, H, W) tensor, got {_describe(pixels)}")
    if pixels.isnan().any():
        raise ValueError(f"the pixels hold NaN: {int(pixels.isnan().sum())} of {pixels.numel()} values")
    levels = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
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
            raise ValueError(f"multiples must be at least 1, got frames={frames}, height={height}, width={width}")
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
        raise ValueError(f"cannot crop (T, H, W) = {got} to the larger {wanted}")
    return pixels[..., :num_frames, :height, :width]


def resize(
    pixels: torch.Tensor, height: int, width: int, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> torch.Tensor:
    """Resizes every frame of `(B, C, T, H, W)` pixels in [-1, 1], with antialiasing when it shrinks them."""
    if pixels.ndim != 5:
        raise ValueError(f"expected (B, C, T, H, W) pixels, got shape {tuple(pixels.shape)}")
    if pixels.shape[-2:] == (height, width):
        return pixels
    batch, channels, num_frames = pixels.shape[:3]
    frames = pixels.movedim(2, 1).flatten(0, 1).float()  # (B*T, C, H, W)
    frames = F.interpolate(frames, (height, width), mode=mode, align_corners=False, antialias=True).clamp(-1, 1)
    return frames.view(batch, num_frames, channels, height, width).movedim(1, 2).to(pixels.dtype)


def _to_tensor(video: Any) -> torch.Tensor:
    if isinstance(video, torch.Tensor) and video.is_floating_point():
        return _checked_tensor(video)
    if isinstance(video, torch.Tensor):
        video = video.cpu().numpy()
    if isinstance(video, (str, os.PathLike)):
        from .loading import load_media

        video = load_media(video).frames
    if isinstance(video, (Frame, FrameBatch)):
        video = video.data
    if isinstance(video, Image.Image):
        from .images import load_image

        video = np.asarray(load_image(video))
    if isinstance(video, np.ndarray):
        return _array_to_pixels(video)
    if isinstance(video, Sequence) and video and _is_clip(video[0]):
        return torch.cat(_of_one_size([_to_tensor(clip) for clip in video], "clip"))
    if isinstance(video, Sequence) and video:
        return torch.cat(_of_one_size([_frame_to_pixels(frame) for frame in video], "frame"), dim=2)
    raise ValueError(f"a video must be {ACCEPTED}; got {_describe(video)}")


def _checked_tensor(video: torch.Tensor) -> torch.Tensor:
    if video.ndim != 5 or video.shape[1] != 3 or video.numel() == 0:
        raise ValueError(f"a video tensor must have shape (B, 3, T, H, W), got {_describe(video)}")
    low, high = (float(bound) for bound in video.detach().float().aminmax())
    if not -1 - _OVERSHOOT <= low <= high <= 1 + _OVERSHOOT:
        raise ValueError(f"a video tensor must hold values in [-1, 1], got values from {low:g} to {high:g}")
    return video


def _array_to_pixels(video: NDArray) -> torch.Tensor:
    if video.ndim not in (3, 4, 5) or video.shape[-1] not in (1, 3, 4) or video.size == 0:
        raise ValueError(f"an array must have shape (T, H, W, C) with C = 1, 3 or 4, got {_describe(video)}")
    video = video.reshape((1,) * (5 - video.ndim) + video.shape)  # (B, T, H, W, C)
    if video.shape[-1] == 4:
        warnings.warn("the array's fourth channel (alpha) is dropped", MediaWarning, stacklevel=4)
        video = video[..., :3]
    if video.dtype == np.uint8:
        # PIL gives arrays that may not be written to, which torch warns of.
        pixels = torch.from_numpy(np.require(video, requirements=["C", "W"])).float() / 127.5 - 1
    elif np.issubdtype(video.dtype, np.floating):
        low, high = float(video.min()), float(video.max())
        if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:
            raise ValueError(
                f"an array of floats must hold values in [0, 1], got {_describe(video)} with values from {low:g} to "
                f"{high:g}; arrays in [0, 255] must be uint8"
            )
        pixels = torch.from_numpy(np.ascontiguousarray(video, dtype=np.float32)) * 2 - 1
    else:
        raise ValueError(f"an array must hold uint8 or floats in [0, 1], got {_describe(video)}")
    return pixels.movedim(-1, 1).expand(-1, 3, -1, -1, -1).contiguous()


def _frame_to_pixels(frame: Any) -> torch.Tensor:
    if isinstance(frame, (Image.Image, Frame)) or (isinstance(frame, np.ndarray) and frame.ndim == 3):
        return _to_tensor(frame)
    raise ValueError(f"a list of frames must hold PIL images or (H, W, C) arrays, got {_describe(frame)} in it")


def _is_clip(item: Any) -> bool:
    """Whether an item of a list is a clip by itself, not a frame."""
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim >= 4
    return isinstance(item, (str, os.PathLike, FrameBatch, list, tuple))


def _of_one_size(parts: list[torch.Tensor], name: str) -> list[torch.Tensor]:
    first = parts[0].shape[2:]
    for index, part in enumerate(parts):
        if part.shape[2:] != first:
            raise ValueError(
                f"all {name}s must have one size: {name} 0 has (T, H, W) = {tuple(first)}, "
                f"{name} {index} has {tuple(part.shape[2:])}"
            )
    return parts


def _describe(value: Any) -> str:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        return f"a {str(value.dtype).removeprefix('torch.')} {kind} of shape {tuple(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"an empty {type(value).__name__}" if not value else f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
