r"""The examples run as they stand, and so does the example of every command."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_vidvae.cli.app import app, run
from diffusers_vidvae.cli.demo import TOUR, arguments_of
from diffusers_vidvae.cli.examples import EXAMPLES
from diffusers_vidvae.media import VideoReader
from tests.training.conftest import TINY_DIT, TINY_VAE


EXAMPLES_FOLDER = Path(__file__).resolve().parent


def run_example(name: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES_FOLDER / name), *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert not result.returncode, result.stderr[-3000:]
    return result.stdout


@pytest.fixture
def clip(tmp_path) -> str:
    size = ["--num-frames", "20", "--width", "64", "--height", "64"]
    assert run(["demo-clip", str(tmp_path / "clip.mp4"), *size]) == 0
    return "clip.mp4"


@pytest.mark.slow
def test_compress_a_clip(tmp_path, clip):
    assert "kept 5 of 20 frames" in run_example("compress_a_clip.py", tmp_path, clip, "back.mp4")
    with VideoReader(tmp_path / "back.mp4") as reader:
        assert len(reader.read()) == 20


@pytest.mark.slow
def test_reconstruct_with_any_autoencoder(tmp_path, clip):
    from diffusers import AutoencoderTiny

    AutoencoderTiny(encoder_block_out_channels=[8] * 4, decoder_block_out_channels=[8] * 4).save_pretrained(
        tmp_path / "tiny"
    )
    printed = run_example("reconstruct_with_any_autoencoder.py", tmp_path, clip, "back.mp4")
    assert "AutoencoderKL3D: 20 frames of 64x64" in printed and "psnr" in printed
    printed = run_example("reconstruct_with_any_autoencoder.py", tmp_path, clip, "back.mp4", "--vae", "tiny")
    assert "AutoencoderTiny: 20 frames of 64x64" in printed


@pytest.mark.slow
def test_generate_between_two_photos(tmp_path):
    for name, color in (("first.png", "red"), ("last.png", "blue")):
        Image.new("RGB", (80, 60), color).save(tmp_path / name)
    options = ["first.png", "last.png", "between.mp4", "--frames", "12", "--steps", "4"]
    assert "12 frames in between.mp4" in run_example("generate_between_two_photos.py", tmp_path, *options)


@pytest.fixture
def model_of_prompts(tmp_path) -> str:
    """Folder of a tiny pipeline with a text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from diffusers_vidvae import FlowMatchGapScheduler, FrameSelectVAE, GapDiT, GapDiTPipeline
    from diffusers_vidvae.training.text import word_tokenizer

    tokenizer = word_tokenizer(["a red disc moves to the left"], max_tokens=12)
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 2}
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    encoder = CLIPTextModel(CLIPTextConfig(**shape, **tokens, max_position_embeddings=12))
    transformer, vae = GapDiT(in_channels=4, text_dim=8, **TINY_DIT), FrameSelectVAE(**TINY_VAE)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # what starts at zero would hide the prompt
    GapDiTPipeline(transformer, vae, FlowMatchGapScheduler(), encoder, tokenizer).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.slow
def test_generate_from_a_prompt(tmp_path, model_of_prompts):
    options = ["a red disc", "generated.mkv", "--frames", "8", "--steps", "2"]
    for model in ([], ["--model", model_of_prompts]):
        assert "8 frames in generated.mkv" in run_example("generate_from_a_prompt.py", tmp_path, *options, *model)


@pytest.mark.slow
def test_the_command_line_takes_prompts(tmp_path, model_of_prompts, capsys):
    from diffusers_vidvae import GapDiT, GapDiTPipeline

    short = ["--num-latent-frames", "2", "--num-frames", "4", "--steps", "1", "--seed", "0"]
    made = []
    for prompt in ("a red disc", "to the left"):
        output = tmp_path / f"{prompt}.mkv"
        assert run(["generate", "-m", model_of_prompts, "-o", str(output), *short, "--prompt", prompt]) == 0
        with VideoReader(output) as reader:
            made.append(reader.read().data)
    assert made[0].shape == made[1].shape and (made[0] != made[1]).any()
    capsys.readouterr()
    refused = {"--prompt": "This transformer was trained without text", "--negative-prompt": "there is no --prompt."}
    plain = GapDiTPipeline.from_pretrained(model_of_prompts, text_encoder=None, tokenizer=None)
    plain.register_modules(transformer=GapDiT(in_channels=4, **TINY_DIT))
    plain.save_pretrained(tmp_path / "plain")
    for option, message in refused.items():
        command = ["generate", "-m", str(tmp_path / "plain"), "-o", str(tmp_path / "no.mkv"), *short, option, "red"]
        assert run(command) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_finetune_on_a_folder(tmp_path, clip):
    (tmp_path / "videos").mkdir()
    (tmp_path / clip).rename(tmp_path / "videos" / clip)
    short = ["run.max_steps=2", "run.validate_every=0", "data.num_frames=8"]
    printed = run_example("finetune_on_a_folder.py", tmp_path, "videos", "run", *short)
    assert re.search(r"keeps \d+ of 20 frames of clip.mp4", printed)


def test_every_command_shows_its_example():
    import typer

    commands = typer.main.get_command(app).commands
    assert set(commands) == set(EXAMPLES)
    for name, example in EXAMPLES.items():
        assert shlex.split(example)[:2] == ["vidvae", name]
        assert commands[name].epilog == f"Example: `{example}`"


@pytest.mark.slow
def test_examples_of_commands_run_as_they_stand(tmp_path, shared_parity, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(shared_parity / "vae_pytorch_tiny.pt", "vae_pytorch.pt")
    # `push` is run on a Hub of its own and `app` with its extra, elsewhere, and `demo` is below.
    for name, example in EXAMPLES.items():
        if name not in ("push", "app", "demo"):
            assert run(shlex.split(example)[1:]) == 0, example


@pytest.mark.slow
def test_the_tour_prints_what_it_runs(tmp_path, capsys):
    folder = tmp_path / "tour"
    assert run(["demo", str(folder), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for _, line in TOUR:
        assert shlex.join(["vidvae", *arguments_of(line, folder, "cpu", False)]) in printed
    made = {"clip.mp4", "clip.fsv", "back.mp4", "compared.html", "generated.mp4", "generated.png", "reconstructed.mp4"}
    assert made <= {path.name for path in folder.iterdir()}
    assert run(["demo", str(folder)]) == 1  # nothing is overwritten
    assert "exists already; --force replaces it." in capsys.readouterr().err
