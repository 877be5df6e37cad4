"""Which frames every window of a clip covers and keeps, as few bytes of memory a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch

from .errors import FsvError
from .window import WindowSelection


class WindowSelections(Sequence[WindowSelection]):
    """Selections made as they are asked for, so that files of many tiny windows do not fill the memory with objects.

    Args:
        frames: Frames that each window covers.
        kept: Frames that each window keeps.
        gaps: Gaps of the kept frames of all windows, one behind the other.

    Raises:
        FsvError: A window keeps no frame, or one that it does not cover.
    """

    def __init__(self, frames: np.ndarray, kept: np.ndarray, gaps: np.ndarray) -> None:
        self.frames, self.kept, self.gaps = (values.astype(np.int64) for values in (frames, kept, gaps))
        self.starts = np.cumsum(self.frames) - self.frames
        self.first_kept = np.cumsum(self.kept) - self.kept
        self._check()

    def _check(self) -> None:
        if not len(self.frames) or self.frames.min() < 1 or self.kept.min() < 1 or self.kept.sum() != len(self.gaps):
            raise FsvError(f"window_kept: {self.kept.sum()} kept frames in windows for {len(self.gaps)} gaps.")
        wrong = self.gaps < 1
        wrong[self.first_kept] = self.gaps[self.first_kept] < 0
        # Bounding each gap first keeps the sums from overflowing.
        wrong |= self.gaps >= np.repeat(self.frames, self.kept)
        lasts = np.add.reduceat(np.where(wrong, 0, self.gaps), self.first_kept)
        bad = np.logical_or.reduceat(wrong, self.first_kept) | (lasts >= self.frames)
        if bad.any():
            # Says what is wrong.
            self[int(bad.argmax())]

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> WindowSelection: ...

    @overload
    def __getitem__(self, index: slice) -> list[WindowSelection]: ...

    def __getitem__(self, index: int | slice) -> WindowSelection | list[WindowSelection]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        first = self.first_kept[index]
        gaps = self.gaps[first : first + self.kept[index]]
        return WindowSelection(
            start=int(self.starts[index]), num_frames=int(self.frames[index]), gaps=torch.from_numpy(gaps.copy())
        )
