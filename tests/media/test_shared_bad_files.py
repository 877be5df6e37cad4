"""Every broken file of the shared media table ends in one clear error, or in its frames and a warning."""

from __future__ import annotations

import shutil
import warnings

import pytest

from diffusers_vidvae.media import (
    MediaError,
    MediaWarning,
    VideoReader,
    VideoWriter,
    load_image,
    load_media,
    media_kind,
)


UNREADABLE = {
    "empty.mp4": r"empty.mp4: the file is empty \(0 bytes\)",
    "text_named.mp4": "text_named.mp4: not a readable video or image",
    "truncated_no_moov.mp4": "truncated_no_moov.mp4: not a readable video or image",
    "malformed_free_box.mp4": "malformed_free_box.mp4: not a readable video or image",
    "fragment_without_moov_track.mp4": "fragment_without_moov_track.mp4: not a readable video or image",
    "encrypted_samples.mp4": "encrypted_samples.mp4: not one video frame can be decoded; 30 packets are damaged",
    "invalid_bitstream.webm": "invalid_bitstream.webm: not one video frame can be decoded; 51 packets are damaged",
    "zero_frames_init_segment.mp4": "zero_frames_init_segment.mp4: not one video frame can be decoded",
    "audio_only.mp4": r"audio_only.mp4: holds no video stream \(it holds: audio\)",
    "no_video_stream.mkv": r"no_video_stream.mkv: holds no video stream \(it holds: subtitle\)",
}

# Frames that decode, and what the warning says about the rest.
DAMAGED = {
    "truncated_mdat_half.mp4": (11, "19 of 30 declared frames are lost, 11 decoded"),
    "corrupted_midstream.mp4": (49, "1 of 50 declared frames are lost, 49 decoded"),
    "one_invalid_nalu.mp4": (29, "1 of 30 declared frames are lost, 29 decoded"),
    "avi_large_length_field.avi": (58, "1 of 59 declared frames are lost, 58 decoded"),
    "decodes_to_garbage.mp4": (864, r"8\d\d of 864 decoded frames are damaged"),
}

# Odd, but whole: frames, width, height.
SOUND = {
    "failing_audio.mp4": (280, 640, 360),
    "first_track_10x12_five_frames.mp4": (5, 10, 12),
    "unordered_50x50.mov": (4, 50, 50),
    "-leading-dash-.mp4": (5, 1, 1),
    "webm_named.mp4": (359, 720, 480),
    "mp4_named.png": (30, 1280, 720),
    "png_named.mp4": (1, 600, 400),
}


@pytest.fixture
def bad(shared_media):
    return shared_media / "bad"


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_file_is_refused_with_its_name_and_the_reason(bad, name):
    with pytest.raises(MediaError, match=UNREADABLE[name]):
        VideoReader(bad / name)
    with pytest.raises(MediaError, match=name):
        load_media(bad / name)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_gives_its_frames_and_says_how_many_are_lost(bad, name):
    num_frames, message = DAMAGED[name]
    reader = VideoReader(bad / name)
    with pytest.warns(MediaWarning, match=f"{name}: {message}"):
        times = [frame.pts_seconds for frame in reader]
    assert len(times) == num_frames
    assert times == sorted(set(times))


@pytest.mark.parametrize("name", SOUND)
def test_odd_but_whole_file_is_read_without_warnings(bad, name):
    num_frames, width, height = SOUND[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        times = []
        for frame in VideoReader(bad / name):
            assert frame.data.shape == (height, width, 3)
            times.append(frame.pts_seconds)
    assert len(times) == num_frames
    assert times == sorted(set(times))


def test_clip_without_a_duration_is_read_to_its_end(bad):
    with pytest.warns(MediaWarning, match="alpha"):
        reader = VideoReader(bad / "no_duration.webm")
    assert reader.info.num_frames is None and reader.info.duration_seconds is None
    assert sum(len(chunk) for chunk in reader.iter_chunks(16)) == 74


def test_clip_that_starts_at_one_second_keeps_its_clock(bad):
    reader = VideoReader(bad / "edit_list_positive_shift.mp4")
    assert (reader.info.start_seconds, reader.info.num_frames) == (1.0, 270)
    assert reader.read_seconds(9.9, 20).pts_seconds[-1] == pytest.approx(10 - 1 / 30)
    assert reader.read(0, 1).data.max() < 40


def test_vvc_is_read_or_refused_by_name(bad):
    try:
        assert sum(1 for _ in VideoReader(bad / "vvc.mp4")) == 120
    except MediaError as error:
        assert "vvc.mp4" in str(error) and "cannot decode" in str(error)


def test_name_with_a_leading_dash_is_read_from_its_own_folder(bad, tmp_path, monkeypatch):
    shutil.copy(bad / "-leading-dash-.mp4", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(VideoReader("-leading-dash-.mp4").read()) == 5


def test_content_decides_what_a_file_is(bad):
    assert media_kind(bad / "mp4_named.png") == "video"
    assert media_kind(bad / "png_named.mp4") == "image"
    assert load_media(bad / "png_named.mp4").image.size == (600, 400)
    assert len(load_media(bad / "mp4_named.png").frames) == 30
    with pytest.raises(MediaError, match="mp4_named.png: not an image"):
        load_image(bad / "mp4_named.png")


def test_truncated_photo_is_refused(bad):
    for load in (load_image, load_media):
        with pytest.raises(MediaError, match="truncated_photo.jpg: the image is damaged .*truncated"):
            load(bad / "truncated_photo.jpg")


def test_photo_whose_data_ends_early_is_read_with_a_warning(bad):
    with pytest.warns(MediaWarning, match="photo_mostly_grey.jpg: its data is damaged"):
        assert load_image(bad / "photo_mostly_grey.jpg").size == (3024, 4032)


def test_failing_sound_does_not_stop_the_video(bad, clip, tmp_path):
    with VideoWriter(tmp_path / "out.mp4", 24, audio_from=bad / "failing_audio.mp4") as writer:
        writer.write(clip)
    assert VideoReader(tmp_path / "out.mp4").info.has_audio


def test_every_shared_bad_file_is_covered(bad):
    elsewhere = {
        "no_duration.webm",
        "edit_list_positive_shift.mp4",
        "vvc.mp4",
        "truncated_photo.jpg",
        "photo_mostly_grey.jpg",
    }
    assert {path.name for path in bad.iterdir()} <= set(UNREADABLE) | set(DAMAGED) | set(SOUND) | elsewhere
