r"""The examples of docstrings run as they stand, where the files that they name are."""

from __future__ import annotations

import json
import wave
from doctest import DocTestParser
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_autoencoders import make_autoencoder

from diffusers_vidvae import FlowMatchGapScheduler, FsvError
from diffusers_vidvae.cli.console import CommandError
from diffusers_vidvae.media import VideoWriter
from diffusers_vidvae.training.latent_tars import write_tar
from tests.examples.test_examples import model_of_prompts  # noqa: F401


PACKAGE = Path(__file__).resolve().parents[2]

QUICK = (
    "diffusers_vidvae.files",
    "diffusers_vidvae.media",
    "diffusers_vidvae.media.clips",
    "diffusers_vidvae.media.reader:VideoReader",
    "diffusers_vidvae.media.writer:VideoWriter",
    "diffusers_vidvae.metrics.clip:ClipMetrics",
    "diffusers_vidvae.pipelines.pipeline_video_reconstruction:VideoReconstructionPipeline.__call__",
    "diffusers_vidvae.training.latent_tars",
)
SLOW = (
    "diffusers_vidvae.pipelines.pipeline_video_compression:VideoCompressionPipeline.__call__",
    "diffusers_vidvae.pipelines.pipeline_gap_dit:GapDiTPipeline.__call__",
)


def example_of(name: str) -> str:
    """Source of the example in a docstring."""
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for attribute in path.split(".") if path else ():
        found = getattr(found, attribute)
    if ">>> " in found.__doc__:
        return "".join(example.source for example in DocTestParser().get_examples(found.__doc__))
    lines = found.__doc__.partition("```python\n")[2].partition("```")[0].splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    frames = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(4 * 2 * 16_000))
    for name in ("in.mp4", "clip.mp4"):
        with VideoWriter(tmp_path / name, 10, audio_from=tmp_path / "sound.wav") as writer:
            writer.write(frames.repeat(16, axis=1).repeat(16, axis=2))
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), color).save(tmp_path / name)
    (tmp_path / "latents").mkdir()
    for shard in (tmp_path / "latents" / f"latents-{index:05d}.safetensors" for index in range(2)):
        row = {"mean": torch.zeros(1, 2, 3, 4, 4), "std": torch.ones(1, 2, 3, 4, 4), "num_frames": torch.tensor([3])}
        save_file(row, shard, {"about": "{}"})
        write_tar(shard)
    make_autoencoder("wan").save_pretrained(tmp_path / "Wan-AI" / "Wan2.1-T2V-1.3B-Diffusers" / "vae")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_docstring(name: str) -> None:
    piece = torch.zeros(1, 3, 2, 16, 16)
    module = import_module(name.partition(":")[0])
    names = {
        **{name: getattr(module, name) for name in {*vars(module), *getattr(module, "__all__", ())}},
        "json": json,
        "process": np.asarray,
        "metrics": {"psnr": 30.0},
        "model": FlowMatchGapScheduler(),
        "CommandError": CommandError,
        "FsvError": FsvError,
        "frames": np.full((3, 3, 16, 16), 255, np.uint8),
        "pieces": [(piece, piece)] if name.endswith("ClipMetrics") else [b"one", b"two"],
    }
    exec(compile(example_of(name), name, "exec"), names)


@pytest.mark.parametrize("name", QUICK)
def test_example_runs(name, folder):
    run_docstring(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_example_with_demo_models_runs(name, folder, request):
    prompts = request.getfixturevalue("model_of_prompts")
    (folder / "runs" / "gap_dit").mkdir(parents=True)
    Path(prompts).rename(folder / "runs" / "gap_dit" / "pipeline")
    run_docstring(name)


def test_no_example_is_left_out():
    sources = [
        path for name in ("diffusers_vidvae", "pipelines", "conversion") for path in (PACKAGE / name).rglob("*.py")
    ]
    with_examples = {path.resolve() for path in sources if ">>> " in path.read_text(encoding="utf-8")}
    known = {Path(import_module(name.partition(":")[0]).__file__ or "").resolve() for name in QUICK + SLOW}
    assert with_examples <= known
