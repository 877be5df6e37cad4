"""Compiled pipelines give what they gave before, and say what compiling needs."""

from __future__ import annotations

import pytest
import torch

from diffusers_vidvae import AutoencoderKL3D, FrameSelectVAE, VideoCompressionPipeline, VideoReconstructionPipeline
from diffusers_vidvae.cli.app import run
from diffusers_vidvae.pipelines.compilation import replay_as_graph
from tests.media_data import DATA
from tests.pipelines.gap_dit_components import make_pipeline
from tests.training.conftest import TINY_VAE


CLIP = DATA / "clips" / "flower_1frame.mp4"
COMMANDS = (["compress", CLIP, "-o", "a.fsv"], ["reconstruct", CLIP, "-o", "b.mp4"], ["generate", "-o", "c.mp4"])


def pixels(num_frames: int) -> torch.Tensor:
    return 2 * torch.rand(1, 3, num_frames, 40, 56, generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_that_compile_say_what_they_lack(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert run([*map(str, command), "--compile"]) == 1
    assert "Compiling for a CPU needs a C++ compiler, none of g++, clang++ was found." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("model", ["frame_select_vae", "autoencoder_kl_3d"])
def test_compiled_autoencoders_reconstruct_as_before(model):
    torch.manual_seed(0)
    kl_3d = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": (1, 1, 1, 1), "mid_block_layers": 1}
    vae = FrameSelectVAE(**TINY_VAE) if model == "frame_select_vae" else AutoencoderKL3D(**kl_3d)
    pipeline = VideoReconstructionPipeline(vae.eval())
    pipeline.set_progress_bar_config(disable=True)
    expected = [pipeline(pixels(length), output_type="pt").frames for length in (5, 9)]
    pipeline.enable_compile()
    for length, before in zip((5, 9), expected, strict=True):
        assert torch.allclose(pipeline(pixels(length), output_type="pt").frames, before, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_a_transformer_that_is_replayed_generates_as_before():
    pipeline = make_pipeline("flow")
    options = {"num_latent_frames": 3, "num_inference_steps": 3, "output_type": "latent"}

    def latents() -> torch.Tensor:
        return pipeline(**options, generator=torch.Generator().manual_seed(0)).frames

    expected = latents()
    replay_as_graph(pipeline.transformer)
    forward = pipeline.transformer.forward
    replay_as_graph(pipeline.transformer)
    assert pipeline.transformer.forward is forward
    assert torch.allclose(latents(), expected, atol=1e-4)


def test_pipelines_without_an_autoencoder_compile_what_they_have():
    pipeline = make_pipeline("flow")
    pipeline.vae = None
    pipeline.enable_compile()
    blocks = pipeline.transformer.transformer_blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    compression = VideoCompressionPipeline(FrameSelectVAE(**TINY_VAE))
    compression.enable_compile()
    assert compression.vae.decoder._compiled_call_impl is None
    assert all(block._compiled_call_impl is not None for block in compression.vae.decoder.transformer_blocks)
