r"""Means over clips with their intervals, differences between methods, and savings in bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusers_vidvae.metrics import bd_rate


NUM_RESAMPLES = 2000
COVERAGE = 0.95


class Estimate(NamedTuple):
    """A mean over clips, or trainings, with its interval of 95 %, and their number; of a single one there is none."""

    mean: float
    low: float | None
    high: float | None
    num_clips: int


def estimate_mean(values: Sequence[float], seed: int = 0) -> Estimate:
    r"""Mean over clips and its percentile bootstrap interval (Efron and Tibshirani, 1993, chapter 13).

    Raises:
        ValueError: There is no value.
    """
    known = np.asarray(values, dtype=np.float64)
    if not len(known):
        raise ValueError("A mean needs at least one clip.")
    if len(known) == 1:
        return Estimate(float(known[0]), None, None, 1)
    draws = np.random.default_rng(seed).integers(0, len(known), (NUM_RESAMPLES, len(known)))
    low, high = np.quantile(known[draws].mean(axis=1), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(float(known.mean()), float(low), float(high), len(known))


def estimate_difference(values: dict[str, float], others: dict[str, float]) -> Estimate | None:
    """Mean of `values - others` over the clips that have both, clip by clip; None without such a clip."""
    common = sorted(values.keys() & others.keys())
    return estimate_mean([values[clip] - others[clip] for clip in common]) if common else None


# Student's t of 95 % on both sides, for 1, 2, ... degrees of freedom; more have at most the last.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def estimate_over_seeds(values: Sequence[float]) -> Estimate:
    r"""Mean over trainings and the interval of 95 % by Student's t, which few trainings need; of one there is none.

    Raises:
        ValueError: There is no value.
    """
    known = np.asarray(values, dtype=np.float64)
    if len(known) < 2:
        return estimate_mean(values)
    quantile = T_QUANTILES[min(len(known) - 1, len(T_QUANTILES)) - 1]
    half = quantile * float(known.std(ddof=1)) / len(known) ** 0.5
    mean = float(known.mean())
    return Estimate(mean, mean - half, mean + half, len(known))


Points = Sequence[tuple[float, float]]


def saved_bits(anchor: Points, other: Points) -> float | None:
    """BD-rate in percent of a curve of (rate, quality) points against another; None where they cannot be compared.

    Points that cost more than another one and are no better say nothing about what a codec can do, and are left out.
    """
    curves = [_best_points(points) for points in (anchor, other)]
    if min(len(curve) for curve in curves) < 2:
        return None
    (rates, qualities), (other_rates, other_qualities) = (zip(*curve, strict=True) for curve in curves)
    if max(qualities[0], other_qualities[0]) >= min(qualities[-1], other_qualities[-1]):
        return None
    return bd_rate(rates, qualities, other_rates, other_qualities)


def _best_points(points: Points) -> list[tuple[float, float]]:
    best: list[tuple[float, float]] = []
    for rate, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or (quality > best[-1][1] and rate > best[-1][0]):
            best.append((rate, quality))
    return best
