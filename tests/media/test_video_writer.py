from __future__ import annotations

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from media_clips import largest_file, photo_clip, psnr
from PIL import Image

from diffusers_vidvae.media import MediaError, MediaWarning, VideoReader, VideoWriter


@pytest.mark.parametrize("size", [(96, 128), (95, 127), (96, 127), (95, 128), (1, 1), (2, 2), (17, 9)])
def test_h264_keeps_every_size_and_frame(tmp_path, size):
    clip = photo_clip(5, *size)
    with VideoWriter(tmp_path / "out.mp4", 24, crf=10) as writer:
        writer.write(clip)
    reader = VideoReader(tmp_path / "out.mp4")
    batch = reader.read()
    assert batch.data.shape == clip.shape
    even = size[0] % 2 == 0 and size[1] % 2 == 0
    assert reader.info.pixel_format == ("yuv420p" if even else "yuv444p")
    if min(size) > 16:
        assert psnr(batch.data, clip) > 36


@pytest.mark.parametrize("name", ["out.mkv", "out.webp", "frames"])
@pytest.mark.parametrize("size", [(96, 128), (95, 127), (1, 1)])
def test_lossless_output_reads_back_bit_for_bit(tmp_path, name, size):
    clip = photo_clip(4, *size)
    with VideoWriter(tmp_path / name, 24, lossless=True) as writer:
        writer.write(clip)
    if name == "frames":
        assert sorted(os.listdir(tmp_path / name)) == [f"frame_{i:05d}.png" for i in range(4)]
        read = np.stack([np.asarray(Image.open(tmp_path / name / f"frame_{i:05d}.png")) for i in range(4)])
    else:
        read = VideoReader(tmp_path / name).read().data
    np.testing.assert_array_equal(read, clip)


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv", "out.webm", "out.gif", "out.webp"])
def test_every_format_keeps_size_frames_and_length(tmp_path, name):
    clip = photo_clip(6, 95, 127)
    with VideoWriter(tmp_path / name, 20) as writer:
        writer.write(clip)
    batch = VideoReader(tmp_path / name).read()
    assert batch.data.shape == clip.shape
    assert batch[5].end_seconds == pytest.approx(0.3, abs=2e-3)
    assert psnr(batch.data, clip) > 30


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 30000 / 1001, 24, 60, Fraction(179, 6), 1, 12.5])
def test_frame_rate_is_exact(tmp_path, clip, fps):
    with VideoWriter(tmp_path / "out.mp4", fps) as writer:
        writer.write(clip)
    info = VideoReader(tmp_path / "out.mp4").info
    assert info.fps == writer.fps == Fraction(fps).limit_denominator(1001)
    assert info.num_frames == len(clip)
    assert info.duration_seconds == pytest.approx(len(clip) / float(fps), abs=1e-4)


def test_colours_are_tagged_as_they_were_converted(tmp_path, clip):
    with VideoWriter(tmp_path / "out.mp4", 24, crf=4) as writer:
        writer.write(clip)
    reader = VideoReader(tmp_path / "out.mp4")
    assert (reader.info.color_matrix, reader.info.color_range) == ("bt709", "limited")
    mean_error = (reader.read().data.astype(float) - clip).mean(axis=(0, 1, 2))
    assert np.abs(mean_error).max() < 0.3


def test_lower_crf_is_closer_and_larger(tmp_path, clip):
    sizes, errors = [], []
    for crf in (8, 35):
        with VideoWriter(tmp_path / f"{crf}.mp4", 24, crf=crf) as writer:
            writer.write(clip)
        sizes.append(writer.path.stat().st_size)
        errors.append(psnr(VideoReader(writer.path).read().data, clip))
    assert sizes[0] > sizes[1] and errors[0] > errors[1] + 5


def test_frames_can_come_in_any_portions(tmp_path, clip, clip_file):
    batch = VideoReader(clip_file).read()
    with VideoWriter(tmp_path / "out.mkv", 24, lossless=True) as writer:
        writer.write(clip[0])
        writer.write(clip[1:5])
        writer.write(batch[5])
        writer.write(list(clip[6:]))
    assert writer.num_frames == len(clip)
    np.testing.assert_array_equal(VideoReader(tmp_path / "out.mkv").read().data, clip)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_given_times_are_kept(tmp_path, clip, name):
    times = np.array([5.0, 5.1, 5.15, 5.9])
    with VideoWriter(tmp_path / name, 24) as writer:
        writer.write(clip[:4], pts_seconds=times)
    batch = VideoReader(tmp_path / name).read()
    np.testing.assert_allclose(batch.pts_seconds, times - 5.0, atol=1e-3)


def test_times_that_do_not_grow_are_refused(tmp_path, clip):
    with VideoWriter(tmp_path / "out.mp4", 24) as writer:
        with pytest.raises(MediaError, match="frame 1 at 0.5 s does not come after the one before it"):
            writer.write(clip[:2], pts_seconds=[0.5, 0.5])


def test_sample_aspect_ratio_survives(tmp_path, clip):
    with VideoWriter(tmp_path / "out.mp4", 24, sample_aspect_ratio=Fraction(4, 3)) as writer:
        writer.write(clip)
    assert VideoReader(tmp_path / "out.mp4", square_pixels=False).info.sample_aspect_ratio == Fraction(4, 3)
    assert VideoReader(tmp_path / "out.mp4").info.width == 171


def test_existing_file_is_kept_without_overwrite(tmp_path, clip):
    path = tmp_path / "out.mp4"
    path.write_text("precious")
    with pytest.raises(MediaError, match="out.mp4: exists already; overwrite=True replaces it"):
        VideoWriter(path, 24)
    assert path.read_text() == "precious"
    with VideoWriter(path, 24, overwrite=True) as writer:
        writer.write(clip)
    assert len(VideoReader(path).read()) == len(clip)


def test_file_that_appears_while_writing_is_kept(tmp_path, clip):
    path = tmp_path / "out.mp4"
    with pytest.raises(MediaError, match="exists already"):
        with VideoWriter(path, 24) as writer:
            writer.write(clip)
            path.write_text("precious")
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.gif", "out.webp", "frames"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_writing_leaves_nothing_behind(tmp_path, clip, name, error):
    with pytest.raises(error):
        with VideoWriter(tmp_path / name, 24) as writer:
            writer.write(clip)
            assert not (tmp_path / name).exists()
            raise error
    assert os.listdir(tmp_path) == []


def test_interruption_keeps_the_file_that_was_to_be_overwritten(tmp_path, clip):
    path = tmp_path / "out.mp4"
    path.write_text("precious")
    with pytest.raises(KeyboardInterrupt):
        with VideoWriter(path, 24, overwrite=True) as writer:
            writer.write(clip)
            raise KeyboardInterrupt
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "frames"])
def test_no_frames_make_no_file(tmp_path, name):
    with pytest.raises(MediaError, match=f"{name}: no frames were written"):
        with VideoWriter(tmp_path / name, 24):
            pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.gif", "frames"])
def test_full_disk_is_named_and_leaves_nothing_behind(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)
    with pytest.raises(MediaError, match=rf"{name}: not enough disk space \(.*\d+ bytes are free\)"):
        with largest_file(20_000), VideoWriter(tmp_path / name, 24) as writer:
            for frame in noise:
                writer.write(frame)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out.xyz", {}, "the ending must be one of .mp4, .m4v, .mov, .mkv, .webm, .gif, .webp, or none for a folder"),
        ("out.mp4", {"codec": "h265"}, "codec must be one of h264, vp9, ffv1, gif, webp, png, got 'h265'"),
        ("out.mp4", {"codec": "ffv1"}, "ffv1 needs a name ending in '.mkv', got '.mp4'"),
        ("out.mp4", {"lossless": True}, "h264 is not lossless; use .mkv"),
        ("out.mp4", {"crf": 60}, "crf must lie between 0 and 51 for h264, got 60"),
        ("out.gif", {"crf": 20}, "crf is an option of h264 and vp9, not of gif"),
        ("out.gif", {"audio_from": "x.mp4"}, "gif holds no sound"),
        ("out.mp4", {"audio_from": "x.mp4"}, "x.mp4: no such file"),
        ("out.mp4", {"fps": 0}, "fps must lie between 0 and 1000000, got 0"),
        ("nowhere/out.mp4", {}, "the folder .*nowhere does not exist"),
        ("out.mp4", {"preset": "warp"}, "preset must be one of ultrafast, .*, got 'warp'"),
        ("out.mp4", {"pixel_format": "rgb24"}, "pixel_format must be one of yuv420p, yuv444p, got 'rgb24'"),
    ],
)
def test_impossible_options_are_refused_and_leave_nothing_behind(tmp_path, name, options, message):
    with pytest.raises(MediaError, match=message):
        VideoWriter(tmp_path / name, **{"fps": 24, **options})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((4, 8, 8), np.uint8), r"got uint8 \(4, 8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), r"got float32 \(8, 8, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"got uint8 \(2, 3, 8, 8\)"),
    ],
)
def test_frames_of_another_kind_are_refused(tmp_path, frames, message):
    with pytest.raises(MediaError, match=message):
        VideoWriter(tmp_path / "out.mp4", 24).write(frames)
    assert os.listdir(tmp_path) == []


def test_frames_of_another_size_are_refused(tmp_path, clip):
    with pytest.raises(MediaError, match="all frames must have the first one's size 128x96, frame 12 is 128x90"):
        with VideoWriter(tmp_path / "out.mp4", 24) as writer:
            writer.write(clip)
            writer.write(clip[:, :90])
    assert os.listdir(tmp_path) == []


def test_odd_size_in_420_is_refused(tmp_path, clip):
    with pytest.raises(MediaError, match="yuv420p needs an even width and height, got 127x96"):
        VideoWriter(tmp_path / "out.mp4", 24, pixel_format="yuv420p").write(clip[:, :, :127])


def test_writing_after_the_end_is_refused(tmp_path, clip):
    with VideoWriter(tmp_path / "out.mp4", 24) as writer:
        writer.write(clip)
    with pytest.raises(MediaError, match="out.mp4: the file is finished"):
        writer.write(clip)
    assert len(VideoReader(tmp_path / "out.mp4").read()) == len(clip)


def test_abandoned_writer_leaves_nothing_behind(tmp_path, clip):
    writer = VideoWriter(tmp_path / "out.mp4", 24)
    writer.write(clip)
    del writer
    assert os.listdir(tmp_path) == []


def test_empty_folder_may_be_filled(tmp_path, clip):
    (tmp_path / "frames").mkdir()
    with VideoWriter(tmp_path / "frames", 24) as writer:
        writer.write(clip[:2])
    assert len(os.listdir(tmp_path / "frames")) == 2
    with pytest.raises(MediaError, match="frames: exists already; overwrite=True replaces it"):
        VideoWriter(tmp_path / "frames", 24)


def test_frame_folder_is_replaced_only_if_it_holds_nothing_else(tmp_path, clip):
    folder = tmp_path / "frames"
    for num_frames in (3, 2):
        with VideoWriter(folder, 24, overwrite=True) as writer:
            writer.write(clip[:num_frames])
    assert len(os.listdir(folder)) == 2
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(MediaError, match=r"holds other files than frames \(thesis.txt\)"):
        VideoWriter(folder, 24, overwrite=True)


def audio_samples(path) -> np.ndarray:
    """The first sound track as mono samples at 44.1 kHz, beginning at the file's time 0."""
    with av.open(path) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=44_100)
        pieces, start = [], None
        for frame in container.decode(audio=0):
            start = float(frame.pts * frame.time_base) if start is None else start
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
    return np.concatenate([np.zeros(round(max(0, start) * 44_100)), *pieces])


@pytest.mark.parametrize("source", ["flower.mp4", "crystal.webm", "office_fast_pan_1080p.mp4"])
@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm"])
def test_sound_is_carried_over_in_step_with_the_picture(tmp_path, shared_media, clip, source, ending):
    source = shared_media / "clips" / source
    path = tmp_path / f"out{ending}"
    with VideoWriter(path, 12, audio_from=source) as writer:
        writer.write(clip)
    before, after = audio_samples(source)[:40_000], audio_samples(path)[:40_000]
    spectrum = np.fft.rfft(before, 2**17) * np.conj(np.fft.rfft(after, 2**17))
    lag = int(np.argmax(np.fft.irfft(spectrum)))
    assert min(lag, 2**17 - lag) <= 44  # 1 ms
    assert VideoReader(path).info.has_audio
    assert len(audio_samples(path)) / 44_100 == pytest.approx(1.0, abs=0.06)


def test_sound_is_copied_where_the_container_can_hold_it(tmp_path, shared_media, clip):
    source = shared_media / "clips" / "office_fast_pan_1080p.mp4"
    with VideoWriter(tmp_path / "out.mp4", 12, audio_from=source) as writer:
        writer.write(clip)
    with av.open(source) as before, av.open(tmp_path / "out.mp4") as after:
        kept = [bytes(packet) for packet in after.demux(audio=0) if packet.size]
        assert kept == [bytes(packet) for packet in before.demux(audio=0) if packet.size][: len(kept)]


def test_sound_begins_where_it_is_asked_to(tmp_path, shared_media, clip):
    source = shared_media / "clips" / "friday.mp4"
    with VideoWriter(tmp_path / "out.mkv", 12, audio_from=source, audio_start_seconds=2.0) as writer:
        writer.write(clip)
    before, after = audio_samples(source)[88_200:120_000], audio_samples(tmp_path / "out.mkv")[:31_800]
    spectrum = np.fft.rfft(before, 2**17) * np.conj(np.fft.rfft(after, 2**17))
    lag = int(np.argmax(np.fft.irfft(spectrum)))
    assert min(lag, 2**17 - lag) <= 44


def test_source_without_sound_is_announced(tmp_path, clip, clip_file):
    with pytest.warns(MediaWarning, match="clip.mkv: holds no sound; the video is written without"):
        with VideoWriter(tmp_path / "out.mp4", 24, audio_from=clip_file) as writer:
            writer.write(clip)
    assert not VideoReader(tmp_path / "out.mp4").info.has_audio


def test_what_fails_in_the_background_is_raised_and_leaves_nothing(tmp_path, clip, monkeypatch):
    from diffusers_vidvae.media.encoding import EncodedFile

    def fail(self, copied, time, duration):
        raise KeyboardInterrupt if time > 0.1 else OSError("the disk is gone")

    monkeypatch.setattr(EncodedFile, "write", fail)
    with pytest.raises(MediaError, match=r"out\.mp4: cannot be written \(the disk is gone\)\."):
        with VideoWriter(tmp_path / "out.mp4", 24) as writer:
            writer.write(clip)
    assert list(tmp_path.iterdir()) == []


def test_frames_may_be_changed_after_they_were_handed_over(tmp_path, clip):
    buffer = np.empty_like(clip[0])
    for name in ("out.mkv", "frames"):
        with VideoWriter(tmp_path / name, 24, lossless=name == "out.mkv") as writer:
            for frame in clip:
                buffer[:] = frame
                writer.write(buffer)
        np.testing.assert_array_equal(VideoReader(tmp_path / name).read().data, clip)


def test_a_pipelines_list_of_images_is_written(tmp_path, clip):
    with VideoWriter(tmp_path / "out.mkv", 8, lossless=True) as writer:
        writer.write([Image.fromarray(frame) for frame in clip])
    np.testing.assert_array_equal(VideoReader(tmp_path / "out.mkv").read().data, clip)
