"""Coder number 1: whole numbers `(frames, axes, height, width)` to bytes and back, without loss.

A frame is coded in five phases of a dyadic grid, so that every phase but the first has coded neighbours on all sides
and is one vector operation (the order of interlaced PNG, and of Lee and Malik's "hierarchical interpolation", 1990):

    0 4 2 4 0 4 2 4        phase 0: every fourth row and column         neighbours: none
    4 3 4 3 4 3 4 3        phase 1: the centres of these                 four, two rows and columns away
    2 4 1 4 2 4 1 4        phase 2: the rest of the even rows, columns   four, two rows or columns away
    4 3 4 3 4 3 4 3        phase 3: odd rows and odd columns             four, at the corners
    0 4 2 4 0 4 2 4        phase 4: the rest                             four, at the sides

A number is predicted by the same place of the frame before (in a first frame by its neighbours), and what is left is
coded with a histogram that is chosen by how large such rests were near it (`_Contexts`), as in CALIC (Wu and Memon,
1997). Histograms begin as two-sided geometric ones and adapt after every phase; no parameter is sent. The bits are
made by rANS (Duda, https://arxiv.org/abs/1311.2540) with 32 bit states and 16 bit words, interleaved over lanes
(Giesen, https://arxiv.org/abs/1402.3392) of which numpy serves all at once.

Whatever decoding depends on is an integer, so that a file is read alike by every machine, number of threads and numpy.
Every constant of this file belongs to coder number 1 and must never change; a better coder is a new number.
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

# Symbols are numbers from -15 to 15, both ends of which stand for all beyond.
_LARGEST = 15
_NUM_SYMBOLS = 2 * _LARGEST + 1

# A rANS state lies in [2^16, 2^32); frequencies add up to 2^16.
_BITS = 16
_TOTAL = 1 << _BITS
_LOWEST = 1 << 16

# Frames are coded in chunks, whose words a decoder needs at once.
_CHUNK_SYMBOLS = 1 << 20

_PADDING = 2


def lanes(symbols_per_frame: int) -> int:
    """Interleaved states: many where frames are large, few where four bytes for each would show."""
    return min(max(1 << max(symbols_per_frame // 96, 1).bit_length() - 1, 4), 1 << 13)


def chunk_frames(symbols_per_frame: int) -> int:
    """Frames of a chunk, the last of a group may have fewer."""
    return max(_CHUNK_SYMBOLS // symbols_per_frame, 1)


# Order


class _Phase(NamedTuple):
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
            slice(_PADDING + start + move, length - _PADDING + move, step)
            for start, move, length in zip(starts, offset, frame.shape[1:], strict=True)
        )
        return rows, columns


def _sides(distance: int) -> tuple[tuple[int, int], ...]:
    return (-distance, 0), (distance, 0), (0, -distance), (0, distance)


def _corners(distance: int) -> tuple[tuple[int, int], ...]:
    return tuple((row, column) for row in (-distance, distance) for column in (-distance, distance))


_PHASES = (
    _Phase(((0, 0, 4),), ()),
    _Phase(((2, 2, 4),), _corners(2)),
    _Phase(((0, 2, 4), (2, 0, 4)), _sides(2)),
    _Phase(((1, 1, 2),), _corners(1)),
    _Phase(((0, 1, 2), (1, 0, 2)), _sides(1)),
)


# Model


def _level_thresholds() -> np.ndarray:
    """Averages at which the level of a context rises, two in every octave."""
    top = 2 * (_MAX_MAGNITUDE.bit_length() + _POINT)
    return np.array([math.isqrt(1 << power) for power in range(2, top) if power != 3], dtype=np.int64)


_THRESHOLDS = _level_thresholds()
_NUM_LEVELS = len(_THRESHOLDS) + 1
_NUM_KINDS = 9
_LEVELS = np.searchsorted(_THRESHOLDS, np.arange((_MAX_MAGNITUDE + 1) << _POINT), side="right").astype(np.uint8)

# Numbers of a level are divided by so many powers of two that they average from one to two; the rest is stored as is.
_SHIFTS = np.array([max(int(low).bit_length() - 1 - _POINT, 0) for low in (1, *_THRESHOLDS)], dtype=np.int64)

# A histogram begins with the weight of 40 numbers, and forgets half of them at 4096.
_STEP = 256
_START_WEIGHT = 40 * _STEP
_MAX_WEIGHT = 4096 * _STEP


def _start_counts() -> np.ndarray:
    """Counts `(levels, symbols)` of a two-sided geometric distribution with the mean magnitude of each level."""
    rows = []
    for low, shift in zip((1, *_THRESHOLDS.tolist()), _SHIFTS.tolist(), strict=True):
        mean = max(low >> shift, 1)
        ratio = (mean << 16) // (mean + _ONE)
        weights = [1 << 24]
        for _ in range(_LARGEST):
            weights.append(weights[-1] * ratio >> 16)
        row = [*weights[:0:-1], *weights]
        rows.append([max(_START_WEIGHT * weight // sum(row), 1) for weight in row])
    return np.array(rows, dtype=np.int64)


_START_COUNTS = _start_counts()


class _Histograms:
    """Adaptive frequencies of symbols in every context `level * kinds + kind`."""

    def __init__(self) -> None:
        self.counts = np.repeat(_START_COUNTS, _NUM_KINDS, axis=0)

    def frequencies(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies, at least one and adding up to 2^16, and their running sums, `(contexts, symbols)` each."""
        counts = self.counts[contexts]
        frequencies = counts * (_TOTAL - _NUM_SYMBOLS) // counts.sum(axis=1, keepdims=True) + 1
        frequencies[:, _LARGEST] += _TOTAL - frequencies.sum(axis=1)
        return frequencies, np.cumsum(frequencies, axis=1) - frequencies

    def learn(self, contexts: np.ndarray, rows: np.ndarray, symbols: np.ndarray) -> None:
        """Counts symbols, where `contexts[rows]` are their contexts."""
        seen = np.bincount(rows * _NUM_SYMBOLS + symbols, minlength=len(contexts) * _NUM_SYMBOLS)
        counts = self.counts[contexts] + _STEP * seen.reshape(-1, _NUM_SYMBOLS)
        while (full := counts.sum(axis=1) > _MAX_WEIGHT).any():
            counts[full] -= counts[full] >> 1
        self.counts[contexts] = counts


class _Contexts:
    """What the frames so far say of the next numbers: a prediction, and how far off it may be.

    Args:
        shape: `(axes, height, width)` of a frame.
        scales: Expected magnitudes of every axis in a first frame, times 256.
    """

    def __init__(self, shape: tuple[int, int, int], scales: np.ndarray) -> None:
        axes, height, width = shape
        self.shape = shape
        # Two more at the far sides, where the neighbours of a coarse grid may lie beyond the padding.
        padded = (axes, height + 2 * _PADDING, width + 2 * _PADDING)
        self.codes = np.zeros(padded, dtype=np.int32)
        self.magnitudes = np.zeros(padded, dtype=np.int32)
        inside = np.zeros((1, *padded[1:]), dtype=np.int32)
        self._inside(inside)[...] = 1
        self.phases = [phase for phase in _PHASES if phase.take(inside).size]
        # Reciprocals of the number of neighbours inside.
        self.weights = [
            _ONE // np.maximum(phase.around(inside), 1) if phase.neighbours else None for phase in self.phases
        ]
        largest = _MAX_MAGNITUDE << _POINT
        first = np.clip(scales.astype(np.int64), 1, largest)
        # What is left of a number after prediction by neighbours that come nearer with every phase.
        self.usual = [np.maximum(first * share >> 3, 1) for share in (8, 6, 5, 4, 3)][: len(self.phases)]
        self.num_frames = 0

    def code_frame(self, code: Callable[[_Phase, np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Codes `(axes, height, width)` of the next frame.

        Args:
            code: Takes a phase, predictions, contexts and signs `(axes, places)`, and gives what is to be added to the
                predictions. With the sign -1, numbers are as likely as their negatives are with 1.
        """
        codes, magnitudes, changes = (np.zeros_like(self.codes) for _ in range(3))
        nearby = self._smoothed_magnitudes()
        for index, phase in enumerate(self.phases):
            before = phase.take(self.codes)
            change, average, near = self._neighbourhood(index, changes, magnitudes, phase.take(nearby))
            prediction = before if self.num_frames else change * 7 >> _POINT + 3
            contexts = self._contexts(index, change, average, near)
            residuals = code(phase, prediction, contexts, np.where(change < -_ONE // 8, -1, 1))
            new = prediction + residuals
            if np.abs(new).max() > MAX_CODE:
                raise FsvError(f"codes: a number exceeds {MAX_CODE}.")
            sizes = np.minimum(np.abs(residuals), _MAX_MAGNITUDE)
            phase.put(codes, new)
            phase.put(changes, new - before)
            phase.put(magnitudes, sizes)
            self._learn_usual(index, sizes)
        self.codes, self.magnitudes = codes, magnitudes
        self.num_frames += 1
        return self._inside(codes)

    def _inside(self, frame: np.ndarray) -> np.ndarray:
        return frame[:, _PADDING:-_PADDING, _PADDING:-_PADDING]

    def _smoothed_magnitudes(self) -> np.ndarray:
        """Averages of the last frame's magnitudes over a place, half of it, and its four sides."""
        last, smooth = self.magnitudes, np.zeros_like(self.magnitudes)
        sides = last[:, 1:-3, 2:-2] + last[:, 3:-1, 2:-2] + last[:, 2:-2, 1:-3] + last[:, 2:-2, 3:-1]
        self._inside(smooth)[...] = (4 * self._inside(last) + sides) << _POINT - 3
        return smooth

    def _neighbourhood(
        self, index: int, changes: np.ndarray, magnitudes: np.ndarray, nearby: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean change and magnitude of the neighbours in this frame, and magnitude in the last frame."""
        phase, weights = self.phases[index], self.weights[index]
        if weights is None:
            return np.zeros_like(nearby), nearby, nearby
        return phase.around(changes) * weights, phase.around(magnitudes) * weights, nearby

    def _contexts(self, index: int, change: np.ndarray, average: np.ndarray, near: np.ndarray) -> np.ndarray:
        """The context of every number: how large it may be, which way it may go, and how busy its place is."""
        usual = self.usual[index].astype(np.int32)[:, None]
        if self.num_frames:
            # How much more than usual is going on here, over all axes; 128 is as usual.
            busy = 5 * average.sum(axis=0, dtype=np.int64) + 3 * near.sum(axis=0, dtype=np.int64)
        elif self.weights[index] is not None:
            near, busy = average, 8 * average.sum(axis=0, dtype=np.int64)
        else:
            average = near = np.broadcast_to(usual, average.shape)
            busy = np.full(average.shape[1], 8 * int(usual.sum()))
        activity = np.minimum((busy << 4) // int(usual.sum(dtype=np.int64)), 1023).astype(np.int32)
        likely = (54 * average + 72 * near + 54 * usual + 76 * (usual * activity >> 7)) >> 8
        likely = np.minimum(likely, len(_LEVELS) - 1)
        drift = np.abs(change)
        direction = np.where(drift < _ONE // 5, 0, (2 * drift > likely) + (drift > likely).astype(np.int64))
        place = (activity > 64) + (activity > 192).astype(np.int64)
        return _LEVELS[likely].astype(np.int64) * _NUM_KINDS + 3 * direction + place

    def _learn_usual(self, index: int, sizes: np.ndarray) -> None:
        seen = np.maximum((sizes.sum(axis=1, dtype=np.int64) << _POINT) // sizes.shape[1], 1)
        if self.num_frames < 2:
            self.usual[index] = seen
        else:
            self.usual[index] += (seen - self.usual[index]) >> 2
            np.maximum(self.usual[index], 1, out=self.usual[index])


# Coder


class _RawBits:
    """Numbers of given sizes in bits, side by side, for what no histogram would make shorter."""

    @staticmethod
    def pack(values: list[np.ndarray], sizes: list[np.ndarray]) -> bytes:
        size = np.concatenate([*sizes, np.zeros(0, np.int64)])
        bits = np.repeat(np.concatenate([*values, np.zeros(0, np.int64)]), size) >> _places(size) & 1
        return np.packbits(bits.astype(np.uint8)).tobytes()

    def __init__(self, data: memoryview) -> None:
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8))
        self._start = 0

    def read(self, sizes: np.ndarray) -> np.ndarray:
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        bits = self._bits[self._start : self._start + total].astype(np.int64)
        if len(bits) != total:
            raise FsvError("latents: a chunk has too few raw bits.")
        self._start += total
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(bits << _places(sizes))])
        return sums[ends] - sums[ends - sizes]

    def check_end(self) -> None:
        rest = self._bits[self._start :]
        if len(rest) > 7 or rest.any():
            raise FsvError("latents: a chunk has raw bits left over.")


def _places(sizes: np.ndarray) -> np.ndarray:
    """Place of every bit of numbers of so many bits, the highest bit first."""
    return np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(int(sizes.sum()))


class FrameEncoder:
    """Codes the frames of a group, one after the other, into chunks.

    Args:
        shape: `(axes, height, width)` of a frame.
        scales: Expected magnitudes of every axis in a first frame, times 256; the same for the decoder.
    """

    def __init__(self, shape: tuple[int, int, int], scales: np.ndarray) -> None:
        self._contexts = _Contexts(shape, scales)
        self._histograms = _Histograms()
        size = math.prod(shape)
        self._lanes, self._chunk_frames = lanes(size), chunk_frames(size)
        self._new_chunk()

    def encode_frame(self, codes: np.ndarray) -> bytes:
        """Takes whole numbers `(axes, height, width)`, and gives the chunk that they complete or nothing.

        Raises:
            FsvError: A number exceeds `MAX_CODE`.
        """
        if np.abs(codes).max() > MAX_CODE:
            raise FsvError(f"codes: a number exceeds {MAX_CODE}.")
        padded = np.zeros_like(self._contexts.codes)
        padded[:, _PADDING:-_PADDING, _PADDING:-_PADDING] = codes

        def code(phase: _Phase, prediction: np.ndarray, contexts: np.ndarray, signs: np.ndarray) -> np.ndarray:
            residuals = phase.take(padded) - prediction
            self._encode_phase((residuals * signs).ravel().astype(np.int64), contexts.ravel())
            return residuals

        self._contexts.code_frame(code)
        self._num_frames += 1
        return self.finish() if self._num_frames == self._chunk_frames else b""

    def finish(self) -> bytes:
        """The chunk of the frames since the last one; nothing if there are none."""
        if not self._num_frames:
            return b""
        states, words = _rans_encode(self._phases, self._lanes)
        raw = _RawBits.pack(self._raw_values, self._raw_sizes)
        self._new_chunk()
        lengths = write_varint(len(words)) + write_varint(len(raw))
        return lengths + states.astype("<u4").tobytes() + words.astype("<u2").tobytes() + raw

    def _new_chunk(self) -> None:
        self._num_frames = 0
        self._phases: list[tuple[np.ndarray, np.ndarray]] = []
        self._raw_values: list[np.ndarray] = []
        self._raw_sizes: list[np.ndarray] = []

    def _encode_phase(self, numbers: np.ndarray, contexts: np.ndarray) -> None:
        used, rows = np.unique(contexts, return_inverse=True)
        shifts = _SHIFTS[contexts // _NUM_KINDS]
        high = numbers >> shifts
        symbols = np.clip(high, -_LARGEST, _LARGEST) + _LARGEST
        frequencies, starts = self._histograms.frequencies(used)
        at = rows * _NUM_SYMBOLS + symbols
        self._phases.append((frequencies.ravel()[at], starts.ravel()[at]))
        self._histograms.learn(used, rows, symbols)
        self._write_raw(numbers & (1 << shifts) - 1, shifts)
        excess = np.abs(high[np.abs(high) >= _LARGEST]) - _LARGEST + 1
        # Elias' gamma code, with the number of bits as a number of five.
        sizes = np.frexp(excess.astype(np.float64))[1].astype(np.int64) - 1
        self._write_raw(sizes, np.full_like(sizes, 5))
        self._write_raw(excess - (1 << sizes), sizes)

    def _write_raw(self, values: np.ndarray, sizes: np.ndarray) -> None:
        some = sizes > 0
        if some.any():
            self._raw_values.append(values[some])
            self._raw_sizes.append(sizes[some])


class FrameDecoder:
    """Reads the frames of a group back from the chunks of a `FrameEncoder`.

    Args:
        shape: `(axes, height, width)` of a frame.
        scales: As they were given to the encoder.
        data: The chunks of the group, one behind the other.
        num_frames: Frames of the group.
    """

    def __init__(self, shape: tuple[int, int, int], scales: np.ndarray, data: bytes, num_frames: int) -> None:
        self._contexts = _Contexts(shape, scales)
        self._histograms = _Histograms()
        size = math.prod(shape)
        self._num_lanes, self._chunk_frames = lanes(size), chunk_frames(size)
        self._data = memoryview(data)
        self._num_frames = num_frames
        self._frames_of_chunk = 0

    def decode_frame(self) -> np.ndarray:
        """The next frame, int32 `(axes, height, width)`.

        Raises:
            FsvError: The chunks do not hold what such frames would.
        """
        if not self._frames_of_chunk:
            self._open_chunk()
        codes = self._contexts.code_frame(self._decode_phase)
        self._num_frames -= 1
        self._frames_of_chunk -= 1
        if not self._frames_of_chunk or not self._num_frames:
            self._close_chunk()
        return codes

    def _open_chunk(self) -> None:
        num_words, self._data = read_varint(self._data)
        num_raw, self._data = read_varint(self._data)
        size = 4 * self._num_lanes + 2 * num_words + num_raw
        if size > len(self._data):
            raise FsvError(f"latents: a chunk of {size} bytes has {len(self._data)}.")
        chunk, self._data = self._data[:size], self._data[size:]
        states, words = chunk[: 4 * self._num_lanes], chunk[4 * self._num_lanes : size - num_raw]
        self._lanes = _RansDecoder(np.frombuffer(states, "<u4"), np.frombuffer(words, "<u2"))
        self._raw = _RawBits(chunk[size - num_raw :])
        self._frames_of_chunk = self._chunk_frames

    def _close_chunk(self) -> None:
        self._lanes.check_end()
        self._raw.check_end()
        if not self._num_frames and len(self._data):
            raise FsvError(f"latents: {len(self._data)} bytes are left over.")

    def _decode_phase(
        self, phase: _Phase, prediction: np.ndarray, contexts: np.ndarray, signs: np.ndarray
    ) -> np.ndarray:
        used, rows = np.unique(contexts, return_inverse=True)
        rows = rows.ravel()
        symbols = self._lanes.decode(rows, *self._histograms.frequencies(used))
        self._histograms.learn(used, rows, symbols)
        shifts = _SHIFTS[contexts.ravel() // _NUM_KINDS]
        low = self._raw.read(shifts)
        high = symbols - _LARGEST
        beyond = np.flatnonzero(np.abs(high) == _LARGEST)
        sizes = self._raw.read(np.full(len(beyond), 5))
        excess = self._raw.read(sizes) + (1 << sizes) - 1
        high[beyond] += np.sign(high[beyond]) * excess
        numbers = (high << shifts) + low
        if len(excess) and np.abs(numbers).max() > 4 * MAX_CODE:
            raise FsvError(f"latents: a residual exceeds {4 * MAX_CODE}.")
        return numbers.reshape(signs.shape).astype(np.int32) * signs


# rANS


def _rans_encode(phases: list[tuple[np.ndarray, np.ndarray]], num_lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """States, and words in the order in which they are decoded, of frequencies and starts of symbols.

    Symbol `i` of a phase is for lane `i % num_lanes`. What is coded last is decoded first, so all goes backwards.
    """
    states = np.full(num_lanes, _LOWEST, dtype=np.int64)
    words = []
    for frequencies, starts in reversed(phases):
        for first in range((len(starts) - 1) // num_lanes * num_lanes, -1, -num_lanes):
            frequency, start = frequencies[first : first + num_lanes], starts[first : first + num_lanes]
            state = states[: len(start)]
            full = state >= frequency << 32 - _BITS
            words.append(state[full] & 0xFFFF)
            state = np.where(full, state >> 16, state)
            quotient, rest = np.divmod(state, frequency)
            states[: len(start)] = (quotient << _BITS) + rest + start
    return states, np.concatenate([*reversed(words), np.zeros(0, np.int64)])


class _RansDecoder:
    def __init__(self, states: np.ndarray, words: np.ndarray) -> None:
        self._states = states.astype(np.int64)
        self._words = words.astype(np.int64)
        self._next = 0
        if (self._states < _LOWEST).any():
            raise FsvError("latents: a state of the coder is too small.")

    def decode(self, rows: np.ndarray, frequencies: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Symbols, each by its row of `(rows, symbols)` frequencies and their running sums."""
        # Rows are set side by side, so that one search finds symbols of all rows.
        offsets = rows << _BITS
        edges = (starts + (np.arange(len(starts)) << _BITS)[:, None]).ravel()
        frequencies = frequencies.ravel()
        found = np.empty(len(rows), dtype=np.int64)
        for first in range(0, len(rows), len(self._states)):
            offset = offsets[first : first + len(self._states)]
            state = self._states[: len(offset)]
            place = offset + (state & _TOTAL - 1)
            index = np.searchsorted(edges, place, side="right") - 1
            state = frequencies[index] * (state >> _BITS) + place - edges[index]
            empty = np.flatnonzero(state < _LOWEST)
            words = self._words[self._next : self._next + len(empty)]
            if len(words) != len(empty):
                raise FsvError("latents: a chunk has too few words.")
            self._next += len(empty)
            state[empty] = (state[empty] << 16) + words
            self._states[: len(offset)] = state
            found[first : first + len(self._states)] = index
        return found - rows * _NUM_SYMBOLS

    def check_end(self) -> None:
        if self._next != len(self._words) or (self._states != _LOWEST).any():
            raise FsvError("latents: the coder does not end where it began; the file is damaged.")


# Lengths


def write_varint(value: int) -> bytes:
    """A whole number in as few bytes as it needs, seven bits each, the lowest first (LEB128)."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def read_varint(data: memoryview) -> tuple[int, memoryview]:
    """A number from the start of `data`, and what follows it."""
    value = 0
    for index in range(min(len(data), 6)):
        value |= (data[index] & 0x7F) << 7 * index
        if data[index] < 0x80:
            return value, data[index + 1 :]
    raise FsvError("a length is cut off or too large.")
