"""Whatever is done to a version 2 file, reading ends in the clip or in an `FsvError`, in bounded memory and time."""

from __future__ import annotations

import hashlib
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_coded_file import make_basis, make_cycle_basis, make_windows, write

from diffusers_vidvae.codec import CodedFsvReader, CompressedVideo, FsvError
from diffusers_vidvae.codec.coded_container import CHECKSUM_BYTES, MAGIC, TRAILER_BYTES


def read_all(data: bytes) -> None:
    reader = CodedFsvReader(data)
    reader.basis = make_basis() if reader.header.coder == 1 else make_cycle_basis()
    for window in reader:
        assert window.latents.shape[1] == window.num_kept


def sealed(data: bytes) -> bytes:
    """The file with a right checksum: what a checksum cannot catch."""
    return data[:-CHECKSUM_BYTES] + hashlib.sha256(data[:-CHECKSUM_BYTES]).digest()


@pytest.fixture(params=[make_basis, make_cycle_basis], ids=["coder 1", "coder 2"])
def data(request, tmp_path) -> bytes:
    write(tmp_path / "clip.fsv", make_windows(6), request.param())
    return (tmp_path / "clip.fsv").read_bytes()


def test_sealing_nothing_leaves_a_good_file(data):
    assert sealed(data) == data
    read_all(data)


def test_every_flipped_byte_is_refused(data, tmp_path):
    path = tmp_path / "damaged.fsv"
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(FsvError, match="damaged.fsv: "):
            CompressedVideo.load(path)


def test_every_truncation_is_refused(data):
    for length in range(0, len(data), 11):
        with pytest.raises(FsvError):
            read_all(data[:length])
    with pytest.raises(FsvError):
        read_all(data + b"\0")


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to four changes, more often where structure is than among the latents."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        kind = draw.randrange(5)
        edge = draw.choice([draw.randrange(len(changed)), draw.randrange(130), len(changed) - 1 - draw.randrange(120)])
        place = min(max(edge, 0), len(changed) - 1)
        if kind == 0:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[place] = draw.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            changed[place : place + 4] = draw.randbytes(4)
        elif kind == 3:
            del changed[place : place + draw.randint(1, 9)]
        else:
            changed[place:place] = draw.randbytes(draw.randint(1, 9))
    return bytes(changed)


def fuzz(data: bytes, count: int, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(count):
        damaged = mutate(data, draw)
        for candidate in (damaged, sealed(damaged)) if len(damaged) > TRAILER_BYTES else (damaged,):
            start = time.perf_counter()
            try:
                read_all(candidate)
            except FsvError:
                pass
            assert time.perf_counter() - start < 60


def test_mutated_files_end_in_an_error_or_the_clip(data):
    tracemalloc.start()
    try:
        fuzz(data, 30, seed=1)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_thousands_of_mutated_files_end_in_an_error_or_the_clip(data, seed):
    fuzz(data, 2_500, seed=100 + seed)  # every change is tried twice, with the checksum as it was and with a new one


def test_a_file_of_noise_is_refused():
    draw = random.Random(0)
    for length in (0, 3, 8, 12, 100, 1000):
        for start in (b"", MAGIC, MAGIC + b"\x02\x01", MAGIC + b"\x02\x02"):
            with pytest.raises(FsvError):
                CodedFsvReader(start + draw.randbytes(length))


def test_many_tiny_windows_do_not_fill_the_memory(tmp_path):
    windows = make_windows(400, length=1)
    path: Path = tmp_path / "clip.fsv"
    write(path, windows, make_basis())
    tracemalloc.start()
    try:
        reader = CodedFsvReader(path)
        assert len(reader.selections) == 400
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert np.array_equal(reader.selections.starts, np.arange(400))
