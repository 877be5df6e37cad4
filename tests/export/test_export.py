r"""Encoders and decoders as graphs of `torch.export` and ONNX."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from diffusers_vidvae import AutoencoderKL3D, FrameSelectVAE
from diffusers_vidvae.cli.app import app, run
from diffusers_vidvae.export import SizeRange, export_autoencoder, open_export
from diffusers_vidvae.export.sizes import size_ranges
from diffusers_vidvae.models.frame_fill import solve_by_elimination


KL_3D = {
    "block_out_channels": (8, 16),
    "latent_channels": 4,
    "layers_per_block": 1,
    "mid_block_layers": 1,
    "temporal_downsample": (True,),
}
FRAME_SELECT = {
    "sample_size": 16,
    "patch_size": 8,
    "latent_channels": 6,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "ff_inner_dim": 24,
    "hidden_size": 24,
    "max_num_frames": 8,
    "clip_num_frames": 4,
    "refiner_channels": 4,
    "refiner_levels": 1,
}
ANY_SIZE = {"patch_norm": False, "rope_type": "axial", "refiner_norm": "frame"}
CASES = {
    "kl_3d": (AutoencoderKL3D, KL_3D),
    "kl_3d, all options": (
        AutoencoderKL3D,
        {
            **KL_3D,
            "first_frame_alone": True,
            "linear_path": True,
            "mid_block_attention": True,
            "norm_type": "group",
            "norm_num_groups": 2,
        },
    ),
    "frame_select": (FrameSelectVAE, FRAME_SELECT),
    "frame_select, interpolate": (
        FrameSelectVAE,
        {**FRAME_SELECT, **ANY_SIZE, "fill": "interpolate", "cycle_channels": 2, "keep_head": "pooled"},
    ),
    "frame_select, wiener": (
        FrameSelectVAE,
        {
            **FRAME_SELECT,
            **ANY_SIZE,
            "fill": "wiener",
            "cycle_channels": 2,
            "filter_size": 3,
            "keep_head": "motion",
            "decoder_context": True,
        },
    ),
}


def make_vae(name: str) -> AutoencoderKL3D | FrameSelectVAE:
    torch.manual_seed(0)
    model_class, config = CASES[name]
    vae = model_class(**config).eval().requires_grad_(False)
    # Fresh residual branches add next to nothing and would hide mistakes.
    for parameter in vae.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return vae


def require_onnx() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra `export`")


def clip(*size: int) -> torch.Tensor:
    return 2 * torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format"),
    [(name, "onnx") for name in CASES if name != "kl_3d"] + [("kl_3d", "torch"), ("frame_select, wiener", "torch")],
)
def test_graphs_give_the_pixels_of_the_model_at_other_sizes(name, format, tmp_path):
    if format == "onnx":
        require_onnx()
    vae = make_vae(name)
    description = export_autoencoder(vae, tmp_path / "exported", format)
    assert all(part["difference"] < 1e-4 for part in description["parts"].values())
    exported = open_export(tmp_path / "exported")
    frames, height, width = exported.sizes
    # Neither of the sizes that the exporter looked at.
    size = min(frames.low + 2 * frames.step, frames.high), height.low, min(width.low + 3 * width.step, width.high)
    x = clip(*size)
    encoded, expected = exported.encode(x), vae.encode(x)
    torch.testing.assert_close(encoded.posterior.parameters, expected.latent_dist.parameters, rtol=1e-4, atol=1e-4)
    latents, masks = expected.latent_dist.mode(), []
    if isinstance(vae, FrameSelectVAE):
        torch.testing.assert_close(encoded.keep_probs, expected.keep_probs, rtol=0, atol=1e-4)
        masks = [vae.select_frames(expected.keep_probs, num_frames=2)]
    torch.testing.assert_close(exported.decode(latents, *masks), vae.decode(latents, *masks).sample, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=rf"was exported for {frames}, got {frames.high + 1}\."):
        exported.encode(clip(frames.high + 1, *size[1:]))
    with pytest.raises(ValueError, match=r"was exported for latent height .*, got 1\."):
        exported.decode(latents[:, :, :, :1], *masks)


@pytest.mark.slow
def test_images_and_halves_can_be_exported_alone(tmp_path):
    vae = make_vae("kl_3d")
    command = ["vae", "--output", "image", "--format", "torch", "--part", "decoder"]
    vae.save_pretrained(tmp_path / "vae")
    command = [str(tmp_path / word) if word in ("vae", "image") else word for word in command]
    sizes = ["--frames", "1", "--height", "16-32", "--width", "24"]
    result = CliRunner().invoke(app, ["export", *command, *sizes, "--json"])
    assert json.loads(result.stdout)["parts"].keys() == {"decoder"}
    exported = open_export(tmp_path / "image")
    assert [str(size) for size in exported.sizes] == ["frames 1", "height from 16 to 32 in steps of 2", "width 24"]
    latents = torch.randn(1, 4, 1, 13, 12)
    torch.testing.assert_close(exported.decode(latents), vae.decode(latents, 1).sample, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="holds no encoder, only decoder"):
        exported.encode(clip(1, 16, 24))
    assert run(["export", *command, *sizes]) == 1  # nothing is overwritten


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("kl_3d", ["frames from 4 to 1024 in steps of 2", "height from 4 to 2048 in steps of 2"]),
        ("kl_3d, all options", ["frames from 3 to 1023 in steps of 2", "height from 4 to 2048 in steps of 2"]),
        ("frame_select", ["frames from 2 to 4", "height 16"]),
        ("frame_select, wiener", ["frames from 2 to 4", "height from 16 to 2048 in steps of 8"]),
    ],
)
def test_default_sizes_are_all_that_a_model_takes(name, sizes):
    assert [str(size) for size in size_ranges(make_vae(name))[:2]] == sizes


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("kl_3d", {"frames": (5, 9)}, "frames from 4 to 1024 in steps of 2, got 5 to 9"),
        ("kl_3d", {"frames": (2, 8)}, "frames from 4 to 1024 in steps of 2, got 2 to 8"),
        ("kl_3d", {"height": 15}, "height from 2 to 2048 in steps of 2, got 15 to 15"),
        ("kl_3d", {"width": (64, 32)}, "width from .*, got 64 to 32"),
        ("kl_3d, all options", {"frames": (4, 8)}, "frames from 3 to 1023 in steps of 2, got 4 to 8"),
        ("frame_select", {"height": 32}, "height 16, got 32 to 32"),
        ("frame_select, wiener", {"frames": (2, 5)}, "frames from 2 to 4, got 2 to 5"),
    ],
)
def test_sizes_that_a_model_does_not_take_are_named(name, sizes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_autoencoder(make_vae(name), tmp_path / "exported", "torch", **sizes)
    assert not (tmp_path / "exported").exists()


def test_other_mistakes_are_named(tmp_path, monkeypatch):
    vae = make_vae("kl_3d")
    for arguments, message in (
        ({"format": "tflite"}, r"one of \('torch', 'onnx'\), got 'tflite'"),
        ({"parts": ("middle",)}, r"among \('encoder', 'decoder'\), got \('middle',\)"),
    ):
        with pytest.raises(ValueError, match=message):
            export_autoencoder(vae, tmp_path / "exported", **arguments)
    with pytest.raises(ValueError, match="must be float32 to be exported, got torch.bfloat16"):
        export_autoencoder(make_vae("kl_3d").to(torch.bfloat16), tmp_path / "exported", "torch")
    with pytest.raises(ValueError, match="AutoencoderKL3D and FrameSelectVAE can be exported, got Linear"):
        size_ranges(torch.nn.Linear(1, 1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").touch()
    with pytest.raises(ValueError, match="no folder of exported graphs"):
        export_autoencoder(vae, tmp_path / "mine", "torch", overwrite=True)
    with pytest.raises(ValueError, match=r"mine: is no folder of exported graphs \(export.json is missing\)"):
        open_export(tmp_path / "mine")
    monkeypatch.setattr("diffusers_vidvae.export.folders.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnx and onnxscript and onnxruntime: pip install 'diffusers-vidvae\[expor"):
        export_autoencoder(vae, tmp_path / "exported", "onnx")


def test_the_command_names_sizes_that_it_cannot_read(capsys):
    assert run(["export", "--output", "exported", "--frames", "8:64"]) == 1
    assert "--frames 8:64: must be a size such as 16, or two such as 8-64." in capsys.readouterr().err


def test_elimination_solves_as_lapack_does():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(2, 3, 5, 5, generator=generator)
    system = factor @ factor.mT + 1e-3 * torch.eye(5)
    right = torch.randn(2, 3, 5, 4, generator=generator)
    for size in (5, 8):
        found = solve_by_elimination(system, right, size)
        expected = torch.linalg.solve(system.double(), right.double()).float()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_ranges_hold_their_steps():
    frames = SizeRange("frames", 5, 13, 4, missing=3)
    assert [size for size in range(20) if size in frames] == [5, 9, 13]
    assert [frames.num_latents(size) for size in (5, 9, 13)] == [2, 3, 4]
    assert str(frames.latents()) == "latent frames from 2 to 4"
