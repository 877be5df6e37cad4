"""Every clip and photo of the shared media table: size, rate, frame count and times as ffprobe counted them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from diffusers_vidvae.media import MediaWarning, VideoReader, load_image, media_kind


@dataclass(frozen=True)
class Clip:
    name: str
    width: int
    height: int
    fps: float
    num_frames: int
    start: float = 0.0
    end: float | None = None


# Sizes as shown: after rotation, with square pixels.
CLIPS = [
    Clip("flower.mp4", 960, 540, 30000 / 1001, 150, end=5.005),
    Clip("friday.mp4", 640, 480, 30, 185),
    Clip("crystal.webm", 720, 480, 30, 359),
    Clip("bottles_long.mp4", 640, 360, 179 / 6, 1189, end=39.8547),
    Clip("tears_of_steel_cuts.mp4", 800, 332, 24, 166),
    Clip("london_pan_60fps.mp4", 320, 240, 60, 300),
    Clip("office_fast_pan_1080p.mp4", 1920, 1080, 30, 30),
    Clip("office_fast_pan_720p.mp4", 1280, 720, 30, 30),
    Clip("london_portrait_720p_av1_hdr.mp4", 720, 1280, 30000 / 1001, 127),
    Clip("london_portrait_720p.mp4", 720, 1280, 30000 / 1001, 90),
    Clip("bear_odd_161x121.webm", 161, 121, 29.97, 30),
    Clip("roadtrip_10bit.webm", 426, 240, 24000 / 1001, 72),
    Clip("skyline_vfr_7f.mp4", 1280, 720, 630000 / 47281, 7),
    Clip("crystal_vfr.mp4", 360, 240, 1425 / 74, 95),
    Clip("keyboard_rot90.mov", 320, 568, 30, 3),
    Clip("keyboard_rot0.mov", 568, 320, 30, 3),
    Clip("flower_alpha.webm", 320, 180, 30000 / 1001, 45),
    Clip("crystal.gif", 180, 120, 10, 20, end=2.0),
    Clip("flower_1frame.mp4", 960, 540, 30000 / 1001, 1),
    Clip("bbb_anamorphic_start10s.mp4", 1137, 640, 30, 120, start=10.0, end=14.0),
]


@pytest.fixture
def clips(shared_media):
    return shared_media / "clips"


@pytest.mark.filterwarnings("ignore::diffusers_vidvae.media.MediaWarning")
@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
def test_clip_has_its_size_rate_start_and_last_frame(clips, clip):
    reader = VideoReader(clips / clip.name, tone_map=False)
    assert (reader.info.width, reader.info.height) == (clip.width, clip.height)
    assert float(reader.info.fps) == pytest.approx(clip.fps, rel=1e-3)
    assert reader.info.start_seconds == pytest.approx(clip.start)
    assert reader.info.num_frames in (clip.num_frames, None)
    tail = reader.read(clip.num_frames - 2 if clip.num_frames > 1 else 0)
    assert tail.data.shape[1:] == (clip.height, clip.width, 3)
    assert len(tail) == min(2, clip.num_frames)
    if clip.end is not None:
        assert tail[len(tail) - 1].end_seconds == pytest.approx(clip.end, abs=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::diffusers_vidvae.media.MediaWarning")
@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
def test_clip_decodes_every_frame_in_order(clips, clip):
    times = [(frame.pts_seconds, frame.end_seconds) for frame in VideoReader(clips / clip.name, tone_map=False)]
    assert len(times) == clip.num_frames
    assert all(end == pytest.approx(start) for (_, end), (start, _) in zip(times, times[1:], strict=False))


@pytest.mark.parametrize("name", ["crystal_vfr.mp4", "skyline_vfr_7f.mp4", "roadtrip_10bit.webm", "crystal.gif"])
def test_seeking_gives_the_frames_of_reading_from_the_start(clips, name):
    reader = VideoReader(clips / name)
    whole = reader.read()
    for start in {0, len(whole) // 2, len(whole) - 1}:
        by_index = reader.read(start, start + 3)
        np.testing.assert_array_equal(by_index.data, whole.data[start : start + 3])
        np.testing.assert_allclose(by_index.pts_seconds, whole.pts_seconds[start : start + 3])
        middle = whole.pts_seconds[start] + whole.duration_seconds[start] / 2
        by_time = reader.read_seconds(middle, middle + 1e-3)
        np.testing.assert_array_equal(by_time.data, whole.data[start : start + 1])


def test_seeking_deep_into_a_clip_gives_the_frames_of_reading_from_the_start(clips):
    reader = VideoReader(clips / "tears_of_steel_cuts.mp4")
    expected = [frame for index, frame in enumerate(reader) if 120 <= index < 123]
    np.testing.assert_array_equal(reader.read(120, 123).data, np.stack([frame.data for frame in expected]))
    by_time = reader.read_seconds(expected[0].pts_seconds, expected[2].end_seconds)
    np.testing.assert_array_equal(by_time.pts_seconds, [frame.pts_seconds for frame in expected])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bottles_long.mp4", "crystal.webm", "london_pan_60fps.mp4", "friday.mp4"])
def test_every_thirtieth_frame_is_found_by_index_and_by_time(clips, name):
    reader = VideoReader(clips / name)
    for index, frame in enumerate(reader):
        if index % 30 == 7:
            np.testing.assert_array_equal(reader.read(index, index + 1).data[0], frame.data)
            np.testing.assert_array_equal(
                reader.read_seconds(frame.pts_seconds, frame.end_seconds).data[0], frame.data
            )


def test_variable_frame_rate_keeps_its_times(clips):
    batch = VideoReader(clips / "crystal_vfr.mp4").read()
    gaps = np.diff(batch.pts_seconds)
    assert gaps.min() == pytest.approx(1 / 30) and gaps.max() == pytest.approx(0.567, abs=1e-3)
    np.testing.assert_allclose(batch.duration_seconds[:-1], gaps)


def test_rotated_clip_is_turned_upright(clips):
    reader = VideoReader(clips / "keyboard_rot90.mov")
    assert reader.info.rotation == -90
    assert (reader.info.stored_width, reader.info.stored_height) == (568, 320)
    import av

    stored = next(av.open(clips / "keyboard_rot90.mov").decode(video=0)).to_ndarray(format="rgb24")
    clockwise = np.rot90(stored, -1).astype(float)
    assert np.abs(reader.read().data[0] - clockwise).mean() < 3


def test_anamorphic_clip_can_be_read_as_stored(clips):
    reader = VideoReader(clips / "bbb_anamorphic_start10s.mp4", square_pixels=False)
    assert reader.read(0, 1).data.shape == (1, 640, 800, 3)
    assert float(reader.info.sample_aspect_ratio) == pytest.approx(1137 / 800)


def test_times_count_from_the_file_s_own_start(clips):
    reader = VideoReader(clips / "bbb_anamorphic_start10s.mp4")
    assert reader.read_seconds(10.0, 10.1).pts_seconds[0] == 10.0
    with pytest.raises(ValueError, match=r"bbb_anamorphic.*from 0 to 5 s; the clip starts at 10\.000"):
        reader.read_seconds(0, 5)


def test_dropped_alpha_is_announced(clips):
    with pytest.warns(MediaWarning, match="flower_alpha.webm: its alpha channel is dropped"):
        assert VideoReader(clips / "flower_alpha.webm").info.has_alpha


def test_high_dynamic_range_is_tone_mapped_and_announced(clips):
    path = clips / "london_portrait_720p_av1_hdr.mp4"
    with pytest.warns(MediaWarning, match=r"high dynamic range \(PQ\) is tone-mapped"):
        mapped = VideoReader(path)
    with pytest.warns(MediaWarning, match="without tone mapping"):
        flat = VideoReader(path, tone_map=False)
    assert (mapped.info.bit_depth, mapped.info.color_transfer, mapped.info.color_matrix) == (10, "pq", "bt2020")
    bright, dull = (next(iter(reader)).data.astype(float) for reader in (mapped, flat))
    assert bright.std() > 1.5 * dull.std()
    assert bright.max() > 240 > dull.max()


def test_full_range_and_limited_range_of_one_scene_look_alike(clips):
    full = VideoReader(clips / "office_fast_pan_1080p.mp4")
    limited = VideoReader(clips / "office_fast_pan_720p.mp4")
    assert (full.info.color_range, limited.info.color_range) == ("full", "unspecified")
    first = [reader.read(0, 1).data.mean(axis=(0, 1, 2)) for reader in (full, limited)]
    np.testing.assert_allclose(*first, atol=1)


def test_an_ordinary_clip_is_read_without_warnings(clips):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("flower_1frame.mp4", "crystal.gif", "bear_odd_161x121.webm", "skyline_vfr_7f.mp4"):
            VideoReader(clips / name).read()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("coffee.png", (600, 400)),
        ("chelsea.png", (451, 300)),
        ("rocket.jpg", (640, 427)),
        ("china.jpg", (640, 427)),
        ("chelsea_exif6.jpg", (451, 300)),
        ("cat_exif6.jpg", (300, 400)),
    ],
)
def test_photo_is_read_upright_without_warnings(shared_media, name, size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(shared_media / "photos" / name)
    assert (image.size, image.mode) == (size, "RGB")
    assert media_kind(shared_media / "photos" / name) == "image"


def test_exif_orientation_shows_the_picture_it_was_made_from(shared_media):
    turned = np.asarray(load_image(shared_media / "photos" / "chelsea_exif6.jpg"), dtype=float)
    original = np.asarray(load_image(shared_media / "photos" / "chelsea.png"), dtype=float)
    assert np.abs(turned - original).mean() < 4
