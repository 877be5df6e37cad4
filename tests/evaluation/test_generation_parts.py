"""What the generation half is made of: spectra, dimension, equivariance, distances, windows, and the probe."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import scipy.stats
import torch
from tiny_autoencoders import frame_select_any_size

from diffusers_vidvae.evaluation import GenerationSettings
from diffusers_vidvae.evaluation.clips import EvaluationClip
from diffusers_vidvae.evaluation.generation.equivariance import TRANSFORMS, equivariance_gaps
from diffusers_vidvae.evaluation.generation.frechet import (
    FeatureMoments,
    FileFeatures,
    RandomFeatures,
    feature_moments,
    frechet_distance,
)
from diffusers_vidvae.evaluation.generation.latents import LatentSpace
from diffusers_vidvae.evaluation.generation.probe import (
    Probe,
    energy_of,
    held_out_errors,
    relative_errors,
    sample_latents,
    token_patch,
    train_probe,
)
from diffusers_vidvae.evaluation.generation.spectrum import (
    cosine_energies,
    cosine_transform,
    energies_by_frequency,
    high_share,
)
from diffusers_vidvae.evaluation.generation.untrained import effective_dimension
from diffusers_vidvae.evaluation.generation.windows import cut_windows, procedural_windows
from diffusers_vidvae.evaluation.statistics import estimate_over_seeds


# Latents by themselves


def test_the_spectrum_is_that_of_a_cosine_transform():
    values = np.random.default_rng(0).standard_normal((8, 8))
    transform = cosine_transform(8).numpy()
    assert transform @ values @ transform.T == pytest.approx(scipy.fft.dctn(values, norm="ortho"))


def test_noise_has_as_much_energy_at_all_frequencies_and_a_ramp_little_at_high_ones():
    noise = cosine_energies(torch.randn(16, 4, 4, 16, 16), side=8)
    assert high_share(noise) == pytest.approx(0.75, abs=0.01)
    assert energies_by_frequency(noise) == pytest.approx([1] * 8, abs=0.15)
    ramp = torch.linspace(-1, 1, 16).expand(2, 3, 4, 16, 16)
    assert high_share(cosine_energies(100 + 5 * ramp, side=8)) < 0.001


def test_dimension_counts_the_directions_that_channels_fill():
    latents = torch.randn(64, 8, 2, 4, 4)
    full = effective_dimension(latents)
    assert full["entropy"] == pytest.approx(8, abs=0.1) and full["participation"] == pytest.approx(8, abs=0.1)
    mixed = torch.einsum("oc,nctyx->notyx", torch.linalg.qr(torch.randn(8, 3))[0], latents[:, :3])
    few = effective_dimension(mixed)
    assert few["entropy"] == pytest.approx(3, abs=0.1) and few["participation"] == pytest.approx(3, abs=0.1)
    assert few["channels"] == 8


class Averages:
    """An equivariant code: means of 2x2 pixels, shown again as squares."""

    def takes(self, *size: int) -> bool:
        return True

    def encode(self, sample: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool3d(sample, (1, 2, 2))

    def decode(self, latents: torch.Tensor, size: torch.Size) -> torch.Tensor:
        return latents.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)


class Flipped(Averages):
    """The same with rows of latents from the bottom to the top."""

    def encode(self, sample: torch.Tensor) -> torch.Tensor:
        return super().encode(sample).flip(3)

    def decode(self, latents: torch.Tensor, size: torch.Size) -> torch.Tensor:
        return super().decode(latents.flip(3), size)


def test_equivariance_is_what_transformed_latents_lose():
    sample = torch.rand(2, 3, 2, 16, 16) * 2 - 1
    (even, turned) = (
        equivariance_gaps(space, space.encode(sample), sample)["turn"] for space in (Averages(), Flipped())
    )
    assert even == pytest.approx([0, 0], abs=1e-4) and min(turned) > 2


def test_every_transform_of_a_real_model_is_measured():
    space = LatentSpace(frame_select_any_size().eval())
    sample = torch.rand(2, 3, 4, 16, 16) * 2 - 1
    gaps = equivariance_gaps(space, space.encode(sample), sample)
    assert gaps.keys() == TRANSFORMS.keys() and all(len(values) == 2 for values in gaps.values())


# Distances


def test_the_distance_of_gaussians_is_frechets():
    rng = np.random.default_rng(0)
    samples = [torch.tensor(rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5))) for _ in range(2)]
    one, other = (FeatureMoments(sample.mean(dim=0), sample.T.cov()) for sample in samples)
    mixed = scipy.linalg.sqrtm((one.covariance @ other.covariance).numpy()).real
    expected = (one.mean - other.mean).square().sum() + (one.covariance + other.covariance).trace() - 2 * mixed.trace()
    assert frechet_distance(one, other) == pytest.approx(float(expected))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_random_features_are_the_same_everywhere_and_see_blur():
    sample = torch.rand(32, 3, 4, 16, 16) * 2 - 1
    blurred = torch.nn.functional.avg_pool3d(sample, 3, stride=1, padding=1)
    one, again, other = (
        feature_moments(features, [clips])
        for features, clips in ((RandomFeatures(), sample), (RandomFeatures(), sample), (RandomFeatures(), blurred))
    )
    assert torch.equal(one.mean, again.mean) and one.mean.shape == (72,)
    flipped = feature_moments(RandomFeatures(), [sample.flip(4)])
    assert frechet_distance(one, other) > 5 * frechet_distance(one, flipped)


class MeanColour(torch.nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample.mean(dim=[2, 3, 4])


def test_features_may_come_from_a_file(tmp_path):
    torch.jit.script(MeanColour()).save(str(tmp_path / "colour.pt"))
    features = FileFeatures(tmp_path / "colour.pt")
    assert features(torch.full((4, 3, 2, 8, 8), 0.5)).tolist() == [[0.5] * 3] * 4
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match=r"text.pt: is no TorchScript network\."):
        FileFeatures(tmp_path / "text.pt")
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "same.pt"))
    with pytest.raises(ValueError, match=r"same.pt: must give features \(batch, features\), gave \(4, 3, 2, 8, 8\)"):
        FileFeatures(tmp_path / "same.pt")(torch.zeros(4, 3, 2, 8, 8))


# Windows


def clip(name: str, num_frames: int, side: int = 24) -> EvaluationClip:
    frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] + np.zeros((side, side, 3), dtype=np.uint8)
    return EvaluationClip(name, frames, Fraction(12))


SMALL = GenerationSettings(num_frames=4, side=16, train_windows=20, held_out_windows=8, steps=2, batch_size=4)


def test_of_many_clips_every_fifth_is_held_out():
    clips = [clip(f"{index}", 6) for index in range(6)]
    split = cut_windows(clips, len(clips), SMALL, 16)
    assert len(split.train) == 20 and len(split.held_out) == 8 and split.train.frames.shape[1:] == (4, 16, 16, 3)
    assert set(split.held_out.clips) == {"4"} and set(split.train.clips) == {"0", "1", "2", "3", "5"}
    assert split.parted == "1 of 6 clips" and split.notes == []


def test_of_few_clips_the_last_part_is_held_out_and_no_frame_is_in_both():
    split = cut_windows([clip("a", 12), clip("b", 8)], 2, SMALL, 16)
    for name in ("a", "b"):
        seen, held_out = (
            {int(frames[0, 0, 0]) for window, of in zip(*part, strict=True) if of == name for frames in window}
            for part in ((split.train.frames, split.train.clips), (split.held_out.frames, split.held_out.clips))
        )
        assert seen and held_out and max(seen) < min(held_out)
    with pytest.raises(ValueError, match="c: has 7 frames; the generation half needs 5 clips, or 8 frames of each"):
        cut_windows([clip("c", 7)], 1, SMALL, 16)


def test_small_clips_are_padded_and_named():
    clips = [clip(f"{index}", 6, side=12 if index == 2 else 24) for index in range(5)]
    (note,) = cut_windows(clips, 5, SMALL, 16).notes
    assert note == "2: smaller than 4 frames of 16x16, and padded for the generation half."


def test_procedural_windows_depend_on_the_seed_alone():
    one, again = (procedural_windows(SMALL, 16) for _ in range(2))
    assert np.array_equal(one.train.frames, again.train.frames) and len(one.held_out) == 8
    assert not set(one.train.clips) & set(one.held_out.clips)


# The probe


def test_tokens_stand_for_as_many_pixels_in_all_models():
    size = (16, 64, 64)
    assert token_patch((4, 8, 8), size) == (1, 1, 1)
    assert token_patch((16, 8, 8), size) == (4, 1, 1)
    assert token_patch((16, 16, 16), size) == (4, 2, 2)
    assert token_patch((5, 2, 2), size) == (1, 1, 1)


@torch.no_grad()
def test_an_untrained_probe_is_the_best_guess_at_white_noise():
    probe = Probe((3, 2, 4, 4), (1, 2, 2)).eval()
    data, noise = torch.randn(2, 512, 3, 2, 4, 4)
    for level in (0.0, 0.3, 0.8, 1.0):
        sigma = torch.full((512,), level)
        errors = relative_errors(probe, data, noise, sigma)
        assert float(errors.mean()) == pytest.approx(1, abs=0.03)
        noisy = (1 - level) * data + level * noise
        best = torch.linalg.lstsq(noisy.flatten()[:, None], (noise - data).flatten()[:, None]).solution
        velocity = probe.velocity(noisy, sigma)
        assert float((velocity / noisy).mean()) == pytest.approx(float(best), abs=0.05)
        assert float(energy_of(sigma)[0]) == pytest.approx(float(noisy.square().mean()), rel=0.05)


def test_patches_come_back_where_they_were():
    probe = Probe((3, 4, 4, 6), (2, 2, 3))
    latents = torch.randn(2, 3, 4, 4, 6)
    assert torch.equal(probe._to_latents(probe._to_tokens(latents)), latents)
    first = probe._to_tokens(latents)[:, 0]
    assert torch.equal(first, latents[:, :, :2, :2, :3].flatten(1))


def smooth_latents(count: int) -> torch.Tensor:
    return torch.randn(count, 2, 1, 1, 1).expand(-1, -1, 2, 4, 4).contiguous()


def test_what_is_smooth_is_learned_sooner_than_noise_and_seeds_repeat():
    settings = GenerationSettings(steps=60, batch_size=16)
    smooth, white = smooth_latents(200), torch.randn(200, 2, 2, 4, 4)
    errors = {}
    for name, data in (("smooth", smooth), ("white", white)):
        probe = train_probe(data[:160], (1, 1, 1), settings, seed=0)
        errors[name] = held_out_errors(probe, data[160:], 16)
    assert list(errors["smooth"]) == ["0.1", "0.3", "0.5", "0.7", "0.9"]
    assert errors["smooth"]["0.3"] < 0.7 and errors["white"]["0.3"] > 0.95
    again = held_out_errors(train_probe(smooth[:160], (1, 1, 1), settings, seed=0), smooth[160:], 16)
    assert again == errors["smooth"]
    samples = sample_latents(train_probe(smooth[:160], (1, 1, 1), settings, 0), smooth[160:], 8, 16, seed=0)
    assert samples.std(dim=(2, 3, 4)).mean() < 0.8 * samples.std()


def test_intervals_over_seeds_are_students():
    values = [1.0, 1.2, 0.9]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
    assert estimate_over_seeds(values) == pytest.approx((np.mean(values), low, high, 3), abs=1e-3)
    assert estimate_over_seeds([1.0]) == (1.0, None, None, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"side": 8}, "`side` must be at least 16, got 8"),
        ({"held_out_windows": 4}, "`held_out_windows` must be at least 8, got 4"),
        ({"seeds": (0, 0)}, "`seeds` must name at least one, none of them twice"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**options)
