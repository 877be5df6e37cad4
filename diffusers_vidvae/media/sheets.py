"""Many frames on one image, to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .transforms import to_frames


_GAP = 4
_LABEL_SIZE = 12
_BACKGROUND, _TEXT = (24, 24, 24), (235, 235, 235)
_KEPT, _BAR_HEIGHT = (255, 160, 0), 2


def contact_sheet(
    frames: Sequence[Image.Image | NDArray[np.uint8]] | NDArray[np.uint8],
    *,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    frame_width: int | None = None,
    title: str | None = None,
) -> Image.Image:
    r"""Lays frames out row by row, each in the middle of its cell, with a line of text below it.

    Args:
        frames: PIL images or `(H, W, 3)` uint8 arrays, of any sizes, or one `(T, H, W, 3)` array.
        columns: Frames in a row; by default about as many as rows.
        labels: One text per frame.
        frame_width: Scale every frame to this width; by default frames keep their size.
        title: Lines of text above all frames.

    Raises:
        ValueError: No frames, `columns` below 1, or not as many labels as frames.
    """
    images = [frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in frames]
    if not images:
        raise ValueError("a contact sheet needs at least one frame.")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"got {len(labels)} labels for {len(images)} frames.")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}.")
    if frame_width is not None:
        images = [_scaled(image, frame_width) for image in images]
    sheet = _lay_out(images, min(columns, len(images)), labels)
    return sheet if title is None else _with_title(sheet, title.splitlines())


def clip_sheet(
    rows: Sequence[torch.Tensor], kept: Sequence[torch.Tensor | None] | None = None, max_clips: int = 8
) -> Image.Image:
    r"""Lays clips out under each other, for each clip one line per entry of `rows`, kept frames marked.

    Args:
        rows: Clips `(batch, 3, frames, height, width)` in [-1, 1], all of one shape.
        kept: For each entry of `rows` a bool `(batch, frames)` whose frames get a coloured bar, or None.
        max_clips: Clips to draw.
    """
    frames: list[NDArray[np.uint8]] = []
    for clip in range(min(max_clips, len(rows[0]))):
        for row, marks in zip(rows, kept or [None] * len(rows), strict=True):
            # A training that went astray is looked at, too.
            line = to_frames(row[clip].nan_to_num())  # (T, H, W, 3)
            if marks is not None:
                line[marks[clip].cpu().numpy(), -_BAR_HEIGHT:] = _KEPT
            frames.extend(line)
    return contact_sheet(frames, columns=rows[0].shape[2])


def _lay_out(images: list[Image.Image], columns: int, labels: Sequence[str] | None) -> Image.Image:
    cell_width = max(image.width for image in images)
    cell_height = max(image.height for image in images)
    line = 0 if labels is None else _LABEL_SIZE + _GAP
    rows = math.ceil(len(images) / columns)
    step_x, step_y = cell_width + _GAP, cell_height + line + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = _GAP + column * step_x, _GAP + row * step_y
        sheet.paste(image, (left + (cell_width - image.width) // 2, top + (cell_height - image.height) // 2))
        if labels is not None:
            _draw_label(draw, labels[index], left, top + cell_height + _GAP // 2, cell_width)
    return sheet


def _with_title(sheet: Image.Image, lines: Sequence[str]) -> Image.Image:
    line = _LABEL_SIZE + 2 * _GAP
    titled = Image.new("RGB", (sheet.width, sheet.height + line * len(lines)), _BACKGROUND)
    draw = ImageDraw.Draw(titled)
    for index, text in enumerate(lines):
        _draw_label(draw, text, _GAP, _GAP + line * index, sheet.width - 2 * _GAP)
    titled.paste(sheet, (0, line * len(lines)))
    return titled


def _draw_label(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int) -> None:
    font = ImageFont.load_default(_LABEL_SIZE)
    while text and draw.textlength(text, font) > width:
        text = text[:-1]
    draw.text((left, top), text, _TEXT, font)


def _scaled(image: Image.Image, width: int) -> Image.Image:
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.LANCZOS)
