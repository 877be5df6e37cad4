r"""Sizes of clips: which ones a model takes, and how a clip gets the next of them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """The lengths `start`, `start + step`, `start + 2 * step`, ... of one axis."""

    start: int
    step: int = 1

    def __contains__(self, length: object) -> bool:
        return isinstance(length, int) and length >= self.start and (length - self.start) % self.step == 0

    def round_up(self, length: int) -> int:
        """Smallest of the lengths that is at least `length`."""
        return self.start + max(0, math.ceil((length - self.start) / self.step)) * self.step

    def round_down(self, length: int) -> int:
        """Largest of the lengths that is at most `length`, 0 if all are longer."""
        return 0 if length < self.start else self.start + (length - self.start) // self.step * self.step


@dataclass(frozen=True)
class VideoGeometry:
    """Sizes of clips that a model takes, in frames and pixels.

    Args:
        frames: Numbers of frames; a number in any of the progressions is accepted.
        height: Heights.
        width: Widths.
        per_frame: The encoder is an image encoder: frames go through it as images.
        untiled_side: Side of the only frames that fit the model without tiling; 0 if it always tiles, None if tiling
            is never needed.
        one_clip_at_a_time: The model takes batches of one.
    """

    frames: tuple[Lengths, ...]
    height: Lengths
    width: Lengths
    per_frame: bool = False
    untiled_side: int | None = None
    one_clip_at_a_time: bool = False

    def padded_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Smallest accepted `(frames, height, width)` that holds a clip of this size."""
        return self.padded_frames(num_frames), self.height.round_up(height), self.width.round_up(width)

    def padded_frames(self, num_frames: int) -> int:
        """Smallest accepted number of frames that is at least `num_frames`."""
        return min(lengths.round_up(num_frames) for lengths in self.frames)

    def accepts_frames(self, num_frames: int) -> bool:
        return any(num_frames in lengths for lengths in self.frames)

    def first_frame_counts(self, count: int = 5) -> list[int]:
        """The smallest accepted numbers of frames, for messages."""
        return sorted({lengths.start + i * lengths.step for lengths in self.frames for i in range(count)})[:count]

    def needs_tiling(self, height: int, width: int) -> bool:
        return self.untiled_side is not None and (height, width) != (self.untiled_side, self.untiled_side)
