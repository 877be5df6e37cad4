from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from tiny_autoencoders import make_autoencoder

from diffusers_vidvae import VideoReconstructionPipeline
from diffusers_vidvae.media import (
    Frame,
    MediaError,
    VideoReader,
    VideoWriter,
    load_image,
    preprocess_video,
    read_video,
    to_frames,
    to_pixels,
)
from diffusers_vidvae.metrics import evaluate_clip


def moving_pattern(num_frames: int, height: int = 33, width: int = 42) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    frames = [
        np.stack([128 + 100 * np.sin((columns + 3 * t) / 5 + c) * np.cos(rows / 7) for c in range(3)], axis=-1)
        for t in range(num_frames)
    ]
    return np.stack(frames).astype(np.uint8)


def write_clip(path, num_frames: int, fps: float = 24, **size: int):
    with VideoWriter(path, fps, lossless=True) as writer:
        writer.write(moving_pattern(num_frames, **size))
    return path


def make_pipe(name: str) -> VideoReconstructionPipeline:
    pipe = VideoReconstructionPipeline(make_autoencoder(name))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def kl_3d_pipe():
    return make_pipe("kl_3d")


@pytest.fixture(scope="module")
def wan_pipe():
    return make_pipe("wan")


LOSSLESS = {"lossless": True}


def test_original_lies_beside_the_reconstruction_as_it_was_encoded(tmp_path, kl_3d_pipe):
    clip = write_clip(tmp_path / "clip.mkv", 11, fps=30)
    result = kl_3d_pipe.reconstruct_file(clip, tmp_path / "out.mkv", writer_options=LOSSLESS)
    assert result.original_output == tmp_path / "out_original.mkv"
    expected, _ = preprocess_video(clip)
    original, info = read_video(result.original_output)
    np.testing.assert_array_equal(original.data, expected.data)
    assert (result.num_frames, result.height, result.width, result.fps) == (9, 32, 40, 24)
    assert (len(original), info.height, info.width, info.fps) == (9, 32, 40, 24)


@pytest.mark.parametrize(("name", "options"), [("kl_3d", {"chunk_frames": 4}), ("frame_select", {}), ("wan", {})])
def test_stream_is_the_whole_clip(tmp_path, name, options):
    pipe, clip = make_pipe(name), write_clip(tmp_path / "clip.mkv", 10)
    result = pipe.reconstruct_file(
        clip, tmp_path / "out.mkv", preprocess=False, writer_options=LOSSLESS, compute_metrics=True, **options
    )
    whole = pipe(moving_pattern(10), output_type="pt", compute_metrics=True)
    expected = to_frames(whole.frames.transpose(1, 2) * 2 - 1)[0]
    written = read_video(result.output)[0].data
    assert written.shape == expected.shape == (10, 33, 42, 3)
    assert np.abs(written.astype(int) - expected).max() <= 1
    assert result.metrics["psnr"] == pytest.approx(whole.metrics[0]["psnr"], abs=1e-3)
    np.testing.assert_array_equal(read_video(result.original_output)[0].data, moving_pattern(10))


def test_windows_with_dropped_frames_are_those_of_the_whole_clip(tmp_path):
    pipe, clip = make_pipe("frame_select"), write_clip(tmp_path / "clip.mkv", 10)
    masks = []

    def remember(pipe, index, start, tensors):
        masks.append(tensors["keep_mask"])
        return {}

    result = pipe.reconstruct_file(
        clip,
        tmp_path / "out.mkv",
        mode="uniform",
        rate=0.5,
        writer_options=LOSSLESS,
        compute_metrics=True,
        callback_on_step_end=remember,
        callback_on_step_end_tensor_inputs=["keep_mask"],
    )
    assert [mask.shape[1] for mask in masks] == [4, 4, 2]
    assert result.keep_rate == result.metrics["keep_rate"] == 0.5

    def same_mask(pipe, index, start, tensors):
        return {"keep_mask": masks[index]}

    whole = pipe(moving_pattern(10), mode="uniform", rate=0.5, output_type="pt", callback_on_step_end=same_mask).frames
    expected = to_frames(whole.transpose(1, 2) * 2 - 1)[0]
    assert np.abs(read_video(result.output)[0].data.astype(int) - expected).max() <= 1


def test_autoencoder_kl_3d_runs_in_chunks(tmp_path, kl_3d_pipe):
    clip = write_clip(tmp_path / "clip.mkv", 40)
    starts = []

    def callback(pipe, index, start, tensors):
        starts.append((start, tensors["latents"].shape[2]))
        return {}

    kl_3d_pipe.reconstruct_file(clip, tmp_path / "out.mkv", chunk_frames=8, callback_on_step_end=callback)
    assert starts == [(0, 2), (8, 2), (16, 2), (24, 2), (32, 2)]


def test_variable_frame_rate_keeps_its_times(tmp_path, wan_pipe):
    times = [0.0, 0.1, 0.15, 0.4, 0.45]
    with VideoWriter(tmp_path / "clip.mkv", 20, lossless=True) as writer:
        writer.write(moving_pattern(5), times)
    result = wan_pipe.reconstruct_file(tmp_path / "clip.mkv", tmp_path / "out.mp4")
    for path in (result.output, result.original_output):
        np.testing.assert_allclose([frame.pts_seconds for frame in VideoReader(path)], times, atol=2e-3)


def test_video_is_resampled_on_demand(tmp_path, wan_pipe):
    clip = write_clip(tmp_path / "clip.mkv", 12, fps=24)
    result = wan_pipe.reconstruct_file(clip, tmp_path / "out.mp4", fps=12)
    assert (result.num_frames, result.fps) == (6, 12)
    assert wan_pipe(clip, fps=12, output_type="np").frames.shape == (1, 6, 33, 42, 3)
    assert wan_pipe(clip, fps=12).fps == Fraction(12)


def test_slow_clip_is_refused_with_its_rate(tmp_path, kl_3d_pipe):
    clip = write_clip(tmp_path / "clip.mkv", 5, fps=10)
    with pytest.raises(MediaError, match=r"clip.mkv: has 10.000 frames per second, at least 24 are needed"):
        kl_3d_pipe.reconstruct_file(clip, tmp_path / "out.mp4")
    assert kl_3d_pipe.reconstruct_file(clip, tmp_path / "out.mp4", preprocess=False).num_frames == 5


def test_image_goes_to_its_bucket_or_stays_as_it_is(tmp_path, kl_3d_pipe, wan_pipe):
    path = tmp_path / "photo.png"
    Image.fromarray(moving_pattern(1, 150, 140)[0]).save(path)
    result = kl_3d_pipe.reconstruct_file(path, tmp_path / "a.png", compute_metrics=True)
    assert load_image(result.output).size == load_image(result.original_output).size == (result.width, result.height)
    assert (result.width % 8, result.height % 8) == (0, 0)
    pair = [to_pixels(load_image(item)) for item in (result.original_output, result.output)]
    assert result.metrics["psnr"] == pytest.approx(evaluate_clip(*pair)["psnr"], abs=0.01)

    result = kl_3d_pipe.reconstruct_file(path, tmp_path / "b.png", size_bucket="XX_SMALL")
    assert (result.width, result.height) == (128, 128)
    for pipe in (kl_3d_pipe, wan_pipe):
        result = pipe.reconstruct_file(path, tmp_path / "c.png", preprocess=False, overwrite=True)
        assert load_image(result.output).size == (140, 150)
        np.testing.assert_array_equal(load_image(result.original_output), load_image(path))


def test_interrupted_file_ends_with_its_chunk(tmp_path, kl_3d_pipe):
    def callback(pipe, index, start, tensors):
        pipe._interrupt = index == 1
        return {}

    clip = write_clip(tmp_path / "clip.mkv", 20)
    result = kl_3d_pipe.reconstruct_file(
        clip, tmp_path / "out.mkv", chunk_frames=4, callback_on_step_end=callback, compute_metrics=True
    )
    assert result.num_frames == result.metrics["num_frames"] == 8
    assert len(read_video(result.output)[0]) == len(read_video(result.original_output)[0]) == 8


def test_nothing_is_left_after_an_error(tmp_path, wan_pipe):
    def callback(pipe, index, start, tensors):
        raise KeyboardInterrupt

    clip = write_clip(tmp_path / "clip.mkv", 5)
    with pytest.raises(KeyboardInterrupt):
        wan_pipe.reconstruct_file(clip, tmp_path / "out.mp4", callback_on_step_end=callback)
    assert list(tmp_path.iterdir()) == [clip]


def test_only_the_reconstruction_on_demand(tmp_path, wan_pipe):
    clip = write_clip(tmp_path / "clip.mkv", 5)
    result = wan_pipe.reconstruct_file(clip, tmp_path / "out.mp4", original_output=False)
    assert result.original_output is None
    assert sorted(tmp_path.iterdir()) == [clip, tmp_path / "out.mp4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "clip.mkv"}, "clip.mkv: would be overwritten"),
        ({"original_output": "out.mp4"}, "need different names"),
        ({"size_bucket": "SMALL"}, "'SMALL' needs `preprocess`"),
        ({"size_bucket": "SMALL", "preprocess": True}, "`size_bucket` is for images, .*clip.mkv is a video"),
        ({"output": "taken.mp4"}, "taken.mp4: exists already"),
        ({"fps": 0}, "`fps` must be positive, got 0"),
        ({"chunk_frames": 4}, "got 4"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, monkeypatch, wan_pipe, options, message):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mkv", 5)
    (tmp_path / "taken.mp4").write_bytes(b"taken")
    with pytest.raises(ValueError, match=message):
        wan_pipe.reconstruct_file("clip.mkv", **{"output": "out.mp4", **options})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mkv", "taken.mp4"]


def test_image_smaller_than_a_latent_is_refused(tmp_path, kl_3d_pipe):
    Image.new("RGB", (7, 20)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="small.png: both sides must have at least 8 pixels, got 7x20"):
        kl_3d_pipe.reconstruct_file(tmp_path / "small.png", tmp_path / "out.png", preprocess=False)


@pytest.mark.parametrize(
    ("name", "clip", "size"),
    [
        ("kl_3d", "bear_odd_161x121.webm", (24, 120, 160)),
        pytest.param("kl_3d", "keyboard_rot90.mov", (2, 568, 320), marks=pytest.mark.slow),
        pytest.param("frame_select", "bear_odd_161x121.webm", (30, 121, 161), marks=pytest.mark.slow),
        pytest.param("tiny", "flower_alpha.webm", (45, 180, 320), marks=pytest.mark.slow),
    ],
)
def test_real_clips_come_back_whole(shared_media, tmp_path, name, clip, size):
    result = make_pipe(name).reconstruct_file(shared_media / "clips" / clip, tmp_path / "out.mp4")
    assert (result.num_frames, result.height, result.width) == size
    frames, info = read_video(result.output)
    assert (len(frames), info.height, info.width) == size


@pytest.mark.parametrize("name", ["empty.mp4", "text_named.mp4", "audio_only.mp4", "zero_frames_init_segment.mp4"])
def test_broken_files_are_named(shared_media, tmp_path, wan_pipe, name):
    with pytest.raises(MediaError, match=name):
        wan_pipe.reconstruct_file(shared_media / "bad" / name, tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


def test_frame_types_of_the_reader_are_taken(tmp_path, wan_pipe):
    frame = Frame(moving_pattern(1)[0], 0.0, 0.1)
    assert wan_pipe([frame, frame], output_type="np").frames.shape == (1, 2, 33, 42, 3)
