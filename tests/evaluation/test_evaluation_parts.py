"""What a report is made of: selection, codecs, means over clips, charts."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from diffusers_vidvae.evaluation import EvaluationSettings, codecs
from diffusers_vidvae.evaluation.charts import Series, draw_svg
from diffusers_vidvae.evaluation.codecs import CODECS, ClipCodec
from diffusers_vidvae.evaluation.selection import describe_folder, describe_probabilities, fill_frames, random_mask
from diffusers_vidvae.evaluation.statistics import estimate_difference, estimate_mean, saved_bits
from diffusers_vidvae.metrics import bd_rate


def noisy_clip(num_frames: int = 12, height: int = 64, width: int = 66) -> np.ndarray:
    blocks = np.random.default_rng(0).integers(60, 200, (num_frames, height // 4 + 1, width // 4 + 1, 1), np.uint8)
    return blocks.repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)[:, :height, :width]


# Selection


def test_kept_frames_are_repeated_or_blended():
    frames = np.arange(0, 80, 10, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    keep_mask = np.array([0, 1, 0, 0, 0, 1, 0, 0], dtype=bool)
    assert fill_frames(frames, keep_mask, "repeat")[:, 0, 0, 0].tolist() == [10, 10, 10, 10, 10, 50, 50, 50]
    assert fill_frames(frames, keep_mask, "blend")[:, 0, 0, 0].tolist() == [10, 10, 20, 30, 40, 50, 50, 50]


def test_random_masks_keep_as_many_frames_any_of_them():
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, False, False, False]])
    drawn = torch.cat([random_mask(mask, generator) for _ in range(500)])
    assert (drawn.sum(dim=1) == 2).all()
    assert (drawn.float().mean(dim=0) - 0.4).abs().max() < 0.1


def test_figures_of_keep_probabilities_are_those_of_all_masks():
    probs = np.array([0.1, 0.9, 0.5, 0.0, 1.0])
    masks = np.array(list(product([0, 1], repeat=5)))
    chances = np.where(masks, probs, 1 - probs).prod(axis=1)
    known = describe_probabilities(probs, num_draws=20_000, seed=0)
    possible = chances[chances > 0]
    assert known["mask_entropy"] == pytest.approx(-(possible * np.log2(possible)).sum())
    assert 10 ** known["log10_identical"] == pytest.approx((chances**2).sum())
    assert known["keep_rate_mean"] == pytest.approx(probs.mean(), abs=0.01)
    assert known["keep_rate_std"] == pytest.approx(np.sqrt((probs * (1 - probs)).sum()) / 5, abs=0.01)
    assert known["agreement_min"] == 0.5 and sum(known["histogram"]) == 5


def test_figures_of_a_folder_are_those_of_all_its_masks():
    """As `mask_identity_prob.py` and `evaluate.py` of the original project pool them."""
    generator = np.random.default_rng(0)
    clips = [generator.random(length) for length in (32, 32, 7)]
    known = describe_folder(clips, [describe_probabilities(probs, num_draws=4000, seed=0) for probs in clips])
    frames = np.concatenate(clips)
    same = np.array([(probs**2 + (1 - probs) ** 2).prod() for probs in clips])
    rates = np.concatenate([(generator.random((4000, len(probs))) < probs).mean(axis=1) for probs in clips])
    assert (known["num_clips"], known["num_frames"]) == (3, 71)
    assert known["keep_rate_mean"] == pytest.approx(rates.mean(), abs=0.01)
    assert known["keep_rate_std"] == pytest.approx(rates.std(), abs=0.01)
    assert known["compression"] == pytest.approx(1 / known["keep_rate_mean"])
    assert known["agreement_median"] == pytest.approx(np.median(frames**2 + (1 - frames) ** 2))
    for name in ("mean", "median", "std", "min", "max"):
        assert known[f"identical_{name}"] == pytest.approx(getattr(np, name)(same))
        assert known[name] == pytest.approx(getattr(np, name)(frames))
    assert known["entropy"] == pytest.approx(-(frames * np.log2(frames) + (1 - frames) * np.log2(1 - frames)).mean())
    assert sum(known["histogram"]) == 71


# Codecs


@pytest.mark.parametrize("name", CODECS)
def test_codecs_take_at_most_the_bytes_and_give_every_frame(name):
    clip = noisy_clip(height=65, width=67)
    codec = ClipCodec(name, clip, Fraction(24))
    best = codec.encode(codec.codec.qualities[0]).num_bytes
    large, small = codec.at_most(best), codec.at_most(best // 2)
    assert 0.6 * best // 2 < small.num_bytes <= best // 2 < large.num_bytes <= best
    assert large.frames.shape == clip.shape
    errors = [np.square(one.frames.astype(float) - clip).mean() for one in (large, small)]
    assert errors[0] < errors[1] < 2000


def test_missing_encoders_and_small_frames_are_named(monkeypatch):
    with pytest.raises(ValueError, match="libsvtav1 takes frames of 64 pixels a side at least, got 30x40"):
        ClipCodec("svtav1", np.zeros((2, 40, 30, 3), dtype=np.uint8), Fraction(24))
    missing = codecs.Codec("libnothing", "nothing", (0, 51), ())
    monkeypatch.setitem(codecs.CODECS, "x264", missing)
    with pytest.raises(ValueError, match="This PyAV has no encoder libnothing"):
        ClipCodec("x264", noisy_clip(), Fraction(24))


# Over clips


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        estimate = estimate_mean(rng.normal(5, 2, size=30))
        held += estimate.low <= 5 <= estimate.high
    assert 0.88 <= held / 300 <= 0.99
    assert estimate_mean([3.0]) == (3.0, None, None, 1)


def test_paired_differences_see_what_spread_over_clips_hides():
    rng = np.random.default_rng(0)
    levels = {str(index): rng.normal(30, 8) for index in range(20)}
    better = {clip: level + 0.5 + rng.normal(0, 0.1) for clip, level in levels.items()}
    estimate = estimate_difference({**better, "only here": 0.0}, levels)
    assert estimate.num_clips == 20 and 0.4 < estimate.low < estimate.mean < estimate.high < 0.6
    assert estimate_difference({"a": 1.0}, {"b": 1.0}) is None


def test_saved_bits_are_the_bd_rate_of_the_points_worth_having():
    anchor = [(1.0, 30.0), (2.0, 33.0), (4.0, 36.0)]
    other = [(0.5, 30.0), (1.0, 33.0), (2.0, 36.0)]
    wasteful = [*other, (1.5, 32.0), (3.0, 36.0)]
    assert saved_bits(anchor, wasteful) == pytest.approx(
        bd_rate(*zip(*anchor, strict=True), *zip(*other, strict=True))
    )
    assert saved_bits(anchor, other) == pytest.approx(-50)
    assert saved_bits(anchor, [(1.0, 50.0), (2.0, 60.0)]) is None and saved_bits(anchor, other[:1]) is None


def test_charts_place_points_in_order_and_escape_names():
    svg = draw_svg([Series("<a> & b", [(0.1, 20.0), (1.0, 30.0)])], "PSNR, dB")
    assert svg.count("<circle") == 2 and "&lt;a&gt; &amp; b" in svg and "<a>" not in svg
    first, last = (point.split(",") for point in svg.split('points="')[1].split('"')[0].split())
    assert float(first[0]) < float(last[0]) and float(first[1]) > float(last[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ("best",)}, r"`modes` must be among .* got \['best'\]"),
        ({"modes": ("bernoulli",)}, "must begin with one that keeps a given share"),
        ({"rates": (0.5, 2.0)}, r"`rates` must be in \(0, 1\]"),
        ({"codecs": ("mpeg2",)}, "`codecs` must be among"),
        ({"qualities": (20, 120)}, r"`qualities` must be in \[0, 100\], got \(20, 120\)"),
        ({"side": 8}, "at least 16 pixels, got 8"),
        ({"max_frames": 0}, "`max_frames` must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**options)
