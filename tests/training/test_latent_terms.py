"""Regularisers of latents: what each asks for, and that none is asked for unasked."""

from __future__ import annotations

import json

import pytest
import torch

from diffusers_vidvae import AutoencoderKL3D
from diffusers_vidvae.training import train_autoencoder_kl_3d, train_frame_select_vae
from diffusers_vidvae.training.latent_terms import (
    LatentTerms,
    LatentTermsConfig,
    RateModel,
    laplace_bits,
    mixed_with_noise,
    resized,
    scaled_and_turned,
)

from .conftest import TINY_KL, TINY_VAE


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_nothing_is_changed_or_added_unasked():
    terms = LatentTerms(LatentTermsConfig(), channels=3, seed=0)
    latents, sample = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 16, 16)
    shown, target = terms.decoder_pair(latents, sample, torch.arange(2))
    assert shown is latents and target is sample
    loss, metrics = terms.losses(latents, sample, None, lambda *_: pytest.fail("nothing is to be decoded"))
    assert not loss.any() and not metrics and not list(terms.parameters())


def test_noise_is_mixed_in_by_a_share_that_differs_from_clip_to_clip():
    latents = torch.ones(200, 2, 3, 4, 4)
    mixed = mixed_with_noise(latents, 3.0, generators(200))
    share = 1 - mixed.mean(dim=(1, 2, 3, 4))
    deviation = mixed.std(dim=(1, 2, 3, 4))
    assert share.min() < 0.2 and share.max() > 0.8
    torch.testing.assert_close(deviation.mean(), torch.tensor(1.5), atol=0.15, rtol=0)
    assert torch.equal(mixed[:3], mixed_with_noise(latents[:3], 3.0, generators(3)))


@pytest.mark.parametrize("turns", range(4))
def test_latents_and_pixels_are_scaled_and_turned_alike(turns):
    # Pixels that are the latents, each as an 8x8 block, stay so under every transform that hits the grid.
    latents = torch.randn(1, 3, 2, 8, 4)
    sample = latents.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
    small, pixels = scaled_and_turned(latents, sample, scale=1.0, turns=turns)
    assert torch.equal(pixels, small.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4))
    small, pixels = scaled_and_turned(latents, sample, scale=1 / 3, turns=turns)
    assert small.shape[3:] == ((4, 2) if turns % 2 == 0 else (2, 4))
    assert pixels.shape[3:] == tuple(8 * side for side in small.shape[3:])


def test_scale_equivariance_is_the_error_of_the_half_size_clip():
    terms = LatentTerms(LatentTermsConfig(scale_equivariance_weight=0.5), channels=3, seed=0)
    latents, sample = torch.randn(2, 3, 4, 4, 4), torch.rand(2, 3, 4, 32, 32)
    _, half = resized(latents, sample, 2, 2)
    seen = []

    def decode(small, *size):
        seen.append((tuple(small.shape[3:]), size))
        return half + 0.2

    loss, metrics = terms.losses(latents, sample, None, decode)
    assert seen == [((2, 2), (4, 16, 16))]
    torch.testing.assert_close(loss, torch.full((2,), 0.5 * 0.01))
    assert metrics["scale_equivariance"] == pytest.approx(0.01)


def test_laplace_bits_are_those_of_a_distribution():
    numbers = torch.arange(-400, 401).float()
    for scale in (0.05, 1.0, 20.0):
        masses = 2 ** -laplace_bits(numbers, torch.tensor(scale))
        assert float(masses.sum()) == pytest.approx(1, abs=1e-4)
    # and smooth between them
    values = torch.linspace(-3, 3, 601, requires_grad=True)
    bits = laplace_bits(values, torch.tensor(1.0))
    assert bits.diff().abs().max() < 0.02
    (gradient,) = torch.autograd.grad(bits.sum(), values)
    assert gradient.isfinite().all()


def test_the_rate_model_learns_that_still_clips_take_few_bits():
    torch.manual_seed(0)
    model, step = RateModel(2), torch.ones(1, 2, 1, 1, 1)
    still = (5 * torch.randn(8, 2, 1, 4, 4)).expand(-1, -1, 6, -1, -1).round()
    moving = (5 * torch.randn(8, 2, 6, 4, 4)).round()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        model(still, step).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert model(still, step).mean() < 0.4 * model(moving, step).mean()
        mask = torch.tensor([[True] + 5 * [False]]).expand(8, -1)
        assert model(still, step, mask).mean() > 3 * model(still, step).mean()


LOSSES = {"latent_noise": 1.0, "scale_equivariance_weight": 0.25, "equivariance_share": 0.5, "rate_weight": 0.004}


@pytest.mark.parametrize("name", ["frame_select_vae", "autoencoder_kl_3d"])
def test_both_autoencoders_train_with_all_terms(write_config, tmp_path, name):
    module, model = {
        "frame_select_vae": (train_frame_select_vae, TINY_VAE),
        "autoencoder_kl_3d": (train_autoencoder_kl_3d, TINY_KL),
    }[name]
    module.main(write_config(model, loss=LOSSES, data={"sample_size": 32}))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert len(train) == 4 and all(line["bits_per_pixel"] > 0 < line["scale_equivariance"] for line in train)


def test_a_rate_model_is_not_saved_with_the_autoencoder(write_config, tmp_path):
    folder = train_autoencoder_kl_3d.main(write_config(TINY_KL, loss={"rate_weight": 0.004}, run={"max_steps": 1}))
    assert AutoencoderKL3D.from_pretrained(folder).config.latent_channels == 2


def test_shares_and_weights_outside_of_their_ranges_are_refused(write_config):
    with pytest.raises(ValueError, match=r"`loss.equivariance_share` must be in \[0, 1\], got 1.5"):
        train_autoencoder_kl_3d.main(write_config(TINY_KL, loss={"equivariance_share": 1.5}))
