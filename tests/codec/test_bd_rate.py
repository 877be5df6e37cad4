"""The BD-rate that the benchmark prints is that of the `bjontegaard` package."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from bench_fsv import bd_rate  # noqa: E402


sys.path.pop(0)


def curve(scale: float, bend: float = 0.0) -> list[tuple[float, float]]:
    """Points `(bits, PSNR)` of a codec that needs `scale` times as many bits, more or fewer as PSNR rises."""
    psnrs = np.linspace(26, 40, 8)
    return [(float(scale * 0.01 * 2 ** ((psnr - 26) / 3 + bend * (psnr - 33))), float(psnr)) for psnr in psnrs]


@pytest.mark.parametrize("points", [curve(1), curve(0.7), curve(1.5, 0.05), curve(3, -0.1)[2:]])
def test_bd_rate_agrees_with_the_library(points):
    library = pytest.importorskip("bjontegaard")
    anchor = curve(1, 0.01)
    options = {"method": "pchip", "min_overlap": 0, "require_matching_points": False}
    expected = library.bd_rate(*zip(*anchor, strict=True), *zip(*points, strict=True), **options)
    found = bd_rate(anchor, points)
    assert found is not None and found == pytest.approx(expected, abs=0.01 * abs(expected) + 0.1)


def test_half_the_bits_are_half_the_rate():
    assert bd_rate(curve(1), curve(0.5)) == pytest.approx(-50)
    assert bd_rate(curve(1)[:2], curve(1)[6:]) is None
