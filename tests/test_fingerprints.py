from __future__ import annotations

import pytest
import torch

from diffusers_vidvae import AutoencoderKL3D, demo_model
from diffusers_vidvae.fingerprints import (
    config_fingerprint,
    model_fingerprint,
    same_sketch,
    weights_fingerprint,
    weights_sketch,
)


@pytest.fixture
def model() -> AutoencoderKL3D:
    return AutoencoderKL3D.from_pretrained(demo_model(), subfolder="autoencoder_kl_3d")


def test_the_configs_fingerprint_ignores_private_keys_order_and_tuples():
    one = config_fingerprint({"a": (1, 2), "b": None, "_class_name": "X"})
    two = config_fingerprint({"_name_or_path": "there", "b": None, "a": [1, 2]})
    assert one == two and len(one) == 64
    assert one != config_fingerprint({"a": [2, 1], "b": None})


def test_a_config_that_is_not_json_is_refused():
    with pytest.raises(ValueError, match="The config cannot be written as JSON"):
        config_fingerprint({"a": torch.float32})


def test_one_changed_weight_changes_the_fingerprints(model):
    before = weights_fingerprint(model), model_fingerprint(model)
    assert before == (weights_fingerprint(model), model_fingerprint(model))
    next(model.parameters()).data.flatten()[0] += 1e-3
    assert before[0] != weights_fingerprint(model) and before[1] != model_fingerprint(model)


def test_statistics_of_latents_do_not_change_the_models_fingerprint(model):
    before = model_fingerprint(model)
    model.register_to_config(latents_mean=[0.5] * model.config.latent_channels)
    assert before == model_fingerprint(model)
    model.register_to_config(scaling_factor=2.0)
    assert before != model_fingerprint(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sketch_knows_its_weights_in_other_precisions(model, dtype):
    before = weights_sketch(model)
    assert same_sketch(before, weights_sketch(model.to(dtype)))


def test_a_sketch_tells_two_trainings_apart(model):
    before = weights_sketch(model)
    generator = torch.Generator().manual_seed(0)
    for weight in model.decoder.parameters():
        weight.data += 0.2 * weight.data.abs().mean() * torch.randn(weight.shape, generator=generator)
    assert not same_sketch(before, weights_sketch(model))


def test_there_is_no_sketch_of_weights_that_are_elsewhere_or_quantised(model):
    assert weights_sketch(model.to(torch.float8_e4m3fn)) is None
    assert weights_sketch(model.to("meta")) is None
