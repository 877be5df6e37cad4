"""The coder gives back every whole number, learns what frames are like, and notices damage by itself."""

from __future__ import annotations

import numpy as np
import pytest

from diffusers_vidvae.codec import AxesCycle, FsvError, entropy_coder
from diffusers_vidvae.codec.entropy_coder import MAX_CODE, FrameDecoder, FrameEncoder


def encode(frames: np.ndarray, scales: np.ndarray) -> bytes:
    encoder = FrameEncoder(frames.shape[1:], scales)
    return b"".join(encoder.encode_frame(frame) for frame in frames) + encoder.finish()


def decode(data: bytes, shape: tuple[int, ...], scales: np.ndarray) -> np.ndarray:
    decoder = FrameDecoder(shape[1:], scales, data, shape[0])
    return np.stack([decoder.decode_frame() for _ in range(shape[0])])


def walk(shape: tuple[int, ...], size: float, seed: int = 0) -> np.ndarray:
    """Frames that change a little from one to the next."""
    generator = np.random.default_rng(seed)
    return np.rint(np.cumsum(generator.laplace(size=shape) * size, axis=0)).astype(np.int32)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 2, 1, 5), (2, 1, 7, 1), (4, 3, 2, 2), (5, 24, 8, 8), (3, 4, 17, 31)]
)
@pytest.mark.parametrize("size", [0, 0.05, 1, 40, 3000])
def test_every_number_comes_back(shape, size):
    frames = np.clip(walk(shape, size), -MAX_CODE, MAX_CODE)
    scales = np.full(shape[1], 256)
    data = encode(frames, scales)
    assert np.array_equal(decode(data, shape, scales), frames)


def test_the_extremes_come_back():
    frames = np.zeros((3, 2, 5, 5), np.int32)
    frames[0], frames[1], frames[2, 0] = MAX_CODE, -MAX_CODE, MAX_CODE
    for scale in (1, 1 << 24):
        scales = np.array([scale, 256])
        assert np.array_equal(decode(encode(frames, scales), frames.shape, scales), frames)


def test_a_number_that_is_too_large_is_refused():
    with pytest.raises(FsvError, match=f"exceeds {MAX_CODE}"):
        encode(np.full((1, 1, 2, 2), MAX_CODE + 1), np.array([256]))


def test_many_chunks_are_one_stream(monkeypatch):
    monkeypatch.setattr(entropy_coder, "_CHUNK_SYMBOLS", 300)
    frames = walk((7, 3, 6, 6), 2)
    scales = np.full(3, 512)
    assert np.array_equal(decode(encode(frames, scales), frames.shape, scales), frames)


@pytest.mark.parametrize("size", [0.05, 40])
def test_axes_that_take_turns_come_back(size):
    cycle, frames = AxesCycle(6, 4, 3), walk((10, 6, 7, 9), size)
    scales, shown = np.full(cycle.num_axes, 256), [0, 1, 2, 5, 6, 10, 11, 12, 13, 17]
    encoder = FrameEncoder(frames.shape[1:], scales, cycle)
    data = b"".join(encoder.encode_frame(frame, i) for i, frame in zip(shown, frames, strict=True))
    decoder = FrameDecoder(frames.shape[1:], scales, data + encoder.finish(), len(frames), cycle)
    assert np.array_equal(np.stack([decoder.decode_frame(i) for i in shown]), frames)


def test_bits_approach_the_entropy():
    """White noise of known entropy costs what it must, within the cost of learning it."""
    generator = np.random.default_rng(0)
    frames = np.rint(generator.laplace(size=(4, 8, 64, 64), scale=1.5)).cumsum(axis=0).astype(np.int32)
    changes = np.diff(frames, axis=0, prepend=0)
    _, counts = np.unique(changes, return_counts=True)
    share = counts / counts.sum()
    entropy = -(counts * np.log2(share)).sum()
    assert 8 * len(encode(frames, np.full(8, 384))) < 1.04 * entropy


def test_what_does_not_move_costs_next_to_nothing():
    frames = np.repeat(walk((1, 24, 16, 16), 3), 60, axis=0)
    one, many = (len(encode(frames[:count], np.full(24, 768))) for count in (1, 60))
    assert 8 * (many - one) < 0.02 * frames.size


def test_busy_places_are_told_from_quiet_ones():
    """A moving patch on a still ground costs little more than the patch alone."""
    frames = np.zeros((16, 8, 32, 32), np.int32)
    frames[:, :, 8:16, 8:16] = walk((16, 8, 8, 8), 2)
    patch = len(encode(np.ascontiguousarray(frames[:, :, 8:16, 8:16]), np.full(8, 512)))
    assert len(encode(frames, np.full(8, 128))) < 1.35 * patch


def test_the_coder_notices_flipped_bits_itself():
    frames = walk((6, 5, 9, 9), 1)
    scales = np.full(5, 256)
    data = encode(frames, scales)
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[generator.integers(len(data))] ^= 1 << generator.integers(8)
        with pytest.raises(FsvError):
            decode(bytes(damaged), frames.shape, scales)


def test_the_coder_notices_truncation():
    frames = walk((4, 3, 5, 5), 1)
    scales = np.full(3, 256)
    data = encode(frames, scales)
    for length in range(0, len(data), 3):
        with pytest.raises(FsvError):
            decode(data[:length], frames.shape, scales)
    with pytest.raises(FsvError, match="left over"):
        decode(data + b"\0", frames.shape, scales)


def test_numbers_do_not_depend_on_threads_or_memory_layout():
    frames = walk((5, 6, 11, 13), 2)
    scales = np.full(6, 256)
    assert encode(frames, scales) == encode(np.asfortranarray(frames).astype(np.int64), scales)
