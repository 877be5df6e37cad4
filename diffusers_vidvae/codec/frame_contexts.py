"""What a frame's numbers are expected to be, from those before them: order, prediction and context.

A frame is coded in five phases of a dyadic grid, so that every phase but the first has coded neighbours on all sides
and is one vector operation (the order of interlaced PNG, and of Lee and Malik's "hierarchical interpolation", 1990):

    0 4 2 4 0 4 2 4        phase 0: every fourth row and column         neighbours: none
    4 3 4 3 4 3 4 3        phase 1: the centres of these                 four, two rows and columns away
    2 4 1 4 2 4 1 4        phase 2: the rest of the even rows, columns   four, two rows or columns away
    4 3 4 3 4 3 4 3        phase 3: odd rows and odd columns             four, at the corners
    0 4 2 4 0 4 2 4        phase 4: the rest                             four, at the sides

A number is predicted by the same place of the last frame that showed its axis (in the first one by its neighbours),
and what is left is expected to be as large as such rests were near it, as in CALIC (Wu and Memon, 1997).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .errors import FsvError


# Codes are 16 bit integers. Magnitudes count up to 4095, so that no product below leaves 31 bits, no sum 63.
MAX_CODE = (1 << 15) - 1
_MAX_MAGNITUDE = (1 << 12) - 1

# Fractional bits of averages of magnitudes.
_POINT = 8
_ONE = 1 << _POINT

PADDING = 2


class Phase(NamedTuple):
    """Places that are coded at once, as `(first row, first column, step)`, and where their neighbours lie."""

    grids: tuple[tuple[int, int, int], ...]
    neighbours: tuple[tuple[int, int], ...]

    def take(self, frame: np.ndarray, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
        """`(axes, places)` of a padded frame `(axes, height, width)`, all places moved by `offset`."""
        parts = [frame[(slice(None), *self._slices(frame, grid, offset))] for grid in self.grids]
        return np.concatenate([part.reshape(len(frame), -1) for part in parts], axis=1)

    def put(self, frame: np.ndarray, values: np.ndarray) -> None:
        start = 0
        for grid in self.grids:
            target = frame[(slice(None), *self._slices(frame, grid, (0, 0)))]
            count = target.shape[1] * target.shape[2]
            target[...] = values[:, start : start + count].reshape(target.shape)
            start += count

    def around(self, frame: np.ndarray) -> np.ndarray:
        """Sum of the neighbours, `(axes, places)`; those beyond the frame's sides are zeros."""
        first, *others = self.neighbours
        total = self.take(frame, first)
        for offset in others:
            total += self.take(frame, offset)
        return total

    @staticmethod
    def _slices(frame: np.ndarray, grid: tuple[int, int, int], offset: tuple[int, int]) -> tuple[slice, slice]:
        *starts, step = grid
        rows, columns = (
            slice(PADDING + start + move, length - PADDING + move, step)
            for start, move, length in zip(starts, offset, frame.shape[1:], strict=True)
        )
        return rows, columns


def _sides(distance: int) -> tuple[tuple[int, int], ...]:
    return (-distance, 0), (distance, 0), (0, -distance), (0, distance)


def _corners(distance: int) -> tuple[tuple[int, int], ...]:
    return tuple((row, column) for row in (-distance, distance) for column in (-distance, distance))


_PHASES = (
    Phase(((0, 0, 4),), ()),
    Phase(((2, 2, 4),), _corners(2)),
    Phase(((0, 2, 4), (2, 0, 4)), _sides(2)),
    Phase(((1, 1, 2),), _corners(1)),
    Phase(((0, 1, 2), (1, 0, 2)), _sides(1)),
)


def _level_thresholds() -> np.ndarray:
    """Averages at which the level of a context rises, two in every octave."""
    top = 2 * (_MAX_MAGNITUDE.bit_length() + _POINT)
    return np.array([math.isqrt(1 << power) for power in range(2, top) if power != 3], dtype=np.int64)


THRESHOLDS = _level_thresholds()
NUM_KINDS = 9
_LEVELS = np.searchsorted(THRESHOLDS, np.arange((_MAX_MAGNITUDE + 1) << _POINT), side="right").astype(np.uint8)

# Numbers of a level are divided by so many powers of two that they average from one to two; the rest is stored as is.
SHIFTS = np.array([max(int(low).bit_length() - 1 - _POINT, 0) for low in (1, *THRESHOLDS)], dtype=np.int64)


class FrameContexts:
    """What the frames so far say of the next numbers: a prediction, and how far off it may be.

    Args:
        shape: `(axes, height, width)`, of all axes.
        scales: Expected magnitudes of every axis in a first frame, times 256.
    """

    def __init__(self, shape: tuple[int, int, int], scales: np.ndarray) -> None:
        axes, height, width = shape
        # Two more at the far sides, where the neighbours of a coarse grid may lie beyond the padding.
        padded = (axes, height + 2 * PADDING, width + 2 * PADDING)
        self.codes = np.zeros(padded, dtype=np.int32)
        self.magnitudes = np.zeros(padded, dtype=np.int32)
        self.times_shown = np.zeros(axes, dtype=np.int64)
        inside = np.zeros((1, *padded[1:]), dtype=np.int32)
        _inside(inside)[...] = 1
        self.phases = [phase for phase in _PHASES if phase.take(inside).size]
        # Reciprocals of the number of neighbours inside.
        self.weights = [
            _ONE // np.maximum(phase.around(inside), 1) if phase.neighbours else None for phase in self.phases
        ]
        largest = _MAX_MAGNITUDE << _POINT
        first = np.clip(scales.astype(np.int64), 1, largest)
        # What is left of a number after prediction by neighbours that come nearer with every phase.
        self.usual = [np.maximum(first * share >> 3, 1) for share in (8, 6, 5, 4, 3)][: len(self.phases)]

    def code_frame(
        self, code: Callable[[Phase, np.ndarray, np.ndarray, np.ndarray], np.ndarray], shown: np.ndarray | slice
    ) -> np.ndarray:
        """Codes `(axes shown, height, width)` of the next frame.

        Args:
            code: Takes a phase, predictions, contexts and signs `(axes shown, places)`, and gives what is to be added
                to the predictions. With the sign -1, numbers are as likely as their negatives are with 1.
            shown: The axes of this frame.
        """
        last = self.codes[shown]
        nearby = _smoothed(self.magnitudes[shown])
        known = (self.times_shown[shown] > 0)[:, None]
        codes, magnitudes, changes = (np.zeros_like(last) for _ in range(3))
        for index, phase in enumerate(self.phases):
            before = phase.take(last)
            change, average, near = self._neighbourhood(index, changes, magnitudes, phase.take(nearby))
            prediction = np.where(known, before, change * 7 >> _POINT + 3)
            contexts = self._contexts(index, shown, known, change, average, near)
            residuals = code(phase, prediction, contexts, np.where(change < -_ONE // 8, -1, 1))
            new = prediction + residuals
            if np.abs(new).max() > MAX_CODE:
                raise FsvError(f"codes: a number exceeds {MAX_CODE}.")
            sizes = np.minimum(np.abs(residuals), _MAX_MAGNITUDE)
            phase.put(codes, new)
            phase.put(changes, new - before)
            phase.put(magnitudes, sizes)
            self._learn_usual(index, shown, sizes)
        self.codes[shown], self.magnitudes[shown] = codes, magnitudes
        self.times_shown[shown] += 1
        return _inside(codes)

    def _neighbourhood(
        self, index: int, changes: np.ndarray, magnitudes: np.ndarray, nearby: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean change and magnitude of the neighbours in this frame, and magnitude in the last frame."""
        phase, weights = self.phases[index], self.weights[index]
        if weights is None:
            return np.zeros_like(nearby), nearby, nearby
        return phase.around(changes) * weights, phase.around(magnitudes) * weights, nearby

    def _contexts(
        self,
        index: int,
        shown: np.ndarray | slice,
        known: np.ndarray,
        change: np.ndarray,
        average: np.ndarray,
        near: np.ndarray,
    ) -> np.ndarray:
        """The context of every number: how large it may be, which way it may go, and how busy its place is."""
        usual = self.usual[index][shown].astype(np.int32)[:, None]
        # An axis that is shown for the first time has no last frame.
        if self.weights[index] is None:
            average = np.where(known, average, usual)
        near = np.where(known, near, average)
        # How much more than usual is going on here, over all axes; 128 is as usual.
        busy = 5 * average.sum(axis=0, dtype=np.int64) + 3 * near.sum(axis=0, dtype=np.int64)
        activity = np.minimum((busy << 4) // int(usual.sum(dtype=np.int64)), 1023).astype(np.int32)
        likely = (54 * average + 72 * near + 54 * usual + 76 * (usual * activity >> 7)) >> 8
        likely = np.minimum(likely, len(_LEVELS) - 1)
        drift = np.abs(change)
        direction = np.where(drift < _ONE // 5, 0, (2 * drift > likely) + (drift > likely).astype(np.int64))
        place = (activity > 64) + (activity > 192).astype(np.int64)
        return _LEVELS[likely].astype(np.int64) * NUM_KINDS + 3 * direction + place

    def _learn_usual(self, index: int, shown: np.ndarray | slice, sizes: np.ndarray) -> None:
        seen = np.maximum((sizes.sum(axis=1, dtype=np.int64) << _POINT) // sizes.shape[1], 1)
        usual = self.usual[index][shown]
        slowly = np.maximum(usual + ((seen - usual) >> 2), 1)
        self.usual[index][shown] = np.where(self.times_shown[shown] < 2, seen, slowly)


def _inside(frame: np.ndarray) -> np.ndarray:
    return frame[:, PADDING:-PADDING, PADDING:-PADDING]


def _smoothed(magnitudes: np.ndarray) -> np.ndarray:
    """Averages of a frame's magnitudes over a place, half of it, and its four sides, times 256."""
    smooth = np.zeros_like(magnitudes)
    sides = (
        magnitudes[:, 1:-3, 2:-2] + magnitudes[:, 3:-1, 2:-2] + magnitudes[:, 2:-2, 1:-3] + magnitudes[:, 2:-2, 3:-1]
    )
    _inside(smooth)[...] = (4 * _inside(magnitudes) + sides) << _POINT - 3
    return smooth
