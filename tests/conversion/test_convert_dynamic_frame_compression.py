r"""Conversion of both models of floatingtrees/dynamic-frame-compression: what both promise, and parity of each."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file, save_file

from diffusers_vidvae import FlowMatchGapScheduler, FrameSelectVAE, GapDiT
from diffusers_vidvae.conversion import convert_frame_select_vae, convert_gap_dit
from diffusers_vidvae.conversion.checkpoints import Checkpoint, CheckpointError, check_plan
from diffusers_vidvae.conversion.factored_attention_keys import IGNORED_KEYS


class Source(NamedTuple):
    module: ModuleType
    model_class: type[ModelMixin]
    tiny_file: str
    full_size_keys: str
    num_parameters: int
    what: str
    missing: str
    mis_shaped: str


SOURCES = {
    "vae": Source(
        convert_frame_select_vae,
        FrameSelectVAE,
        tiny_file="vae_pytorch_tiny.pt",
        full_size_keys="vae",
        num_parameters=170_631_304,
        what="autoencoder",
        missing="encoder.layers.1.TemporalMLP.linear2.bias (192,)",
        mis_shaped="decoder.unet.bottleneck1.conv.bias: (7,), expected (128,)",
    ),
    "dit": Source(
        convert_gap_dit,
        GapDiT,
        tiny_file="dit_pytorch_tiny.pt",
        full_size_keys="dit",
        num_parameters=504_208_738,
        what="transformer",
        missing="layers.1.TemporalMLP.linear2.bias (64,)",
        mis_shaped="down_proj.bias: (7,), expected (24,)",
    ),
}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def as_original_tokens(latents: torch.Tensor) -> torch.Tensor:
    return latents.flatten(3).permute(0, 2, 3, 1)  # (B, T, tokens, C)


def as_original_pixels(sample: torch.Tensor) -> torch.Tensor:
    return (sample.permute(0, 2, 3, 4, 1) + 1) / 2


def assert_same_weights(model: ModelMixin, expected: ModelMixin):
    weights = model.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(weights[name], tensor), name


@pytest.fixture(scope="module")
def tensors(shared_parity):
    tensors = load_file(shared_parity / "tensors.safetensors")
    return {key: value.bool() if value.dtype == torch.uint8 else value for key, value in tensors.items()}


@pytest.fixture(scope="module")
def vae(shared_parity):
    return convert_frame_select_vae.convert(Checkpoint.open(shared_parity / SOURCES["vae"].tiny_file))


@pytest.fixture(scope="module")
def transformer(shared_parity):
    return convert_gap_dit.convert(Checkpoint.open(shared_parity / SOURCES["dit"].tiny_file))


@pytest.fixture(scope="module")
def sample(tensors):
    return tensors["vae.input"].permute(0, 4, 1, 2, 3) * 2 - 1


@pytest.fixture(scope="module")
def noise(tensors):
    return tensors["dit.noise"].permute(0, 3, 1, 2).unflatten(3, (4, 4))


@pytest.fixture(params=SOURCES)
def source(request) -> Source:
    return SOURCES[request.param]


@pytest.fixture
def original_file(source, shared_parity):
    return shared_parity / source.tiny_file


@pytest.fixture
def model(source, vae, transformer) -> ModelMixin:
    return vae if source.model_class is FrameSelectVAE else transformer


@pytest.fixture
def inputs(source, sample, noise) -> tuple[Any, ...]:
    return (sample,) if source.model_class is FrameSelectVAE else (noise, 500.0)


@torch.no_grad()
def test_from_single_file_gives_the_converted_model(source, model, original_file, inputs):
    loaded = source.model_class.from_single_file(str(original_file))
    assert dict(loaded.config).items() >= source.module.TINY_CONFIG.items()
    assert torch.equal(loaded(*inputs).sample, model(*inputs).sample)


def test_what_weights_do_not_tell_can_be_given(source, original_file):
    converted = source.module.convert(Checkpoint.open(original_file), max_num_frames=20)
    loaded = source.model_class.from_single_file(str(original_file), original_config={"max_num_frames": 20})
    assert converted.config["max_num_frames"] == loaded.config["max_num_frames"] == 20


@pytest.mark.parametrize("table_length", [None, 12])
def test_rotary_tables_tell_the_longest_clip_and_are_not_needed(source, model, original_file, table_length, tmp_path):
    state_dict = torch.load(original_file, weights_only=True)
    state_dict = {key: tensor for key, tensor in state_dict.items() if "ROPE" not in key}
    if table_length is not None:
        for key in [key for key in state_dict if key.endswith("Attention.q_norm.weight")]:
            for table in ("cos_cached", "sin_cached"):
                name = key.replace("q_norm.weight", f"ROPE.{table}")
                state_dict[name] = torch.zeros(1, table_length, 1, 32)
    save_file(state_dict, tmp_path / "original.safetensors")
    converted = source.module.convert(Checkpoint.open(tmp_path / "original.safetensors"))
    assert converted.config["max_num_frames"] == (table_length or source.module.PUBLISHED_CONFIG["max_num_frames"])
    assert_same_weights(converted, model)


def test_a_saved_folder_gives_the_same_weights(source, model, tmp_path):
    model.save_pretrained(tmp_path)
    assert_same_weights(source.model_class.from_pretrained(tmp_path), model)


def test_plan_covers_the_published_checkpoint(source, shared_parity):
    keys = json.loads((shared_parity / "full_size_keys.json").read_text())[source.full_size_keys]
    shapes = {key: tuple(shape) for key, shape in keys.items()}
    config = source.module.infer_config(shapes)
    assert config == source.module.PUBLISHED_CONFIG
    plan = source.module.key_plan(config)
    check_plan(Checkpoint("published", shapes, lambda key: torch.empty(0)), plan, IGNORED_KEYS)
    with torch.device("meta"):
        model = source.model_class(**config)
    targets = {name: shape for planned in plan.values() for name, shape in planned.targets.items()}
    assert targets == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert model.num_parameters() == source.num_parameters


def test_plan_of_the_tiny_configuration_is_its_checkpoint(source, original_file):
    shapes = Checkpoint.open(original_file).shapes
    assert source.module.is_source(shapes)
    assert source.module.infer_config(shapes) == source.module.TINY_CONFIG


def test_all_differences_are_listed(source, original_file):
    state_dict = torch.load(original_file, weights_only=True)
    del state_dict[source.missing.split()[0]]
    state_dict["layers.extra"] = torch.zeros(3)
    state_dict[source.mis_shaped.split(":")[0]] = torch.zeros(7)
    with pytest.raises(CheckpointError) as error:
        source.module.convert(Checkpoint.from_state_dict(state_dict))
    for problem in (f"missing {source.missing}", "unexpected layers.extra (3,)", f"mis-shaped {source.mis_shaped}"):
        assert problem in str(error.value)


def test_foreign_files_are_refused(source, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=f"other.safetensors: not a dynamic-frame-compression {source.what}"):
        source.module.convert(Checkpoint.open(tmp_path / "other.safetensors"))


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_encoder_of_the_vae_matches_the_original(vae, sample, tensors, masked):
    frame_mask = tensors["vae.frame_mask"] if masked else torch.ones_like(tensors["vae.frame_mask"])
    prefix = "vae.masked" if masked else "vae"
    output = vae.encode(sample, frame_mask)
    mean, variance = (as_original_tokens(x) for x in (output.latent_dist.mean, output.latent_dist.var))
    assert relative_error(mean[frame_mask], tensors[f"{prefix}.mean"][frame_mask]) < 1e-5
    assert relative_error(variance[frame_mask], tensors[f"{prefix}.variance"][frame_mask]) < 1e-5
    assert relative_error(output.keep_probs[frame_mask], tensors[f"{prefix}.keep_prob"][frame_mask]) < 1e-5


@torch.no_grad()
def test_decoder_of_the_vae_matches_the_original(vae, sample, tensors):
    output = vae.encode(sample)
    latents = output.latent_dist.mode()
    everything = as_original_pixels(vae.decode(latents).sample)
    assert relative_error(everything, tensors["vae.decode_all"]) < 1e-5
    keep_mask = vae.select_frames(output.keep_probs, mode="threshold")
    selected = as_original_pixels(vae.decode(latents, keep_mask).sample)
    assert relative_error(selected, tensors["vae.decompress"]) < 1e-5


@torch.no_grad()
def test_packed_frames_match_the_original(vae, sample, tensors):
    output = vae.encode(sample)
    keep_mask = vae.select_frames(output.keep_probs, mode="threshold")
    packed = vae.pack_frames(output.latent_dist.mode(), keep_mask)
    kept = packed.mask.shape[1]
    assert torch.equal(packed.mask, tensors["vae.compress.mask"][:, :kept])
    assert not tensors["vae.compress.mask"][:, kept:].any()
    assert torch.equal(packed.gaps, tensors["vae.compress.gaps"][:, :kept])
    expected = tensors["vae.compress.latents"][:, :kept]
    assert relative_error(as_original_tokens(packed.latents), expected) < 1e-5
    latents, keep_mask, frame_mask = vae.unpack_frames(packed)
    decompressed = as_original_pixels(vae.decode(latents, keep_mask, frame_mask).sample)
    assert relative_error(decompressed, tensors["vae.decompress"]) < 1e-5


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
