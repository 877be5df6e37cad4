"""Bits: what a compressed clip costs, and how two codecs compare at equal quality."""

from __future__ import annotations

from fractions import Fraction


def bits_per_pixel(num_bits: int, num_frames: int, height: int, width: int) -> float:
    """Bits per pixel (not per colour sample) of a clip; `num_bits` is best the size of the whole file."""
    return num_bits / (num_frames * height * width)


def values_per_pixel(num_values: int, num_frames: int, height: int, width: int) -> float:
    """Latent values per pixel (not per colour sample) of a clip."""
    return num_values / (num_frames * height * width)


def kilobits_per_second(num_bits: int, num_frames: int, fps: Fraction | float) -> float:
    """Thousands of bits per second of a clip."""
    return float(num_bits * fps / num_frames / 1000)
