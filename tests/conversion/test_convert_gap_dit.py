from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_vidvae import FlowMatchGapScheduler, GapDiT
from diffusers_vidvae.conversion.checkpoints import Checkpoint, CheckpointError, check_plan
from diffusers_vidvae.conversion.convert_gap_dit import (
    PUBLISHED_CONFIG,
    TINY_CONFIG,
    convert,
    infer_config,
    is_source,
    key_plan,
)
from diffusers_vidvae.conversion.factored_attention_keys import IGNORED_KEYS


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def original_file(shared_parity):
    return shared_parity / "dit_pytorch_tiny.pt"


@pytest.fixture(scope="module")
def tensors(shared_parity):
    tensors = load_file(shared_parity / "tensors.safetensors")
    return {key: value.bool() if value.dtype == torch.uint8 else value for key, value in tensors.items()}


@pytest.fixture(scope="module")
def transformer(original_file):
    return convert(Checkpoint.open(original_file))


@pytest.fixture(scope="module")
def noise(tensors):
    return tensors["dit.noise"].permute(0, 3, 1, 2).unflatten(3, (4, 4))


def as_original_tokens(latents: torch.Tensor) -> torch.Tensor:
    return latents.flatten(3).permute(0, 2, 3, 1)  # (B, K, tokens, C)


@torch.no_grad()
def test_velocity_and_gaps_match_the_original(transformer, tensors, noise):
    frame_mask = tensors["dit.frame_mask"]
    output = transformer(noise, 1000 * (1 - tensors["dit.time"][:, 0]), frame_mask)
    velocity = -as_original_tokens(output.sample)
    assert relative_error(velocity[frame_mask], tensors["dit.velocity"][frame_mask]) < 1e-5
    assert relative_error(output.gaps[frame_mask], tensors["dit.gaps"][frame_mask]) < 1e-5


@torch.no_grad()
def test_ten_sampling_steps_match_the_original(transformer, tensors, noise):
    frame_mask = tensors["dit.frame_mask"]
    scheduler = FlowMatchGapScheduler()
    scheduler.set_timesteps(10)
    latents, gaps = noise, None
    for timestep in scheduler.timesteps:
        output = transformer(latents, timestep, frame_mask)
        latents, gaps = scheduler.step(output.sample, timestep, latents, gaps=output.gaps, return_dict=False)
    plan = scheduler.gaps_to_positions(gaps, frame_mask)
    expected = tensors["dit.sample10.latents"]
    assert relative_error(as_original_tokens(latents)[frame_mask], expected[frame_mask]) < 1e-5
    assert relative_error(gaps[frame_mask], tensors["dit.sample10.gaps"][frame_mask]) < 1e-5
    assert torch.equal(plan.positions, tensors["dit.sample10.positions"])
    assert torch.equal(plan.num_frames, tensors["dit.sample10.total_frames"])


@torch.no_grad()
def test_from_single_file_gives_the_converted_model(transformer, original_file, noise):
    loaded = GapDiT.from_single_file(str(original_file))
    assert dict(loaded.config).items() >= TINY_CONFIG.items()
    assert torch.equal(loaded(noise, 500.0).sample, transformer(noise, 500.0).sample)


def test_rotary_tables_tell_the_most_latent_frames_and_are_not_needed(transformer, original_file, tmp_path):
    state_dict = torch.load(original_file, weights_only=True)
    for layer in range(3):
        for branch, length in (("Temporal", 12), ("Spatial", 16)):
            for table in ("cos_cached", "sin_cached"):
                state_dict[f"layers.{layer}.{branch}Attention.ROPE.{table}"] = torch.zeros(1, length, 1, 32)
    save_file(state_dict, tmp_path / "dit.safetensors")
    converted = convert(Checkpoint.open(tmp_path / "dit.safetensors"))
    assert converted.config["max_num_frames"] == 12
    for name, tensor in transformer.state_dict().items():
        assert torch.equal(tensor, converted.state_dict()[name]), name


def test_saved_folder_gives_the_same_weights(transformer, tmp_path):
    transformer.save_pretrained(tmp_path)
    loaded = GapDiT.from_pretrained(tmp_path)
    for name, tensor in transformer.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_plan_covers_the_published_checkpoint(shared_parity):
    keys = json.loads((shared_parity / "full_size_keys.json").read_text())["full_dit_keys"]
    shapes = {key: tuple(shape) for key, shape in keys.items()}
    config = infer_config(shapes)
    assert config == PUBLISHED_CONFIG
    plan = key_plan(config)
    check_plan(Checkpoint("published", shapes, lambda key: torch.empty(0)), plan, IGNORED_KEYS)
    with torch.device("meta"):
        model = GapDiT(**config)
    targets = {name: shape for planned in plan.values() for name, shape in planned.targets.items()}
    assert targets == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert model.num_parameters() == 504_208_738


def test_plan_of_the_tiny_configuration_is_its_checkpoint(original_file):
    shapes = Checkpoint.open(original_file).shapes
    assert is_source(shapes)
    assert infer_config(shapes) == TINY_CONFIG


def test_all_differences_are_listed(original_file):
    state_dict = torch.load(original_file, weights_only=True)
    del state_dict["layers.1.TemporalMLP.linear2.bias"]
    state_dict["layers.extra"] = torch.zeros(3)
    state_dict["down_proj.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as error:
        convert(Checkpoint.from_state_dict(state_dict))
    message = str(error.value)
    assert "missing layers.1.TemporalMLP.linear2.bias (64,)" in message
    assert "unexpected layers.extra (3,)" in message
    assert "mis-shaped down_proj.bias: (7,), expected (24,)" in message


def test_foreign_files_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="Not a dynamic-frame-compression transformer"):
        convert(Checkpoint.open(tmp_path / "other.safetensors"))
