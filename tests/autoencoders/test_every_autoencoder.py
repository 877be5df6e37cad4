r"""The list of diffusers' autoencoders that the tests run is complete."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import ModelMixin
from diffusers.models import autoencoders
from tiny_autoencoders import AUTOENCODERS, NO_VIDEO_AUTOENCODERS, allegro, make_autoencoder, rae

from diffusers_vidvae import VideoReconstructionPipeline
from diffusers_vidvae.autoencoders import open_autoencoder
from diffusers_vidvae.cli.app import run
from diffusers_vidvae.media import VideoWriter


def test_every_autoencoder_of_diffusers_is_run_or_known_to_take_no_pictures():
    classes = {
        name for name, value in vars(autoencoders).items() if inspect.isclass(value) and issubclass(value, ModelMixin)
    }
    run = {type(make()).__name__ for make in (*AUTOENCODERS.values(), allegro, rae)}
    assert classes - run == NO_VIDEO_AUTOENCODERS.keys()


def test_an_autoencoder_of_one_size_takes_frames_up_to_that():
    pipe = VideoReconstructionPipeline(rae().eval())
    clip = np.random.default_rng(0).integers(0, 255, (3, 20, 36, 3), dtype=np.uint8)
    assert pipe(clip[:, :, :28], output_type="pt").frames.shape == (1, 3, 3, 20, 28)
    with pytest.raises(
        ValueError, match=r"AutoencoderRAE was given .* \(3, 32, 40\) and returned one of \(3, 32, 32\)"
    ):
        pipe(clip)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mkv"
    with VideoWriter(path, 24, lossless=True) as writer:
        writer.write(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_commands_take_every_autoencoder(capsys, tmp_path, clip_file, name):
    vae = make_autoencoder(name)
    vae.save_pretrained(tmp_path / "model")

    def call(*arguments: str) -> dict:
        capsys.readouterr()
        code = run([*arguments, "--model", str(tmp_path / "model"), "--device", "cpu", "--json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out)

    (figures,) = call("evaluate", str(clip_file))["clips"]
    assert figures["num_frames"] == 9 and np.isfinite(figures["psnr"])
    statistics = call("stats", str(clip_file))
    assert len(statistics["latents_mean"]) == len(statistics["latents_std"]) > 0
    # Clips of a data set are cut to what the model takes, rather than padded.
    geometry = open_autoencoder(vae).geometry
    num_frames, side, _ = geometry.padded_size(5, 32, 32)
    size = ["--num-frames", str(num_frames), "--sample-size", str(geometry.untiled_side or side)]
    call("encode-dataset", str(clip_file), "--output", str(tmp_path / "latents"), "--num-clips", "2", *size)
    assert list((tmp_path / "latents").glob("*.safetensors"))
