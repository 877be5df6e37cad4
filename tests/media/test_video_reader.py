from __future__ import annotations

import os
import tracemalloc
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from media_clips import photo_clip

from diffusers_vidvae.media import FrameBatch, MediaError, MediaWarning, VideoReader, VideoWriter, read_video


def test_iterating_gives_every_frame_with_its_time(clip, clip_file):
    frames = list(VideoReader(clip_file))
    np.testing.assert_array_equal(np.stack([frame.data for frame in frames]), clip)
    np.testing.assert_allclose([frame.pts_seconds for frame in frames], np.arange(len(clip)) / 24, atol=1e-3)
    np.testing.assert_allclose([frame.duration_seconds for frame in frames], 1 / 24, atol=1.1e-3)


def test_info_says_what_the_file_is(clip_file):
    info = VideoReader(clip_file).info
    assert (info.width, info.height, info.fps) == (128, 96, 24)
    assert (info.codec, info.container, info.bit_depth) == ("ffv1", "matroska,webm", 8)
    assert not info.has_audio and not info.has_alpha and not info.is_hdr
    assert info.duration_seconds == pytest.approx(0.5)


def test_chunks_join_to_the_whole_clip(clip, clip_file):
    chunks = list(VideoReader(clip_file).iter_chunks(5))
    assert [len(chunk) for chunk in chunks] == [5, 5, 2]
    assert all(isinstance(chunk, FrameBatch) for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate([chunk.data for chunk in chunks]), clip)


def test_iterators_of_one_reader_do_not_disturb_each_other(clip, clip_file):
    reader = VideoReader(clip_file)
    for first, second in zip(reader, reader, strict=True):
        np.testing.assert_array_equal(first.data, second.data)


def test_memory_does_not_grow_with_the_clip(tmp_path):
    peaks = []
    for num_frames in (20, 120):
        path = tmp_path / f"{num_frames}.mp4"
        frame = photo_clip(1, 240, 320)
        with VideoWriter(path, 30, preset="ultrafast") as writer:
            for _ in range(num_frames):
                writer.write(frame)
        tracemalloc.start()
        for chunk in VideoReader(path).iter_chunks(8):
            del chunk
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_range_by_index(clip, clip_file):
    reader = VideoReader(clip_file)
    np.testing.assert_array_equal(reader.read(3, 7).data, clip[3:7])
    np.testing.assert_array_equal(reader.read(stop=2).data, clip[:2])
    np.testing.assert_array_equal(reader.read(10, 1000).data, clip[10:])


def test_range_by_time_holds_the_frames_that_are_on_screen(clip, clip_file):
    reader = VideoReader(clip_file)
    np.testing.assert_array_equal(reader.read_seconds(3.5 / 24, 4.5 / 24).data, clip[3:5])
    np.testing.assert_array_equal(reader.read_seconds(0.49, 60).data, clip[11:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda reader: reader.read(5, 5), "frames 5 to 5 were asked for; a range needs 0 <= start < stop"),
        (lambda reader: reader.read(-1), "a range needs 0 <= start"),
        (lambda reader: reader.read(12), "frame 12 was asked for, but the clip ends before it"),
        (lambda reader: reader.read_seconds(2, 1), "2 to 1 seconds were asked for"),
        (lambda reader: reader.read_seconds(0.6, 1), r"no frame is shown from 0.6 to 1 s.*lasts 0\.500 s"),
        (
            lambda reader: VideoReader(reader.path, stream=1),
            r"video stream 1 was asked for, the file has 1 \(0 to 0\)",
        ),
    ],
)
def test_impossible_range_is_refused(clip_file, call, message):
    with pytest.raises(MediaError, match=f"clip.mkv: .*{message}"):
        call(VideoReader(clip_file))


def test_chunks_of_no_frames_are_refused(clip_file):
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        next(VideoReader(clip_file).iter_chunks(0))


def test_closed_reader_is_refused(clip_file):
    with VideoReader(clip_file) as reader:
        pass
    with pytest.raises(MediaError, match="the reader is closed"):
        iter(reader)


def test_read_video_reads_a_stretch_at_another_rate(clip_file):
    batch, info = read_video(clip_file, fps=12, start_seconds=0.25, stop_seconds=0.5)
    assert len(batch) == 3 and info.fps == 24
    np.testing.assert_allclose(batch.pts_seconds, 0.25 + np.arange(3) / 12)


def test_second_video_stream_can_be_chosen(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(path, "w") as container:
        streams = []
        for size in (32, 48):
            stream = container.add_stream("ffv1", rate=10)
            stream.width = stream.height = size
            stream.pix_fmt = "bgr0"
            streams.append(stream)
        for level, stream in zip((50, 200), streams, strict=True):
            picture = np.full((stream.height, stream.width, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")))
            container.mux(stream.encode(None))
    assert VideoReader(path).info.num_video_streams == 2
    second = VideoReader(path, stream=1).read()
    assert second.data.shape == (1, 48, 48, 3) and (second.data == 200).all()


def test_frames_that_change_size_on_the_way_come_in_the_first_one_s_size(tmp_path):
    path = tmp_path / "changing.h264"
    with open(path, "wb") as file:
        for size in (64, 32):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width = encoder.height = size
            encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 25), Fraction(25)
            picture = av.VideoFrame.from_ndarray(np.full((size, size, 3), size, np.uint8), format="rgb24")
            for packet in [*encoder.encode(picture.reformat(format="yuv420p")), *encoder.encode(None)]:
                file.write(bytes(packet))
    batch = VideoReader(path).read()
    assert batch.data.shape == (2, 64, 64, 3)
    np.testing.assert_allclose(batch.data.mean(axis=(1, 2, 3)), [64, 32], atol=2)


def test_interlaced_clip_is_announced(tmp_path, clip):
    path = tmp_path / "interlaced.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": "tff=1"})
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.warns(MediaWarning, match="interlaced.mp4: its frames are interlaced and are read as they are"):
        assert VideoReader(path).info.is_interlaced


def test_cover_picture_is_not_taken_for_a_video(tmp_path, shared_media):
    path = tmp_path / "cover.mp4"
    with av.open(shared_media / "clips" / "office_fast_pan_1080p.mp4") as source, av.open(path, "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        target.mux(cover.encode(av.VideoFrame(64, 64, "yuvj420p")))
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with pytest.raises(MediaError, match="holds no video stream"):
        VideoReader(path)


def test_clip_trimmed_by_an_edit_list_loses_nothing(tmp_path, clip):
    with VideoWriter(tmp_path / "whole.mp4", 24) as writer:
        writer.write(clip)
    path = tmp_path / "trimmed.mp4"
    with av.open(tmp_path / "whole.mp4") as source, av.open(path, "w", options={"use_editlist": "1"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is None:
                continue
            shift = int(Fraction(4, 24) / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            target.mux(packet)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(VideoReader(path).read()) == len(clip) - 4


def test_file_cut_between_two_packets_is_told_from_a_whole_one(tmp_path, clip):
    with VideoWriter(tmp_path / "whole.mp4", 24) as writer:
        writer.write(clip)
    with av.open(tmp_path / "whole.mp4") as container:
        packets = sorted((p.pos, p.size) for p in container.demux(video=0) if p.size)
    moved = tmp_path / "moov_first.mp4"
    with av.open(tmp_path / "whole.mp4") as source, av.open(moved, "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with av.open(moved) as container:
        packets = sorted((p.pos, p.size) for p in container.demux(video=0) if p.size)
    moved.write_bytes(moved.read_bytes()[: packets[7][0] + packets[7][1]])
    with pytest.warns(MediaWarning, match=r"moov_first.mp4: \d of 12 declared frames are lost, \d decoded"):
        list(VideoReader(moved))


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("ending", [".mkv", ".mp4", ".webm", ".gif", ".webp"])
def test_truncated_file_ends_in_a_media_error_or_in_frames(tmp_path, clip, ending, fraction):
    path = tmp_path / f"clip{ending}"
    with VideoWriter(path, 24) as writer:
        writer.write(clip)
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        try:
            assert 1 <= len(list(VideoReader(path))) <= len(clip)
        except MediaError as error:
            assert path.name in str(error)


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bytes_end_in_a_media_error_or_in_frames(tmp_path, clip, seed):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 24) as writer:
        writer.write(clip)
    rng = np.random.default_rng(seed)
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[rng.integers(0, len(content), 60)] = rng.integers(0, 256, 60)
    path.write_bytes(content.tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        try:
            list(VideoReader(path))
        except MediaError as error:
            assert "clip.mp4" in str(error)


def test_missing_file_folder_and_pipe_are_refused(tmp_path):
    with pytest.raises(MediaError, match="nowhere.mp4: no such file"):
        VideoReader(tmp_path / "nowhere.mp4")
    with pytest.raises(MediaError, match="is a folder without numbered pictures"):
        VideoReader(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaError, match="pipe: is not a regular file"):
        VideoReader(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="clip.mp4: cannot be read"):
        VideoReader(tmp_path / "file" / "clip.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_read_permission_is_refused(tmp_path):
    path = tmp_path / "secret.mp4"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(MediaError, match=r"secret.mp4: cannot be read \(Permission denied\)"):
        VideoReader(path)


@pytest.mark.parametrize(
    "name", ["a:b.mkv", "100%.mkv", "%03d.mkv", "clip #1?.mkv", "-y.mkv", "ünï 🎬.mkv", "file:x.mkv"]
)
def test_any_file_name_can_be_written_and_read(tmp_path, clip, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VideoWriter(name, 24, lossless=True) as writer:
        writer.write(clip[:2])
    assert os.listdir(tmp_path) == [name]
    np.testing.assert_array_equal(VideoReader(name).read().data, clip[:2])


def test_errors_are_value_errors():
    assert issubclass(MediaError, ValueError)


def test_frame_batch_checks_and_prints_shapes():
    batch = FrameBatch(np.zeros((2, 4, 6, 3), np.uint8), np.zeros(2), np.ones(2))
    assert repr(batch) == "FrameBatch(data=uint8 (2, 4, 6, 3), pts_seconds=0.000..0.000)"
    assert batch[1].end_seconds == 1.0
    with pytest.raises(ValueError, match=r"pts_seconds has shape \(3,\) for 2 frames"):
        FrameBatch(batch.data, np.zeros(3), np.ones(2))
    with pytest.raises(ValueError, match=r"got float32 \(2, 4, 6, 3\)"):
        FrameBatch(batch.data.astype(np.float32), np.zeros(2), np.ones(2))
