from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from fsv_clips import make_header, make_window
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from diffusers_vidvae.codec import (
    QUANTIZATIONS,
    CompressedVideo,
    FsvError,
    FsvReader,
    LatentWindow,
    TileLayout,
)


def assert_same_clip(one: CompressedVideo, other: CompressedVideo) -> None:
    assert one.header == other.header
    assert len(one.windows) == len(other.windows)
    for a, b in zip(one.windows, other.windows, strict=True):
        assert (a.start, a.num_frames) == (b.start, b.num_frames)
        assert torch.equal(a.gaps, b.gaps)
        assert torch.equal(a.quantized(one.header.quantization).latents, b.latents)


@st.composite
def clips(draw) -> CompressedVideo:
    clip_num_frames = draw(st.sampled_from([1, 4, 9, 300]))
    shape = tuple(draw(st.integers(1, 4)) for _ in range(3))
    patch, pad = draw(st.integers(1, 20)), draw(st.integers(0, 3))
    windows, frames = [], 0
    for count in draw(st.lists(st.integers(1, clip_num_frames), min_size=1, max_size=4)):
        positions = draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=8))
        windows.append(make_window(frames, count, sorted(positions), shape))
        frames += count
    header = make_header(
        num_frames=frames,
        clip_num_frames=clip_num_frames,
        latent_channels=shape[0],
        latent_height=shape[1],
        latent_width=shape[2],
        model_height=patch * shape[1],
        model_width=patch * shape[2],
        height=max(1, patch * shape[1] - pad),
        width=max(1, patch * shape[2] - pad),
        fps=draw(st.none() | st.fractions(Fraction(1, 100), 240, max_denominator=10007)),
        quantization=draw(st.sampled_from(QUANTIZATIONS)),
        model_id=draw(st.text(st.characters(categories=("L", "N", "P")), max_size=12)),
    )
    return CompressedVideo(header, windows)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(video=clips())
def test_every_clip_comes_back_from_its_file(video, tmp_path):
    path = video.save(tmp_path / "any.fsv", overwrite=True)
    assert_same_clip(video, CompressedVideo.load(path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(video=clips())
def test_the_size_is_known_before_saving(video, tmp_path):
    predicted = video.num_bytes
    path = video.save(tmp_path / "any.fsv", overwrite=True)
    assert predicted == path.stat().st_size == CompressedVideo.load(path).num_bytes


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_any_safetensors_reader_opens_the_file(make_video, tmp_path, quantization):
    video = make_video(quantization=quantization)
    path = video.save(tmp_path / "clip.fsv")
    with safe_open(path, "pt") as file:
        assert file.get_tensor("latents").shape[0] == 4
        assert file.get_tensor("gaps").tolist() == [0, 3, 4, 1]
        assert file.get_tensor("window_kept").tolist() == [3, 1]
        assert file.metadata()["num_frames"] == "11"
        if quantization == "fp32":
            expected = torch.cat([window.latents for window in video.windows], 1).transpose(0, 1)
            assert torch.equal(file.get_tensor("latents"), expected)


def test_masks_and_positions_follow_the_gaps(fsv_file):
    video = CompressedVideo.load(fsv_file)
    assert video.positions.tolist() == [0, 3, 7, 9]
    assert video.keep_mask.nonzero().flatten().tolist() == [0, 3, 7, 9]
    assert video.keep_mask.shape == (11,)
    assert video.windows[1].positions.tolist() == [1]
    assert video.windows[1].keep_mask.tolist() == [False, True, False]


def test_printing_shows_shapes_not_numbers(fsv_file):
    video = CompressedVideo.load(fsv_file)
    assert (
        repr(video) == f"CompressedVideo(11 frames of 45 x 40, 4 kept in 2 windows as fp32, {video.num_bytes} bytes)"
    )
    assert repr(video.windows[0]) == "LatentWindow(start=0, num_frames=8, gaps=[0, 3, 4], latents=(5, 3, 3, 3))"


def test_statistics_count_the_whole_file(fsv_file):
    video = CompressedVideo.load(fsv_file)
    statistics = video.statistics()
    size = fsv_file.stat().st_size
    assert statistics["kept_frames"] == 4
    assert statistics["keep_rate"] == 4 / 11
    assert statistics["values_per_pixel"] == 4 * 5 * 3 * 3 / (11 * 45 * 40)
    assert statistics["latent_bits"] == 4 * 5 * 3 * 3 * 32
    assert statistics["mask_bits"] == 8 * 4 + 2 * 2 * 32
    assert statistics["payload_bits"] == statistics["latent_bits"] + statistics["mask_bits"]
    assert statistics["bits_per_pixel"] == 8 * size / (11 * 45 * 40)
    assert statistics["kbps"] == pytest.approx(8 * size / (11 / (30000 / 1001)) / 1000)
    assert statistics["tokens_per_second"] == pytest.approx(4 * 9 / (11 / (30000 / 1001)))


def test_no_frame_rate_means_no_bits_per_second(make_video):
    statistics = make_video(fps=None).statistics()
    assert statistics["kbps"] is None and statistics["tokens_per_second"] is None


def test_a_tiled_clip_keeps_its_layout(make_video, tmp_path):
    video = make_video(size_fit="tile", tile=TileLayout(size=32, overlap=8))
    assert CompressedVideo.load(video.save(tmp_path / "t.fsv")).header.tile == TileLayout(32, 8)


def test_a_resized_clip_may_be_larger_than_the_model_saw(make_video, tmp_path):
    video = make_video(size_fit="resize", height=720, width=1280)
    assert CompressedVideo.load(video.save(tmp_path / "r.fsv")).header.height == 720


def test_lazy_and_eager_loading_agree(make_video, tmp_path):
    path = make_video(quantization="int4").save(tmp_path / "clip.fsv")
    lazy, eager = CompressedVideo.load(path), CompressedVideo.load(path, lazy=False)
    path.unlink()
    assert all(isinstance(window, LatentWindow) for window in eager.windows)
    with pytest.raises(FsvError, match="clip.fsv: cannot be read"):
        lazy.windows[0]


def test_a_reader_is_a_sequence(fsv_file):
    reader = FsvReader(fsv_file)
    assert len(reader) == 2
    assert [window.start for window in reader] == [0, 8]
    assert reader[-1].start == 8
    assert [window.start for window in reader[:1]] == [0]
    with pytest.raises(IndexError):
        reader[2]


def test_a_reader_travels_to_other_processes(fsv_file):
    reader = pickle.loads(pickle.dumps(FsvReader(fsv_file)))
    assert torch.equal(reader[1].latents, FsvReader(fsv_file)[1].latents)


def test_saving_a_loaded_clip_copies_its_bytes(make_video, tmp_path):
    path = make_video(quantization="int4").save(tmp_path / "one.fsv")
    copied = CompressedVideo.load(path).save(tmp_path / "two.fsv")
    assert copied.read_bytes() == path.read_bytes()


def test_saving_over_itself_keeps_the_clip_readable(make_video, tmp_path):
    path = make_video().save(tmp_path / "clip.fsv")
    video = CompressedVideo.load(path)
    video.header = replace(video.header, quantization="int8")
    video.save(path, overwrite=True)
    assert video.windows[0].latents.shape == (5, 3, 3, 3)
    assert CompressedVideo.load(path).header.quantization == "int8"


def test_windows_must_cover_the_clip(make_video):
    video = make_video()
    with pytest.raises(FsvError, match="num_frames: the windows cover 8 frames, the header says 11"):
        CompressedVideo(video.header, video.windows[:1])
    with pytest.raises(FsvError, match="start: a window begins at frame 8, the one before it ends at 0"):
        CompressedVideo(video.header, video.windows[1:])


@pytest.mark.parametrize(
    ("gaps", "message"),
    [
        ([], "gaps: the window at frame 0 keeps no frame"),
        ([-1, 2], "gaps: the first must be >= 0 and the others >= 1"),
        ([0, 0], "gaps: the first must be >= 0 and the others >= 1"),
        ([0, 8], "gaps: the last kept frame 8 of the window at frame 0 lies beyond its 8 frames"),
        ([4, 4], "gaps: the last kept frame 8 of the window at frame 0 lies beyond its 8 frames"),
    ],
)
def test_gaps_outside_the_window_are_refused(gaps, message):
    with pytest.raises(FsvError, match=message):
        LatentWindow(
            start=0,
            num_frames=8,
            gaps=torch.tensor(gaps, dtype=torch.int64),
            latents=torch.zeros(5, len(gaps), 3, 3),
        )


def test_a_window_needs_latents_for_every_gap():
    with pytest.raises(FsvError, match="latents: 2 frames of latents for 1 gaps"):
        LatentWindow(start=0, num_frames=8, gaps=torch.tensor([0]), latents=torch.zeros(5, 2, 3, 3))


def test_a_file_that_changed_is_noticed(make_video, tmp_path):
    path = make_video().save(tmp_path / "clip.fsv")
    video = copy.copy(CompressedVideo.load(path))
    make_video(quantization="int8").save(path, overwrite=True)
    with pytest.raises(FsvError, match="clip.fsv: the file changed since it was opened"):
        video.windows[0]


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(FsvError, match="none.fsv: cannot be read \\(No such file"):
        CompressedVideo.load(tmp_path / "none.fsv")
    with pytest.raises(FsvError, match="cannot be read \\(Is a directory"):
        CompressedVideo.load(tmp_path)
