r"""The windows that clips longer than a model's are cut into.

All are of one length, and each begins where the one before ends, but for the last one, which reaches back so that it
is full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch


class ClipWindow(NamedTuple):
    """Frames `start` to `stop` of a clip, of which those from `first_new` on are not in the window before."""

    start: int
    stop: int
    first_new: int


def clip_windows(num_frames: int, clip_num_frames: int) -> list[ClipWindow]:
    r"""Cuts a clip into windows of `clip_num_frames`; a shorter clip is one window."""
    windows = []
    for first_new in range(0, num_frames, clip_num_frames):
        stop = min(first_new + clip_num_frames, num_frames)
        windows.append(ClipWindow(max(stop - clip_num_frames, 0), stop, first_new))
    return windows


# What is known of some frames: tensors (B, C, t, H, W) or (B, t).
Piece = tuple[torch.Tensor, ...]


def stream_windows(pieces: Iterable[Piece], clip_num_frames: int) -> Iterator[tuple[ClipWindow, Piece]]:
    r"""Cuts a clip that arrives in pieces into windows, as soon as their frames are there.

    Args:
        pieces: Consecutive frames, any number in each: tuples of tensors `(B, C, t, H, W)` or `(B, t)`.
        clip_num_frames: Length of a window.

    Yields:
        Every window and its frames.

    Raises:
        ValueError: The pieces differ in more than their number of frames.
    """
    previous: Piece | None = None
    parts: list[Piece] = []
    num_missing = clip_num_frames
    start, first_shape = 0, None
    for piece in pieces:
        shape = _shape_without_frames(piece)
        first_shape = first_shape or shape
        if shape != first_shape:
            raise ValueError(f"Pieces may differ in their number of frames only, got {first_shape} and {shape}.")
        while _length(piece):
            part = _cut(piece, 0, min(_length(piece), num_missing))
            piece = _cut(piece, _length(part), _length(piece))
            parts.append(part)
            num_missing -= _length(part)
            if not num_missing:
                previous = _join(parts)
                yield ClipWindow(start, start + clip_num_frames, start), previous
                start, parts, num_missing = start + clip_num_frames, [], clip_num_frames
    if parts:
        stop = start + clip_num_frames - num_missing
        if previous is not None:
            parts.insert(0, _cut(previous, clip_num_frames - num_missing, clip_num_frames))
        yield ClipWindow(max(stop - clip_num_frames, 0), stop, start), _join(parts)


def join_windows(windows: Iterable[Piece]) -> Piece:
    """Joins what windows gave along frames."""
    return _join(list(windows))


def cut_clip(values: torch.Tensor, clip: int, length: int) -> torch.Tensor:
    """The first `length` frames of one clip of a batch."""
    return values[clip : clip + 1].narrow(_frame_dim(values), 0, length)


def stack_padded(clips: Sequence[torch.Tensor], num_frames: int) -> torch.Tensor:
    """Stacks one-clip batches of different lengths, `(1, frames)` or `(1, C, frames, H, W)`, padded with zeros."""
    dim = _frame_dim(clips[0])
    shape = list(clips[0].shape)
    shape[0], shape[dim] = len(clips), num_frames
    stacked = clips[0].new_zeros(shape)
    for clip, values in enumerate(clips):
        stacked[clip].narrow(dim - 1, 0, values.shape[dim]).copy_(values[0])
    return stacked


def _frame_dim(tensor: torch.Tensor) -> int:
    return 2 if tensor.ndim == 5 else 1


def _shape_without_frames(piece: Piece) -> tuple[int, ...]:
    """Batch, channels, height and width of the pieces' first tensor."""
    return (*piece[0].shape[: _frame_dim(piece[0])], *piece[0].shape[_frame_dim(piece[0]) + 1 :])


def _length(piece: Piece) -> int:
    return piece[0].shape[_frame_dim(piece[0])]


def _cut(piece: Piece, start: int, stop: int) -> Piece:
    return tuple(tensor.narrow(_frame_dim(tensor), start, stop - start) for tensor in piece)


def _join(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    return tuple(torch.cat(tensors, dim=_frame_dim(tensors[0])) for tensors in zip(*pieces, strict=True))
