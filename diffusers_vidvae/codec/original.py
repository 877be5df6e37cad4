"""Compressed clips of the original project."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .compressed_video import CompressedVideo
from .errors import FsvError, naming_file
from .header import FsvHeader
from .quantization import FLOAT_DTYPES
from .window import LatentWindow


_KEYS = ("compressed", "selection_indices", "compression_mask", "original_num_frames", "num_kept_frames")
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def read_original_pt(path: str | Path, patch_size: int = 16) -> CompressedVideo:
    """Reads what `compress.py` of floatingtrees/dynamic-frame-compression (commit 2150c20) writes.

    The file holds one clip as one window: latents `(1, slots, tokens, channels)` of a square token grid, kept frames
    first, with gaps and mask `(1, slots)`. It names neither the model nor the frame rate nor the size of the clip, so
    the result is shown at the size the model saw.

    Args:
        path: The `.pt` file; only tensors and numbers are unpickled.
        patch_size: Side in pixels of a token (16 in the published model).

    Raises:
        FsvError: The file cannot be read, holds anything else, or contradicts itself; the message names the field.
    """
    with naming_file(path):
        window = _window(_load_dictionary(Path(path)))
        channels, _, height, width = window.latents.shape
        kinds = {dtype: kind for kind, dtype in FLOAT_DTYPES.items()}
        header = FsvHeader(
            num_frames=window.num_frames,
            height=height * patch_size,
            width=width * patch_size,
            model_height=height * patch_size,
            model_width=width * patch_size,
            clip_num_frames=window.num_frames,
            latent_channels=channels,
            latent_height=height,
            latent_width=width,
            quantization=kinds[window.latents.dtype],
            latent_dtype=str(window.latents.dtype).removeprefix("torch."),
        )
        return CompressedVideo(header, [window], Path(path))


def _load_dictionary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FsvError("no such file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # The unpickler meets arbitrary bytes, and raises as many kinds of errors.
    except Exception as error:
        raise FsvError(f"not a torch.save file of tensors and numbers only ({type(error).__name__}).") from error
    if not isinstance(content, dict):
        raise FsvError(f"expected a dictionary with {', '.join(_KEYS)}, got {type(content).__name__}.")
    if missing := [key for key in _KEYS if key not in content]:
        raise FsvError(f"{missing[0]}: missing.")
    return content


def _window(content: dict[str, Any]) -> LatentWindow:
    latents, gaps, mask = (_tensor(content, *item) for item in zip(_KEYS[:3], (4, 2, 2), strict=True))
    num_frames, num_kept = (_count(content, key) for key in _KEYS[3:])
    batch, slots, tokens, channels = latents.shape
    if batch != 1:
        raise FsvError(f"compressed: {batch} clips, expected 1.")
    if latents.dtype not in FLOAT_DTYPES.values():
        raise FsvError(f"compressed: {latents.dtype} is not float32, bfloat16 or float16.")
    side = math.isqrt(tokens)
    if side * side != tokens or not tokens:
        raise FsvError(f"compressed: {tokens} tokens do not form a square.")
    for key, tensor in zip(_KEYS[1:3], (gaps, mask), strict=True):
        if tensor.shape != (1, slots):
            raise FsvError(f"{key}: shape {tuple(tensor.shape)}, expected {(1, slots)}.")
    if gaps.dtype not in _INTEGERS or mask.dtype not in (torch.bool, *_INTEGERS):
        raise FsvError(f"selection_indices: {gaps.dtype} and mask {mask.dtype}, expected integers and booleans.")
    if not 1 <= num_kept <= min(slots, num_frames):
        raise FsvError(f"num_kept_frames: {num_kept} of {num_frames} frames in {slots} slots.")
    if not torch.equal(mask[0].bool(), torch.arange(slots) < num_kept):
        raise FsvError(f"compression_mask: not the first {num_kept} of {slots} slots, as num_kept_frames says.")
    kept = latents[0, :num_kept].reshape(num_kept, side, side, channels)
    return LatentWindow(
        start=0, num_frames=num_frames, gaps=gaps[0, :num_kept].long(), latents=kept.permute(3, 0, 1, 2)
    )


def _tensor(content: dict[str, Any], key: str, dimensions: int) -> Tensor:
    value = content[key]
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise FsvError(f"{key}: expected a dense tensor.")
    # A tensor that is not contiguous may be far larger than the file.
    if value.dim() != dimensions or not value.is_contiguous():
        raise FsvError(f"{key}: expected a contiguous tensor of {dimensions} dimensions, got {tuple(value.shape)}.")
    return value


def _count(content: dict[str, Any], key: str) -> int:
    value = content[key]
    if type(value) is not int:
        raise FsvError(f"{key}: expected a whole number, got {type(value).__name__}.")
    return value
