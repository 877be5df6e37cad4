"""Clips that are made at test time, and what tests measure on them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray


def photo_clip(num_frames: int = 12, height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """A crop that pans over a photograph: real content, exact motion, `(T, H, W, 3)` uint8."""
    from skimage import data

    photo = data.coffee()
    return np.stack([photo[60 + t : 60 + t + height, 100 + 3 * t : 100 + 3 * t + width] for t in range(num_frames)])


def psnr(a: NDArray, b: NDArray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Makes the system refuse files beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
