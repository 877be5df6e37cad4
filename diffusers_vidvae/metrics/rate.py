"""Bits: what a compressed clip costs, and how two codecs compare at equal quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise


def bits_per_pixel(num_bits: int, num_frames: int, height: int, width: int) -> float:
    """Bits per pixel (not per colour sample) of a clip; `num_bits` is best the size of the whole file."""
    return num_bits / (num_frames * height * width)


def values_per_pixel(num_values: int, num_frames: int, height: int, width: int) -> float:
    """Latent values per pixel (not per colour sample) of a clip."""
    return num_values / (num_frames * height * width)


def kilobits_per_second(num_bits: int, num_frames: int, fps: Fraction | float) -> float:
    """Thousands of bits per second of a clip."""
    return float(num_bits * fps / num_frames / 1000)


def bd_rate(
    rates: Sequence[float], qualities: Sequence[float], other_rates: Sequence[float], other_qualities: Sequence[float]
) -> float:
    """Bjontegaard delta rate: how many percent more bits the other codec needs for equal quality, on average.

    The logarithm of the rate is interpolated over the quality by monotone cubics, rather than by one polynomial, and
    averaged over the qualities that both codecs reach.

    Args:
        rates: Positive rates of the anchor, in any unit, at least two points.
        qualities: Its qualities, growing with the rate.
        other_rates: Rates of the other codec, in the same unit.
        other_qualities: Its qualities.

    Raises:
        ValueError: Too few points, a rate that is not positive, a quality that does not grow with the rate, or ranges
            that do not overlap.
    """
    curves = [_curve(rates, qualities), _curve(other_rates, other_qualities)]
    anchor, other = ([(quality, math.log(rate)) for rate, quality in curve] for curve in curves)
    return 100 * math.expm1(_mean_difference(anchor, other, "qualities"))


def bd_quality(
    rates: Sequence[float], qualities: Sequence[float], other_rates: Sequence[float], other_qualities: Sequence[float]
) -> float:
    """Bjontegaard delta quality (BD-PSNR for dB): by how much the other codec is better at equal rate, on average.

    Arguments and errors are those of `bd_rate`.
    """
    curves = [_curve(rates, qualities), _curve(other_rates, other_qualities)]
    anchor, other = ([(math.log(rate), quality) for rate, quality in curve] for curve in curves)
    return _mean_difference(anchor, other, "rates")


_Curve = list[tuple[float, float]]


def _curve(rates: Sequence[float], qualities: Sequence[float]) -> _Curve:
    if len(rates) != len(qualities) or len(rates) < 2:
        raise ValueError(f"{len(rates)} rates and {len(qualities)} qualities, expected as many, at least 2.")
    points = sorted(zip(rates, qualities, strict=True))
    if not points[0][0] > 0:
        raise ValueError(f"Rates must be positive, got {points[0][0]}.")
    for (rate, quality), (next_rate, next_quality) in pairwise(points):
        if not (rate < next_rate and quality < next_quality):
            raise ValueError(
                f"Quality must grow with the rate, got {quality} at {rate} and {next_quality} at {next_rate}."
            )
    return points


def _mean_difference(anchor: _Curve, other: _Curve, what: str) -> float:
    low, high = max(anchor[0][0], other[0][0]), min(anchor[-1][0], other[-1][0])
    if not low < high:
        raise ValueError(f"The two codecs have no {what} in common.")
    return (_integral(other, low, high) - _integral(anchor, low, high)) / (high - low)


def _integral(points: _Curve, low: float, high: float) -> float:
    """Integral from `low` to `high` of the monotone cubic through the points."""
    slopes = _monotone_slopes(points)
    total = 0.0
    for ((x0, y0), (x1, y1)), (s0, s1) in zip(pairwise(points), pairwise(slopes), strict=True):
        start, stop, width = max(x0, low), min(x1, high), x1 - x0
        if start >= stop:
            continue
        # y0 + s0 u + a u^2 + b u^3 with u = x - x0 meets y1 and s1 at the interval's end.
        secant = (y1 - y0) / width
        a, b = (3 * secant - 2 * s0 - s1) / width, (s0 + s1 - 2 * secant) / width**2
        for u, sign in ((stop - x0, 1), (start - x0, -1)):
            total += sign * u * (y0 + u * (s0 / 2 + u * (a / 3 + u * b / 4)))
    return total


def _monotone_slopes(points: _Curve) -> list[float]:
    """Slopes at the points that keep the cubic monotone between them (Fritsch and Butland, 1984)."""
    widths = [x1 - x0 for (x0, _), (x1, _) in pairwise(points)]
    secants = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairwise(points)]
    if len(secants) == 1:
        return secants * 2
    inner = []
    for (w0, w1), (d0, d1) in zip(pairwise(widths), pairwise(secants), strict=True):
        weights = 2 * w1 + w0, w1 + 2 * w0
        inner.append(sum(weights) / (weights[0] / d0 + weights[1] / d1))
    first = _end_slope(widths[0], widths[1], secants[0], secants[1])
    last = _end_slope(widths[-1], widths[-2], secants[-1], secants[-2])
    return [first, *inner, last]


def _end_slope(width: float, next_width: float, secant: float, next_secant: float) -> float:
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    # All secants are positive, since the curve grows.
    return max(slope, 0.0)
