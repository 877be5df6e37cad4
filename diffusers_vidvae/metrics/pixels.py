"""Pixels in any layout of this package, brought to the one that measures take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_frames(video: Tensor | np.ndarray) -> Tensor:
    """Pixels in any of this package's layouts as float32 `(batch, frames, channels, height, width)` in [0, 1].

    Args:
        video: Either floats `(batch, channels, frames, height, width)` in [-1, 1], clamped to that range, as a player
            shows them; or uint8 `(frames, height, width, channels)`, optionally with a batch in front.

    Raises:
        ValueError: Another type or shape, no frame, or a value that is not finite.
    """
    if isinstance(video, np.ndarray):
        video = torch.from_numpy(np.ascontiguousarray(video))
    if not isinstance(video, Tensor):
        raise ValueError(f"Expected a tensor or an array of pixels, got {type(video).__name__}.")
    if video.is_floating_point() and not torch.isfinite(video).all():
        raise ValueError(f"{int((~torch.isfinite(video)).sum())} of {video.numel()} pixel values are not finite.")
    if video.is_floating_point() and video.dim() == 5:
        frames = video.detach().float().transpose(1, 2).clamp(-1, 1).div_(2).add_(0.5)
    elif video.dtype == torch.uint8 and video.dim() in (4, 5):
        frames = video.reshape(-1, *video.shape[-4:]).movedim(-1, 2).float() / 255
    else:
        raise ValueError(
            "Expected floats (batch, channels, frames, height, width) in [-1, 1] or uint8 (frames, height, width, "
            f"channels), got {video.dtype} {tuple(video.shape)}."
        )
    if frames.numel() == 0:
        raise ValueError(f"Expected at least one frame and pixel, got shape {tuple(video.shape)}.")
    return frames


def as_frame_pairs(reference: Any, reconstruction: Any) -> tuple[Tensor, Tensor]:
    """Both clips as `as_frames` gives them, on the reference's device, refused with both shapes when these differ."""
    frames = as_frames(reference)
    pair = frames, as_frames(reconstruction).to(frames.device)
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            "Reference and reconstruction differ: (batch, frames, channels, height, width) is "
            f"{tuple(pair[0].shape)} and {tuple(pair[1].shape)}."
        )
    return pair
