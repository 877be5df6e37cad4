"""Contact sheets: clips as rows of frames, one method under the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image


KEPT_COLOUR = (255, 160, 0)


def contact_sheet(
    rows: list[torch.Tensor],
    kept: list[torch.Tensor | None] | None = None,
    max_clips: int = 8,
    margin: int = 2,
) -> Image.Image:
    r"""Draws clips under each other, for each clip one line per entry of `rows`.

    Args:
        rows: Clips `(batch, 3, frames, height, width)` in [-1, 1], all of one shape.
        kept: For each entry of `rows` a bool `(batch, frames)` whose frames get a coloured bar, or None.
        max_clips: Clips to draw.
        margin: Pixels between frames and twice that between clips.
    """
    lines = []
    for clip in range(min(max_clips, rows[0].shape[0])):
        for index, row in enumerate(rows):
            marks = None if kept is None or kept[index] is None else kept[index]
            lines.append(_line(row[clip], None if marks is None else marks[clip], margin))
        lines.append(np.full((margin, lines[-1].shape[1], 3), 255, np.uint8))
    return Image.fromarray(np.concatenate(lines))


def save_contact_sheet(path: Path, rows: list[torch.Tensor], kept: list[torch.Tensor | None] | None = None):
    """Writes a contact sheet as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, kept).save(path)


def _line(clip: torch.Tensor, marks: torch.Tensor | None, margin: int) -> np.ndarray:
    pixels = ((clip.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    frames = pixels.permute(1, 2, 3, 0).numpy()  # (T, H, W, 3)
    canvas = np.full((frames.shape[1] + margin, len(frames), frames.shape[2] + margin, 3), 255, np.uint8)
    canvas[: frames.shape[1], :, : frames.shape[2]] = frames.transpose(1, 0, 2, 3)
    if marks is not None:
        canvas[frames.shape[1] :, marks.cpu().numpy()] = KEPT_COLOUR
    return canvas.reshape(canvas.shape[0], -1, 3)
