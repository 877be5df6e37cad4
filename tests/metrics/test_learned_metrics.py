"""LPIPS and VMAF, which need more than this package brings along."""

from __future__ import annotations

import importlib.util

import av
import numpy as np
import pytest
import torch

from diffusers_vidvae.metrics import LPIPS, evaluate_clip, find_vmaf_ffmpeg, vmaf


def write_video(path, frames: np.ndarray, fps: int = 25) -> str:
    """Lossless RGB in Matroska."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def gradient_frames(count=6, height=64, width=96) -> np.ndarray:
    ramp = np.add.outer(np.arange(height), np.arange(width))
    return np.stack([np.stack([(ramp + 9 * i) % 256] * 3, -1) for i in range(count)]).astype(np.uint8)


@pytest.fixture(scope="module")
def ffmpeg() -> str:
    binary = find_vmaf_ffmpeg()
    if binary is None:
        pytest.skip("needs an ffmpeg with libvmaf: neither the one on the path nor imageio-ffmpeg has it")
    return binary


def test_vmaf_ranks_a_distorted_video_below_its_source(ffmpeg, tmp_path):
    frames = gradient_frames()
    noisy = (frames + np.random.default_rng(0).normal(0, 30, frames.shape)).clip(0, 255).astype(np.uint8)
    reference = write_video(tmp_path / "it's [a] reference.mkv", frames)
    same = vmaf(reference, write_video(tmp_path / "same.mkv", frames, fps=30), ffmpeg)
    worse = vmaf(reference, write_video(tmp_path / "noisy.mkv", noisy), ffmpeg)
    assert len(same.per_frame) == 6
    assert same.mean > 90 > worse.mean >= worse.worst


def test_vmaf_refuses_videos_of_different_lengths_or_sizes(ffmpeg, tmp_path):
    reference = write_video(tmp_path / "reference.mkv", gradient_frames())
    with pytest.raises(ValueError, match="reference.mkv has 6 frames, .*short.mkv has 4"):
        vmaf(reference, write_video(tmp_path / "short.mkv", gradient_frames(4)), ffmpeg)
    with pytest.raises(ValueError, match="ffmpeg cannot compare .*reference.mkv and .*small.mkv"):
        vmaf(reference, write_video(tmp_path / "small.mkv", gradient_frames(height=32)), ffmpeg)


def test_vmaf_needs_files_and_ffmpeg(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="none.mkv: no such file"):
        vmaf(tmp_path / "none.mkv", tmp_path / "none.mkv")
    path = write_video(tmp_path / "clip.mkv", gradient_frames(1))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match="VMAF needs an ffmpeg with the libvmaf filter"):
        vmaf(path, path)


def test_lpips_without_torchvision_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(ValueError, match="LPIPS needs torchmetrics and torchvision: pip install"):
        LPIPS()


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_lpips_without_weights_says_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="LPIPS needs the weights of squeeze: they are not in .*checkpoints"):
        LPIPS("squeeze")


def test_an_unknown_lpips_backbone_is_refused():
    with pytest.raises(ValueError, match="LPIPS backbone 'resnet' is not one of squeeze, alex, vgg"):
        LPIPS("resnet")


def test_a_perceptual_metric_is_averaged_over_frames():
    def mean_distance(reference, reconstruction):
        return (reference - reconstruction).abs().flatten(1).mean(1)

    clip = torch.zeros(2, 3, 4, 8, 8)
    offsets = torch.tensor([0.0, 0.2, 0.4, 0.6]).reshape(1, 1, -1, 1, 1)
    assert evaluate_clip(clip, clip + offsets, lpips=mean_distance)["lpips"] == pytest.approx(0.15)
