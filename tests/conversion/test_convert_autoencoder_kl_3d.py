r"""Conversion of checkpoints to AutoencoderKL3D: several layouts and spellings, and refusals."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusers_vidvae import AutoencoderKL3D
from diffusers_vidvae.conversion import detect_source
from diffusers_vidvae.conversion.checkpoints import Checkpoint, CheckpointError
from diffusers_vidvae.conversion.convert_autoencoder_kl_3d import (
    KNOWN_LAYOUTS,
    NAMINGS,
    SourceConfig,
    SourceFormat,
    convert,
    fit_layouts,
    infer_config,
    key_plan,
    main,
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

FORMATS = {
    "plain": {},
    "prefixed": {"prefix": "first_stage_model."},
    "wrapped": {"wrapped": True, "norm_weight": "gamma", "norm_axes": 4},
    "convolutional attention": {"attention_axes": 5},
}


def config_of(layout: str) -> dict:
    return {"block_out_channels": (8, 16, 24, 24), "latent_channels": 4, **LAYOUTS[layout]}


def make_checkpoint(model: AutoencoderKL3D, config: dict, source: SourceFormat) -> dict[str, torch.Tensor]:
    """The model's weights as a checkpoint of some format would hold them."""
    spelled = SourceConfig(config)
    spelled.format = source
    tensors = model.state_dict()
    return {
        key: tensors[name].reshape(planned.shape).clone()
        for key, planned in key_plan(spelled).items()
        for name in planned.targets
    }


def save_checkpoint(path: Path, layout: str, naming: str) -> AutoencoderKL3D:
    """Writes the checkpoint of a new model and returns the model."""
    config = config_of(layout)
    model = AutoencoderKL3D(**config).eval()
    save_file(make_checkpoint(model, config, SourceFormat(naming=naming)), path)
    return model


@pytest.fixture(scope="module", params=LAYOUTS)
def original(request) -> tuple[AutoencoderKL3D, dict]:
    torch.manual_seed(0)
    config = config_of(request.param)
    return AutoencoderKL3D(**config).eval(), config


@torch.no_grad()
@pytest.mark.parametrize(
    "naming, spelling",
    # The package's own naming has its own wrappers.
    [pair for pair in product(NAMINGS, FORMATS) if pair != ("AutoencoderKL3D", "wrapped")],
)
def test_layouts_and_spellings_come_back(original, naming, spelling, tmp_path):
    model, config = original
    path = tmp_path / "vae.safetensors"
    save_file(make_checkpoint(model, config, SourceFormat(naming=naming, **FORMATS[spelling])), path)
    converted = convert(Checkpoint.open(path), norm_num_groups=config.get("norm_num_groups", 32))
    for name in ("block_out_channels", "latent_channels", "mid_block_layers", "shortcut_kernel_size"):
        expected = model.config[name]
        assert converted.config[name] == expected, name
    x = 2 * torch.rand(1, 3, 5, 16, 24) - 1
    assert torch.equal(converted(x).sample, model(x).sample)


@torch.no_grad()
def test_single_files_load(tmp_path):
    path = tmp_path / "vae.safetensors"
    model = save_checkpoint(path, "no attention", "latent-diffusion")
    loaded = AutoencoderKL3D.from_single_file(str(path))
    x = 2 * torch.rand(1, 3, 2, 16, 16) - 1
    assert torch.equal(loaded(x).sample, model(x).sample)
    half = AutoencoderKL3D.from_single_file(str(path), original_config={"temporal_downsample": (True, True, True)})
    assert half.temporal_compression_ratio == 8


def meta_shapes(config: dict, source: SourceFormat | None = None) -> dict[str, tuple[int, ...]]:
    spelled = SourceConfig(config)
    spelled.format = source or SourceFormat()
    return {key: planned.shape for key, planned in key_plan(spelled).items()}


@pytest.mark.parametrize("layout", KNOWN_LAYOUTS)
@pytest.mark.parametrize("norm_type", ["rms", "group"])
def test_layouts_of_the_published_size_are_found_by_shape(layout, norm_type):
    config = {"block_out_channels": (128, 256, 512, 512), **KNOWN_LAYOUTS[layout], "norm_type": norm_type}
    shapes = meta_shapes(config, SourceFormat(naming="latent-diffusion"))
    perfect = [fit for fit in fit_layouts(shapes) if not fit.missing and not fit.unexpected]
    assert (layout, norm_type) in [(fit.layout, fit.norm_type) for fit in perfect]
    assert len(perfect) == (1 if layout == "attention" else 3)
    inferred = infer_config(shapes)
    assert inferred["norm_type"] == norm_type
    assert inferred["mid_block_attention"] == (layout == "attention")


def test_unknown_names_are_refused_with_the_layouts_that_fit():
    shapes = meta_shapes({"block_out_channels": (128, 256, 512, 512)})
    renamed = {key.replace("resnets", "units").replace("conv", "c"): shape for key, shape in shapes.items()}
    with pytest.raises(
        CheckpointError,
        match=r"(?s)follow none of the namings .*no attention \(rms norm\): 210 tensors fit, 0 missing",
    ):
        infer_config(renamed)


@pytest.mark.parametrize(
    "change, message",
    [
        ("missing", r"1 of \d+ planned keys differ:\n  missing decoder.mid.block_1.conv1.weight"),
        ("unexpected", r"unexpected quant_conv.weight \(8, 8, 1, 1, 1\)"),
        ("shape", r"mis-shaped encoder.mid.block_2.conv1.weight: \(24, 24, 3, 3, 1\), expected \(24, 24, 3, 3, 3\)"),
    ],
)
def test_every_key_is_accounted_for(change, message):
    config = config_of("no attention")
    tensors = make_checkpoint(AutoencoderKL3D(**config), config, SourceFormat(naming="latent-diffusion"))
    if change == "missing":
        del tensors["decoder.mid.block_1.conv1.weight"]
    elif change == "unexpected":
        tensors["quant_conv.weight"] = torch.zeros(8, 8, 1, 1, 1)
    else:
        tensors["encoder.mid.block_2.conv1.weight"] = torch.zeros(24, 24, 3, 3, 1)
    with pytest.raises(CheckpointError, match=message):
        convert(Checkpoint.from_state_dict(tensors))


def test_checkpoints_are_recognized_by_their_keys():
    config = config_of("no attention")
    tensors = make_checkpoint(AutoencoderKL3D(**config), config, SourceFormat(naming="diffusers"))
    source = detect_source(Checkpoint.from_state_dict(tensors))
    assert source.__name__.endswith("convert_autoencoder_kl_3d")
    assert isinstance(source.convert(Checkpoint.from_state_dict(tensors)), AutoencoderKL3D)


def test_dry_run_reports_and_writes_nothing(tmp_path, capsys):
    path = tmp_path / "vae.safetensors"
    save_checkpoint(path, "no attention", "diffusers")
    main([str(path), "--dry-run"])
    report = capsys.readouterr().out
    assert "Layouts with these shapes" in report
    assert "encoder.conv_in.weight (8, 3, 3, 3, 3) -> encoder.conv_in.conv.weight (8, 3, 3, 3, 3)" in report
    assert list(tmp_path.iterdir()) == [path]


def test_script_writes_a_model_folder(tmp_path):
    path = tmp_path / "vae.safetensors"
    model = save_checkpoint(path, "uneven halves", "diffusers")
    main([str(path), "--output", str(tmp_path / "vae")])
    loaded = AutoencoderKL3D.from_pretrained(tmp_path / "vae")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_script_fails_in_one_line_for_files_it_does_not_know(tmp_path, capsys):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(SystemExit) as exit_info:
        main([str(path), "--output", str(tmp_path / "vae")])
    assert exit_info.value.code == 1
    assert "follow none of the namings" in capsys.readouterr().err
    assert not (tmp_path / "vae").exists()
