r"""The example that trains a transformer of diffusers on latents of AutoencoderKL3D runs as it stands."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from diffusers import WanPipeline

from diffusers_vidvae.media import VideoReader


@pytest.fixture
def example():
    path = Path(__file__).with_name("train_wan_on_autoencoder_kl_3d.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_wan_transformer_learns_latents_and_runs_in_its_own_pipeline(example, tmp_path, capsys):
    losses = example.main(["--output", str(tmp_path), "--steps", "120", "--clips", "16"])
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert "sample.mp4 of 12 frames" in capsys.readouterr().out
    with VideoReader(tmp_path / "sample.mp4") as reader:
        assert len(list(reader)) == 12
    pipe = WanPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    assert pipe.vae.config.latents_std != [1.0] * pipe.vae.config.z_dim
    size = {"height": 32, "width": 32, "num_frames": 5}
    output = pipe(prompt_embeds=example.NO_TEXT, guidance_scale=1.0, num_inference_steps=2, **size)
    assert output.frames[0].shape == (8, 32, 32, 3)
