"""Contact sheets of clips: rows of frames, one method under the other, kept frames marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from diffusers_vidvae.media import contact_sheet


KEPT_COLOUR = (255, 160, 0)
BAR_HEIGHT = 2


def save_contact_sheet(
    path: Path,
    rows: Sequence[torch.Tensor],
    kept: Sequence[torch.Tensor | None] | None = None,
    max_clips: int = 8,
) -> None:
    r"""Writes clips under each other as PNG, for each clip one line per entry of `rows`.

    Args:
        path: The file.
        rows: Clips `(batch, 3, frames, height, width)` in [-1, 1], all of one shape.
        kept: For each entry of `rows` a bool `(batch, frames)` whose frames get a coloured bar, or None.
        max_clips: Clips to draw.
    """
    frames: list[np.ndarray] = []
    for clip in range(min(max_clips, rows[0].shape[0])):
        for row, marks in zip(rows, kept or [None] * len(rows), strict=True):
            frames.extend(_marked_frames(row[clip], None if marks is None else marks[clip]))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(frames, columns=rows[0].shape[2]).save(path)


def _marked_frames(clip: torch.Tensor, marks: torch.Tensor | None) -> np.ndarray:
    """Frames `(T, H, W, 3)` of a clip, those that are marked with a bar at the lower edge."""
    pixels = ((clip.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    frames = pixels.permute(1, 2, 3, 0).numpy().copy()  # (T, H, W, 3)
    if marks is not None:
        frames[marks.cpu().numpy(), -BAR_HEIGHT:] = KEPT_COLOUR
    return frames
