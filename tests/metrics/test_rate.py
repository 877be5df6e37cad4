from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from diffusers_vidvae.metrics import bd_quality, bd_rate, bits_per_pixel, kilobits_per_second, values_per_pixel


RATES = [0.05, 0.11, 0.3, 0.7]
QUALITIES = [27.0, 30.5, 34.0, 36.2]


def test_rates_of_a_clip():
    assert bits_per_pixel(8000, 10, 20, 40) == 1
    assert values_per_pixel(500, 10, 20, 40) == 0.0625
    assert kilobits_per_second(60000, 60, Fraction(30000, 1001)) == pytest.approx(30000 / 1001)


def test_a_codec_equals_itself():
    assert bd_rate(RATES, QUALITIES, RATES, QUALITIES) == pytest.approx(0)
    assert bd_quality(RATES, QUALITIES, RATES, QUALITIES) == pytest.approx(0)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.3])
def test_a_codec_of_a_constant_saving(factor):
    scaled = [factor * rate for rate in RATES]
    assert bd_rate(RATES, QUALITIES, scaled, QUALITIES) == pytest.approx(100 * (factor - 1))


def test_a_codec_of_a_constant_gain():
    better = [quality + 1.5 for quality in QUALITIES]
    assert bd_quality(RATES, QUALITIES, RATES, better) == pytest.approx(1.5)


steps = st.lists(st.floats(0.01, 3), min_size=2, max_size=6)


@given(steps, steps, st.floats(-0.5, 0.5))
def test_integrals_agree_with_scipys_monotone_cubics(rate_steps, quality_steps, shift):
    count = min(len(rate_steps), len(quality_steps))
    log_rates, qualities = np.cumsum(rate_steps[:count]), 30 + np.cumsum(quality_steps[:count])
    other_rates, other_qualities = log_rates * 1.2, qualities + shift * quality_steps[1]
    low, high = max(qualities[0], other_qualities[0]), min(qualities[-1], other_qualities[-1])
    curves = [PchipInterpolator(qualities, log_rates), PchipInterpolator(other_qualities, other_rates)]
    expected = (curves[1].integrate(low, high) - curves[0].integrate(low, high)) / (high - low)
    result = bd_rate(list(np.exp(log_rates)), list(qualities), list(np.exp(other_rates)), list(other_qualities))
    assert np.log1p(result / 100) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("rates", "qualities", "message"),
    [
        ([1.0], [30.0], "1 rates and 1 qualities, expected as many, at least 2"),
        ([1.0, 2.0], [30.0], "2 rates and 1 qualities"),
        ([0.0, 2.0], [30.0, 31.0], "Rates must be positive, got 0.0"),
        ([1.0, 2.0], [31.0, 30.0], "Quality must grow with the rate, got 31.0 at 1.0 and 30.0 at 2.0"),
        ([1.0, 2.0], [50.0, 60.0], "no qualities in common"),
    ],
)
def test_curves_that_cannot_be_compared_are_refused(rates, qualities, message):
    with pytest.raises(ValueError, match=message):
        bd_rate(RATES, QUALITIES, rates, qualities)
