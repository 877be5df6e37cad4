"""What commands say before they begin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_vidvae import FrameSelectVAE, VideoCompressionPipeline
from diffusers_vidvae.cli import forecast
from diffusers_vidvae.cli.app import run
from diffusers_vidvae.cli.forecast import Work, duration_text, measure
from diffusers_vidvae.media import VideoWriter, open_clips
from tests.training.conftest import TINY_VAE


@pytest.fixture(scope="module")
def pipeline() -> VideoCompressionPipeline:
    torch.manual_seed(0)
    pipe = VideoCompressionPipeline(FrameSelectVAE(**TINY_VAE).eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def frames_of(num_frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size_mode", ["tile", "resize"])
@pytest.mark.parametrize("num_frames", [1, 5, 19])
def test_the_forecast_counts_what_the_model_does(pipeline, size_mode, num_frames):
    (clip,) = open_clips(frames_of(num_frames, 50, 70))
    counts = {"encoder": 0, "decoder": 0}

    def count(name):
        def hook(module, inputs, output):
            counts[name] += inputs[0].shape[0] * inputs[0].shape[2]

        return hook

    hooks = [getattr(pipeline.vae, name).register_forward_hook(count(name)) for name in counts]
    compressed = pipeline.compress(frames_of(num_frames, 50, 70), size_mode=size_mode)
    pipeline.decompress(compressed)
    for hook in hooks:
        hook.remove()
    work = Work.of_header(pipeline.plan(clip, size_mode), num_frames)
    assert (work.num_tiles > 1) == (size_mode == "tile")
    assert counts == {"encoder": work.num_passes, "decoder": work.num_passes}


def test_time_is_that_of_a_part_times_how_much_more_there_is():
    work, sizes = Work(100, 640, 640), []

    def run_part(frames: np.ndarray) -> float:
        sizes.append(frames.shape[:3])
        return frames[..., 0].size * 1e-6

    frame = np.zeros((640, 640, 3), np.uint8)
    assert measure(work, frame, run_part) == pytest.approx(100 * 640 * 640 * 1e-6)
    assert sizes == [(9, 64, 64), (9, 64, 64), (9, 256, 256)]
    assert measure(Work(1, 64, 64), frame, run_part) == 0  # not worth it


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "a few seconds"), (44, "about 40 seconds"), (300, "about 5 minutes"), (9000, "about 2.5 hours")],
)
def test_times_are_for_people(seconds, text):
    assert duration_text(seconds) == text


def test_long_runs_say_so_before_they_begin(pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, "LONG_RUN", 0)
    pipeline.save_pretrained("model")
    side = 4 * pipeline.vae.config.sample_size
    with VideoWriter("clip.mkv", 24, lossless=True) as writer:
        writer.write(frames_of(100, side, side))

    def told(*arguments: str) -> str:
        capsys.readouterr()
        assert run([*arguments, "--model", "model"]) == 0
        return capsys.readouterr().err

    size = f"100 frames of {side}x{side}"
    line = told("compress", "clip.mkv", "-o", "clip.fsv")
    assert line.startswith(f"warning: Compressing {size}, ") and "--size-mode resize takes about a" in line
    line = told("decompress", "clip.fsv", "-o", "back.mkv")
    assert line.startswith(f"warning: Decompressing {size}, ") and "files compressed with --size-mode resize" in line
    line = told("reconstruct", "clip.mkv", "-o", "again.mkv")
    assert line.startswith(f"warning: Reconstructing {size}: ") and "--fps keeps fewer frames." in line
