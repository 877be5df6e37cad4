from __future__ import annotations

import pytest
import torch

from diffusers_vidvae.codec import QUANTIZATIONS, FsvError, dequantize, quantize


def gaussian_latents(channels=8, frames=6, height=16, width=16) -> torch.Tensor:
    """Channels of different means and deviations, as an encoder's are."""
    latents = torch.randn(channels, frames, height, width)
    return latents * torch.rand(channels, 1, 1, 1).add(0.1) + torch.randn(channels, 1, 1, 1)


def noise_ratio(latents: torch.Tensor, restored: torch.Tensor) -> float:
    signal = latents.flatten(1).var(1).mean()
    return float(10 * torch.log10(signal / (latents - restored.float()).square().mean()))


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 5, 7), (96, 1, 4, 4)])
def test_every_shape_comes_back(kind, shape):
    latents = torch.randn(shape)
    restored = dequantize(quantize(latents, kind))
    assert restored.shape == latents.shape
    assert torch.allclose(restored.float(), latents, atol=0.5)


def test_fp32_is_exact():
    latents = gaussian_latents()
    assert torch.equal(dequantize(quantize(latents, "fp32")), latents)


@pytest.mark.parametrize(("kind", "relative"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_floats_keep_their_precision(kind, relative):
    latents = gaussian_latents()
    error = (dequantize(quantize(latents, kind)).float() - latents).abs()
    assert (error <= relative * latents.abs() + 1e-7).all()


def test_int8_errs_by_at_most_half_a_step():
    latents = gaussian_latents()
    quantized = quantize(latents, "int8")
    values = latents.flatten(1)
    half_step = (values.amax(1) - values.amin(1)) / 255 / 2
    error = (dequantize(quantized) - latents).abs().flatten(1).amax(1)
    assert (error <= half_step * 1.001).all()


@pytest.mark.parametrize(("kind", "decibels"), [("int8", 41), ("int4", 18.5)])
def test_gaussian_latents_keep_a_signal_to_noise_ratio(kind, decibels):
    latents = gaussian_latents(channels=32)
    assert noise_ratio(latents, dequantize(quantize(latents, kind))) > decibels


def test_int4_clips_no_more_than_pays():
    latents = gaussian_latents()
    latents[0, 0, 0, 0] = 40.0  # one outlier
    values = latents.flatten(1)
    low, step = values.amin(1, keepdim=True), (values.amax(1) - values.amin(1))[:, None] / 15
    unclipped = ((values - low) / step).round() * step + low
    squared_error = (dequantize(quantize(latents, "int4")) - latents).flatten(1).square().mean(1)
    assert (squared_error <= (unclipped - values).square().mean(1) * 1.001).all()


def test_channels_do_not_share_a_scale():
    latents = gaussian_latents()
    louder = latents.clone()
    louder[0] *= 1000
    assert torch.equal(dequantize(quantize(latents, "int8"))[1:], dequantize(quantize(louder, "int8"))[1:])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_constant_channel_is_exact(kind):
    latents = torch.full((2, 3, 4, 5), 0.3)
    assert torch.equal(dequantize(quantize(latents, kind)), latents)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_a_second_rounding_changes_nothing_to_speak_of(kind):
    once = dequantize(quantize(gaussian_latents(), kind)).float()
    twice = dequantize(quantize(once, kind)).float()
    assert torch.allclose(once, twice, atol=1e-5)


def test_int4_packs_two_values_a_byte_and_rounds_odd_frames_up():
    assert quantize(torch.randn(3, 2, 5, 7), "int4").codes.shape == (2, 53)


def test_a_value_that_is_not_finite_is_refused():
    latents = torch.zeros(2, 1, 2, 2)
    latents[0, 0, 1, 1] = torch.nan
    with pytest.raises(FsvError, match="latents: 1 values are not finite"):
        quantize(latents, "int8")


def test_fp16_overflow_is_refused():
    with pytest.raises(FsvError, match="1e\\+05 overflow fp16; bf16 or fp32 hold them"):
        quantize(torch.full((1, 1, 1, 1), 1e5), "fp16")


def test_an_unknown_kind_is_refused_with_the_allowed_ones():
    with pytest.raises(FsvError, match="'int3' is not one of bf16, fp16, fp32, int8, int4"):
        quantize(torch.zeros(1, 1, 1, 1), "int3")
