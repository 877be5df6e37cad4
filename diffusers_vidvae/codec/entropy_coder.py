"""The coders of `.fsv` files: whole numbers `(frames, axes, height, width)` to bytes and back, without loss.

What is known of a number before it is coded (`frame_contexts`) gives it a prediction and one of some hundred contexts,
each of which has a histogram of what was left after prediction. Histograms begin as two-sided geometric ones and adapt
after every phase of a frame; no parameter is sent. The bits are made by rANS (Duda, https://arxiv.org/abs/1311.2540)
with 32 bit states and 16 bit words, interleaved over lanes (Giesen, https://arxiv.org/abs/1402.3392) of which numpy
serves all at once.

Coder number 1 sends all axes with every frame. Number 2 is the same for latents of which some axes take turns
(`AxesCycle`): each is coded with the last frame that showed it, and has its own statistics.

Whatever decoding depends on is an integer, so that a file is read alike by every machine, number of threads and numpy.
Every constant of this file and of `frame_contexts` belongs to these coders and must never change; a better coder is a
new number.
"""

from __future__ import annotations

import math

import numpy as np

from .axes_cycle import AxesCycle
from .errors import FsvError
from .frame_contexts import MAX_CODE, NUM_KINDS, PADDING, SHIFTS, THRESHOLDS, FrameContexts, Phase


# Symbols are numbers from -15 to 15, both ends of which stand for all beyond.
_LARGEST = 15
_NUM_SYMBOLS = 2 * _LARGEST + 1

# A rANS state lies in [2^16, 2^32); frequencies add up to 2^16.
_BITS = 16
_TOTAL = 1 << _BITS
_LOWEST = 1 << 16

# Frames are coded in chunks, whose words a decoder needs at once.
_CHUNK_SYMBOLS = 1 << 20


def lanes(symbols_per_frame: int) -> int:
    """Interleaved states: many where frames are large, few where four bytes for each would show."""
    return min(max(1 << max(symbols_per_frame // 96, 1).bit_length() - 1, 4), 1 << 13)


def chunk_frames(symbols_per_frame: int) -> int:
    """Frames of a chunk, the last of a group may have fewer."""
    return max(_CHUNK_SYMBOLS // symbols_per_frame, 1)


# Histograms


# A histogram begins with the weight of 40 numbers, and forgets half of them at 4096.
_STEP = 256
_START_WEIGHT = 40 * _STEP
_MAX_WEIGHT = 4096 * _STEP


def _start_counts() -> np.ndarray:
    """Counts `(levels, symbols)` of a two-sided geometric distribution with the mean magnitude of each level."""
    rows = []
    for low, shift in zip((1, *THRESHOLDS.tolist()), SHIFTS.tolist(), strict=True):
        mean = max(low >> shift, 1)
        ratio = (mean << 16) // (mean + 256)
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
        self.counts = np.repeat(_START_COUNTS, NUM_KINDS, axis=0)

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
        shape: `(channels, height, width)` of a frame.
        scales: Expected magnitudes of every axis in a first frame, times 256; the same for the decoder.
        cycle: Axes that the channels of a frame show; by default an axis for each.
    """

    def __init__(self, shape: tuple[int, int, int], scales: np.ndarray, cycle: AxesCycle | None = None) -> None:
        self._cycle = cycle or AxesCycle(shape[0])
        self._contexts = FrameContexts((self._cycle.num_axes, *shape[1:]), scales)
        self._histograms = _Histograms()
        size = math.prod(shape)
        self._lanes, self._chunk_frames = lanes(size), chunk_frames(size)
        self._new_chunk()

    def encode_frame(self, codes: np.ndarray, frame: int = 0) -> bytes:
        """Takes whole numbers `(channels, height, width)`, and gives the chunk that they complete or nothing.

        Args:
            codes: The numbers.
            frame: Index of the frame in its clip, which says what it shows.

        Raises:
            FsvError: A number exceeds `MAX_CODE`.
        """
        if np.abs(codes).max() > MAX_CODE:
            raise FsvError(f"codes: a number exceeds {MAX_CODE}.")
        padded = np.pad(codes.astype(np.int32), ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))

        def code(phase: Phase, prediction: np.ndarray, contexts: np.ndarray, signs: np.ndarray) -> np.ndarray:
            residuals = phase.take(padded) - prediction
            self._encode_phase((residuals * signs).ravel().astype(np.int64), contexts.ravel())
            return residuals

        self._contexts.code_frame(code, self._cycle.shown(frame))
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
        shifts = SHIFTS[contexts // NUM_KINDS]
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
        shape: `(channels, height, width)` of a frame.
        scales: As they were given to the encoder.
        data: The chunks of the group, one behind the other.
        num_frames: Frames of the group.
        cycle: As it was given to the encoder.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        scales: np.ndarray,
        data: bytes,
        num_frames: int,
        cycle: AxesCycle | None = None,
    ) -> None:
        self._cycle = cycle or AxesCycle(shape[0])
        self._contexts = FrameContexts((self._cycle.num_axes, *shape[1:]), scales)
        self._histograms = _Histograms()
        size = math.prod(shape)
        self._num_lanes, self._chunk_frames = lanes(size), chunk_frames(size)
        self._data = memoryview(data)
        self._num_frames = num_frames
        self._frames_of_chunk = 0

    def decode_frame(self, frame: int = 0) -> np.ndarray:
        """The next frame, int32 `(channels, height, width)`; `frame` is its index in the clip.

        Raises:
            FsvError: The chunks do not hold what such frames would.
        """
        if not self._frames_of_chunk:
            self._open_chunk()
        codes = self._contexts.code_frame(self._decode_phase, self._cycle.shown(frame))
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
        self, phase: Phase, prediction: np.ndarray, contexts: np.ndarray, signs: np.ndarray
    ) -> np.ndarray:
        used, rows = np.unique(contexts, return_inverse=True)
        rows = rows.ravel()
        symbols = self._lanes.decode(rows, *self._histograms.frequencies(used))
        self._histograms.learn(used, rows, symbols)
        shifts = SHIFTS[contexts.ravel() // NUM_KINDS]
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
