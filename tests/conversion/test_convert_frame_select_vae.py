from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_vidvae import FrameSelectVAE
from diffusers_vidvae.conversion.checkpoints import Checkpoint, CheckpointError, check_plan
from diffusers_vidvae.conversion.convert_frame_select_vae import (
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
    return shared_parity / "vae_pytorch_tiny.pt"


@pytest.fixture(scope="module")
def tensors(shared_parity):
    tensors = load_file(shared_parity / "tensors.safetensors")
    return {key: value.bool() if value.dtype == torch.uint8 else value for key, value in tensors.items()}


@pytest.fixture(scope="module")
def vae(original_file):
    return convert(Checkpoint.open(original_file))


@pytest.fixture(scope="module")
def sample(tensors):
    return tensors["vae.input"].permute(0, 4, 1, 2, 3) * 2 - 1


def as_original_tokens(latents: torch.Tensor) -> torch.Tensor:
    return latents.flatten(3).permute(0, 2, 3, 1)  # (B, T, tokens, C)


def as_original_pixels(sample: torch.Tensor) -> torch.Tensor:
    return (sample.permute(0, 2, 3, 4, 1) + 1) / 2


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_encoder_matches_the_original(vae, sample, tensors, masked):
    frame_mask = tensors["vae.frame_mask"] if masked else torch.ones_like(tensors["vae.frame_mask"])
    prefix = "vae.masked" if masked else "vae"
    output = vae.encode(sample, frame_mask)
    mean, variance = (as_original_tokens(x) for x in (output.latent_dist.mean, output.latent_dist.var))
    assert relative_error(mean[frame_mask], tensors[f"{prefix}.mean"][frame_mask]) < 1e-5
    assert relative_error(variance[frame_mask], tensors[f"{prefix}.variance"][frame_mask]) < 1e-5
    assert relative_error(output.keep_probs[frame_mask], tensors[f"{prefix}.keep_prob"][frame_mask]) < 1e-5


@torch.no_grad()
def test_decoder_matches_the_original(vae, sample, tensors):
    output = vae.encode(sample)
    latents = output.latent_dist.mode()
    everything = as_original_pixels(vae.decode(latents).sample)
    assert relative_error(everything, tensors["vae.decode_all"]) < 1e-5
    keep_mask = vae.select_frames(output.keep_probs, mode="threshold")
    selected = as_original_pixels(vae.decode(latents, keep_mask).sample)
    assert relative_error(selected, tensors["vae.decode_selected"]) < 1e-5


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
def test_from_single_file_gives_the_converted_model(vae, original_file, sample):
    loaded = FrameSelectVAE.from_single_file(str(original_file))
    assert dict(loaded.config).items() >= infer_config(Checkpoint.open(original_file).shapes).items()
    assert torch.equal(loaded(sample).sample, vae(sample).sample)


def test_safetensors_and_saved_folder_give_the_same_weights(vae, original_file, tmp_path):
    state_dict = torch.load(original_file, weights_only=True)
    save_file({key: value for key, value in state_dict.items() if "ROPE" not in key}, tmp_path / "vae.safetensors")
    checkpoint = Checkpoint.open(tmp_path / "vae.safetensors")
    config = infer_config(checkpoint.shapes)
    assert config["max_num_frames"] == PUBLISHED_CONFIG["max_num_frames"]  # not told by a file without tables
    convert(checkpoint).save_pretrained(tmp_path / "vae")
    loaded = FrameSelectVAE.from_pretrained(tmp_path / "vae")
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_plan_covers_the_published_checkpoint(shared_parity):
    shapes = {
        key: tuple(shape)
        for key, shape in json.loads((shared_parity / "full_size_keys.json").read_text())["full_vae_keys"].items()
    }
    config = infer_config(shapes)
    assert config == PUBLISHED_CONFIG
    plan = key_plan(config)
    check_plan(Checkpoint("published", shapes, lambda key: torch.empty(0)), plan, IGNORED_KEYS)
    with torch.device("meta"):
        model = FrameSelectVAE(**config)
    targets = {name: shape for planned in plan.values() for name, shape in planned.targets.items()}
    assert targets == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert model.num_parameters() == 170_631_304


def test_plan_of_the_tiny_configuration_is_its_checkpoint(original_file):
    shapes = Checkpoint.open(original_file).shapes
    assert is_source(shapes)
    assert infer_config(shapes) == TINY_CONFIG


def test_all_differences_are_listed(original_file):
    state_dict = torch.load(original_file, weights_only=True)
    del state_dict["encoder.layers.1.TemporalMLP.linear2.bias"]
    state_dict["encoder.extra"] = torch.zeros(3)
    state_dict["decoder.unet.bottleneck1.conv.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as error:
        convert(Checkpoint.from_state_dict(state_dict))
    message = str(error.value)
    assert "missing encoder.layers.1.TemporalMLP.linear2.bias (192,)" in message
    assert "unexpected encoder.extra (3,)" in message
    assert "mis-shaped decoder.unet.bottleneck1.conv.bias: (7,), expected (128,)" in message


def test_foreign_files_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="Not a dynamic-frame-compression autoencoder"):
        convert(Checkpoint.open(tmp_path / "other.safetensors"))
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="text.pt is not a readable state dict"):
        Checkpoint.open(tmp_path / "text.pt")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cut.safetensors is not a readable safetensors file"):
        Checkpoint.open(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        Checkpoint.open(tmp_path / "absent.pt")


def test_pickled_code_is_not_run(tmp_path):
    class Danger:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"fill_token": Danger()}, tmp_path / "danger.pt")
    with pytest.raises(CheckpointError, match="danger.pt is not a readable state dict"):
        Checkpoint.open(tmp_path / "danger.pt")
