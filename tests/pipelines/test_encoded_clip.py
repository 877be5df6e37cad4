r"""A clip that is encoded once and coded at many budgets."""

from __future__ import annotations

import pytest
import torch

from diffusers_vidvae import AutoencoderKL3D, VideoCompressionPipeline, demo_model
from diffusers_vidvae.media import open_clips
from diffusers_vidvae.pipelines.encoded_clip import EncodedClip


@pytest.fixture(scope="module")
def pipeline() -> VideoCompressionPipeline:
    pipeline = VideoCompressionPipeline.from_pretrained(demo_model())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.rand(1, 3, 20, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def encoded(pipeline, frames) -> EncodedClip:
    return EncodedClip(pipeline, frames)


CHOICES = [
    {},
    {"rate": 0.25, "quality": 60},
    {"num_frames": 7},
    {"mode": "top_k", "rate": 0.5, "quality": 0},
    {"mode": "threshold", "threshold": 0.2},
    {"rate": 0.5, "quantize": "int8"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_codes_what_the_pipeline_codes(pipeline, frames, encoded, choice, tmp_path):
    encoded.compress(**choice).save(tmp_path / "encoded.fsv")
    pipeline.compress(frames, **choice).save(tmp_path / "whole.fsv")
    assert (tmp_path / "encoded.fsv").read_bytes() == (tmp_path / "whole.fsv").read_bytes()


def test_the_model_runs_once(pipeline, frames):
    runs = []
    encoder = pipeline.vae.encoder
    hook = encoder.register_forward_hook(lambda *arguments: runs.append(1))
    try:
        encoded = EncodedClip(pipeline, frames)
        num_runs = len(runs)
        sizes = [encoded.compress(quality=quality).num_bytes for quality in (0, 30, 60)]
    finally:
        hook.remove()
    assert len(runs) == num_runs > 0
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


def test_knows_every_frame(encoded):
    assert encoded.num_frames == 20
    assert encoded.keep_probs.shape == (20,) and ((encoded.keep_probs >= 0) & (encoded.keep_probs <= 1)).all()


def test_can_be_stopped_between_windows(pipeline, frames):
    seen = []

    def stop(num_frames: int) -> None:
        seen.append(num_frames)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EncodedClip(pipeline, frames, on_window=stop)
    assert seen == [16]


def test_refuses_batches_and_wrong_choices(pipeline, frames, encoded):
    with pytest.raises(ValueError, match="one clip, got a batch of 2"):
        EncodedClip(pipeline, torch.cat([frames, frames]))
    with pytest.raises(ValueError, match="`quality` must be from 0 to 100, got 101"):
        encoded.compress(quality=101)
    with pytest.raises(ValueError, match=r"`rate` must be in \(0, 1\], got 2"):
        encoded.compress(rate=2)


def test_other_autoencoders_keep_all_frames(shared_media):
    pipeline = VideoCompressionPipeline(AutoencoderKL3D.from_pretrained(demo_model(), subfolder="autoencoder_kl_3d"))
    pipeline.set_progress_bar_config(disable=True)
    (clip,) = open_clips(shared_media / "clips" / "bear_odd_161x121.webm")
    encoded = EncodedClip(pipeline, clip.read()[:, :, :9, :40, :40])
    assert encoded.keep_probs is None and encoded.compress(quality=30).header.num_frames == 9
    with pytest.raises(ValueError, match="does not select frames, got rate"):
        encoded.compress(rate=0.5)
