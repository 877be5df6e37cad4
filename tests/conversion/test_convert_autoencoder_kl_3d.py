r"""Weights of AutoencoderKL3D without their configuration, layouts found by shape, and refusals."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from diffusers_vidvae import AutoencoderKL3D
from diffusers_vidvae.conversion import CONVERSIONS, Checkpoint, CheckpointError, detect_source
from diffusers_vidvae.conversion.convert_autoencoder_kl_3d import (
    KNOWN_LAYOUTS,
    convert,
    fit_layouts,
    infer_config,
    key_plan,
)


LAYOUTS = {
    "no attention": {"layers_per_block": (1, 1, 2, 2), "mid_block_layers": 3},
    "attention": {
        "layers_per_block": 2,
        "shortcut_kernel_size": 3,
        "mid_block_layers": 2,
        "mid_block_attention": True,
        "norm_type": "group",
        "norm_num_groups": 4,
    },
    "five levels": {"block_out_channels": (8, 16, 16, 24, 24), "layers_per_block": 1, "mid_block_layers": 1},
    "uneven halves": {"layers_per_block": 1, "decoder_layers_per_block": (2, 1, 3, 1), "mid_block_layers": 2},
}


def make_model(layout: str) -> AutoencoderKL3D:
    torch.manual_seed(0)
    config = {"block_out_channels": (8, 16, 24, 24), "latent_channels": 4, **LAYOUTS[layout]}
    return AutoencoderKL3D(**config, pixel_range=(0.0, 1.0)).eval()


def shapes_of(config: dict) -> dict[str, tuple[int, ...]]:
    return {key: planned.shape for key, planned in key_plan(config).items()}


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_come_back_from_weights_alone(layout, tmp_path):
    model = make_model(layout)
    save_file(model.state_dict(), tmp_path / "vae.safetensors")
    converted = convert(Checkpoint.open(tmp_path / "vae.safetensors"), norm_num_groups=model.config.norm_num_groups)
    for name in ("block_out_channels", "latent_channels", "mid_block_layers", "shortcut_kernel_size", "norm_type"):
        assert converted.config[name] == model.config[name], name
    x = 2 * torch.rand(1, 3, 5, 16, 24) - 1
    assert torch.equal(converted(x).sample, model(x).sample)


@torch.no_grad()
def test_single_files_load(tmp_path):
    model = make_model("no attention")
    save_file(model.state_dict(), tmp_path / "vae.safetensors")
    loaded = AutoencoderKL3D.from_single_file(str(tmp_path / "vae.safetensors"))
    x = 2 * torch.rand(1, 3, 2, 16, 16) - 1
    assert torch.equal(loaded(x).sample, model(x).sample)
    options = {"temporal_downsample": (True, True, True)}
    half = AutoencoderKL3D.from_single_file(str(tmp_path / "vae.safetensors"), original_config=options)
    assert half.temporal_compression_ratio == 8


@pytest.mark.parametrize("layout", KNOWN_LAYOUTS)
@pytest.mark.parametrize("norm_type", ["rms", "group"])
def test_layouts_of_the_published_size_are_found_by_shape(layout, norm_type):
    config = {"block_out_channels": (128, 256, 512, 512), **KNOWN_LAYOUTS[layout], "norm_type": norm_type}
    shapes = shapes_of(config)
    perfect = [fit for fit in fit_layouts(shapes) if not fit.missing and not fit.unexpected]
    assert (layout, norm_type) in [(fit.layout, fit.norm_type) for fit in perfect]
    assert len(perfect) == (1 if layout == "attention" else 3)
    inferred = infer_config(shapes)
    assert (inferred["norm_type"], inferred["mid_block_attention"]) == (norm_type, layout == "attention")


def test_other_names_are_refused_with_the_layouts_that_fit():
    shapes = shapes_of({"block_out_channels": (128, 256, 512, 512)})
    renamed = {key.replace("resnets", "units").replace("conv", "c"): shape for key, shape in shapes.items()}
    with pytest.raises(
        CheckpointError,
        match=r"(?s)not those of AutoencoderKL3D.*no attention \(rms norm\): 210 tensors fit, 0 missing",
    ):
        infer_config(renamed)


@pytest.mark.parametrize(
    "change, message",
    [
        ("missing", r"1 of \d+ planned keys differ:\n  missing decoder.mid_block.resnets.0.conv1.conv.weight"),
        ("unexpected", r"unexpected quant_conv.weight \(8, 8, 1, 1, 1\)"),
        ("shape", r"mis-shaped \S+conv1.conv.weight: \(24, 24, 3, 3, 1\), expected \(24, 24, 3, 3, 3\)"),
    ],
)
def test_every_key_is_accounted_for(change, message):
    tensors = make_model("no attention").state_dict()
    key = next(key for key in tensors if key.startswith("decoder.mid_block.resnets.0.conv1") and "weight" in key)
    if change == "missing":
        del tensors[key]
    elif change == "unexpected":
        tensors["quant_conv.weight"] = torch.zeros(8, 8, 1, 1, 1)
    else:
        tensors[key] = torch.zeros(24, 24, 3, 3, 1)
    with pytest.raises(CheckpointError, match=message.replace("conv1.conv.weight", key.rsplit("resnets.0.")[-1])):
        convert(Checkpoint.from_state_dict(tensors))


def test_every_conversion_knows_its_own_checkpoints_only(shared_parity):
    checkpoints = {
        "FrameSelectVAE": Checkpoint.open(shared_parity / "vae_pytorch_tiny.pt"),
        "GapDiT": Checkpoint.open(shared_parity / "dit_pytorch_tiny.pt"),
        "AutoencoderKL3D": Checkpoint.from_state_dict(make_model("no attention").state_dict()),
    }
    assert checkpoints.keys() == CONVERSIONS.keys()
    for model, checkpoint in checkpoints.items():
        assert detect_source(checkpoint) is CONVERSIONS[model]
        assert type(detect_source(checkpoint).convert(checkpoint)).__name__ == model
    with pytest.raises(CheckpointError, match="none of the known checkpoints .*gap_dit.* 1 tensors such as weight"):
        detect_source(Checkpoint.from_state_dict({"weight": torch.zeros(2)}))
