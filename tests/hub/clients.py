r"""Tiny pipelines to publish, and processes that publish and load them on a local Hub."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

from diffusers_vidvae import (
    AutoencoderKL3D,
    FlowMatchGapScheduler,
    FrameSelectVAE,
    GapDiT,
    GapDiTPipeline,
    VideoCompressionPipeline,
    VideoReconstructionPipeline,
)

from .server import LocalHub


ROOT = Path(__file__).resolve().parents[2]

# Runs before every client script: what the scripts share, and a wall around this package where it must not be used.
PREAMBLE = """
import os, sys, warnings
warnings.filterwarnings("ignore")
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "diffusers_vidvae":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
if os.environ.get("WITHOUT_PACKAGE"):
    sys.meta_path.insert(0, Wall())
import torch
import diffusers
from diffusers import AutoModel, DiffusionPipeline
if not os.environ.get("WITHOUT_PACKAGE"):
    import diffusers_vidvae
    from diffusers_vidvae import *

def generate(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    output = pipe(num_latent_frames=2, num_frames=3, num_inference_steps=2, generator=generator, output_type="pt")
    return output.frames

def reconstruct(pipe):
    pipe.set_progress_bar_config(disable=True)
    clip = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return pipe(video=clip, output_type="pt").frames

def same(actual, name):
    expected = torch.load(name, weights_only=True)
    assert torch.equal(actual, expected), (actual - expected).abs().max()
"""


def save_pipelines(folder: Path):
    r"""Saves tiny pipelines, one folder each, and beside them what they put out."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "ff_inner_dim": 16}
    vae = FrameSelectVAE(
        sample_size=16,
        patch_size=4,
        latent_channels=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
        clip_num_frames=4,
        refiner_channels=8,
        refiner_levels=1,
        **heads,
    )
    transformer = GapDiT(sample_size=4, in_channels=4, hidden_size=16, num_layers=2, **heads)
    kl_3d = AutoencoderKL3D(block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1), latent_channels=4)
    generation = GapDiTPipeline(transformer=transformer, vae=vae, scheduler=FlowMatchGapScheduler(shift=2.0))
    reconstruction = VideoReconstructionPipeline(vae=kl_3d)
    generation.save_pretrained(folder / "generation")
    reconstruction.save_pretrained(folder / "reconstruction")
    VideoCompressionPipeline(vae=vae).save_pretrained(folder / "compression")
    namespace: dict = {}
    exec(PREAMBLE, namespace)
    torch.save(namespace["generate"](generation), folder / "generation.pt")
    torch.save(namespace["reconstruct"](reconstruction), folder / "reconstruction.pt")


def run_client(
    hub: LocalHub, folder: Path, home: Path, script: str, **environment: str
) -> subprocess.CompletedProcess:
    r"""Runs a script in a process of its own, in `folder`, whose Hub is the local one and whose cache is `home`."""
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_TOKEN": "token",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(script)],
        cwd=folder,
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
