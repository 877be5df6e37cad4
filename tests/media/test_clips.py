"""Everything that counts as a clip gives the same pixels, and what may mean two things is asked about."""

from __future__ import annotations

import gc
import io
import threading
import warnings
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_vidvae.media import (
    FrameBatch,
    MediaError,
    MediaWarning,
    VideoReader,
    VideoWriter,
    media_kind,
    open_clips,
    open_images,
    read_video,
    to_pixels,
)
from diffusers_vidvae.media.inputs import MediaFile, download


@pytest.fixture
def pixels(clip):
    """The clip as models take it, `(1, 3, 12, 96, 128)` in [-1, 1]."""
    return torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def read_quietly(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (clip,) = open_clips(*args, **options)
        return clip.read()


def test_every_form_of_tensor_gives_the_same_pixels(clip, pixels):
    levels = torch.from_numpy(clip)
    unit = levels.float() / 255
    for video in (
        pixels,  # (B, C, T, H, W) in [-1, 1]
        unit.permute(0, 3, 1, 2)[None],  # (B, T, C, H, W) in [0, 1], as diffusers gives
        unit.permute(0, 3, 1, 2),
        unit,
        levels.permute(0, 3, 1, 2),  # (T, C, H, W) uint8, as torchvision and torchcodec give
        levels.permute(0, 3, 1, 2)[None],
        levels,
        pixels[0],  # (C, T, H, W)
        list(pixels[0].unbind(1)),  # frames (C, H, W)
        iter(levels.permute(0, 3, 1, 2)),
    ):
        torch.testing.assert_close(read_quietly(video), pixels, atol=1e-5, rtol=0)


def test_every_form_of_file_gives_the_same_pixels(clip_file, pixels, tmp_path):
    data = clip_file.read_bytes()
    with open(clip_file, "rb") as opened:
        opened.seek(1000)
        for video in (
            clip_file,
            str(clip_file),
            data,
            bytearray(data),
            io.BytesIO(data),
            opened,
            {"bytes": data, "path": None},
            {"bytes": None, "path": str(clip_file)},
            VideoReader(clip_file),
            VideoReader(io.BytesIO(data)),
            read_video(clip_file)[0],
            iter(VideoReader(clip_file)),
            VideoReader(data).iter_chunks(5),
        ):
            torch.testing.assert_close(read_quietly(video), pixels)


def test_readers_of_one_open_file_do_not_disturb_each_other(clip, clip_file):
    reader = VideoReader(io.BytesIO(clip_file.read_bytes()))
    for index, (one, other) in enumerate(zip(reader, reader, strict=True)):
        np.testing.assert_array_equal(one.data, clip[index])
        np.testing.assert_array_equal(other.data, clip[index])


def test_pieces_are_the_clip_cut_and_can_be_had_again(clip_file, pixels):
    (clip,) = open_clips(clip_file)
    for _ in range(2):
        pieces = list(clip.pieces(5))
        assert [piece.shape[2] for piece in pieces] == [5, 5, 2]
        torch.testing.assert_close(torch.cat(pieces, dim=2), pixels)
    assert (clip.height, clip.width, clip.fps, clip.count_frames()) == (96, 128, 24, 12)
    piece = next(clip.cut(3))
    assert piece.pts_seconds == pytest.approx([0, 1 / 24, 2 / 24], abs=1e-3)
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        next(clip.cut(0))


def test_frames_of_eight_bits_stay_so_until_a_piece_is_made(clip_file, clip):
    for video in (clip_file, clip, torch.from_numpy(clip).permute(0, 3, 1, 2), list(clip)):
        (opened,) = open_clips(video)
        for frame, expected in zip(opened, clip, strict=True):
            assert frame.data.dtype == np.uint8
            np.testing.assert_array_equal(frame.to_image(), expected)


def test_frames_of_floats_keep_their_precision(pixels):
    moved = pixels * 0.987
    (opened,) = open_clips(moved)
    assert torch.equal(opened.read(), moved)


def test_iterators_are_read_once_and_only_as_far_as_needed(clip):
    taken = []

    def frames():
        for index, frame in enumerate(clip):
            taken.append(index)
            yield frame

    (opened,) = open_clips(frames(), fps=10)
    next(opened.pieces(3))
    assert taken == [0, 1, 2]
    with pytest.raises(ValueError, match="can be read only once"):
        opened.read()
    with pytest.raises(ValueError, match="an iterator does not tell its number of frames"):
        opened.count_frames()


def test_batches(clip, clip_file, pixels):
    assert len(open_clips([clip, str(clip_file), clip_file.read_bytes(), list(clip), pixels])) == 5
    assert len(open_clips(pixels.expand(3, -1, -1, -1, -1))) == 3
    assert len(open_clips(np.stack([clip, clip]))) == 2
    with pytest.raises(ValueError, match=r"clip 0 has .* \(12, 96, 128\), clip 1 has \(11, 96, 128\)"):
        to_pixels([clip, clip[1:]])


# What may mean two things


@pytest.mark.parametrize(
    ("video", "layouts"),
    [
        (torch.rand(1, 3, 3, 8, 8), "BCTHW or BTCHW"),
        (torch.rand(3, 3, 8, 8), "TCHW or CTHW"),
        (torch.zeros(3, 3, 8, 8, dtype=torch.uint8), "TCHW or CTHW"),
        (torch.rand(3, 8, 8, 3), "CTHW or THWC"),
    ],
)
def test_three_frames_of_three_channels_are_asked_about(video, layouts):
    with pytest.raises(ValueError, match=f"layout is ambiguous: .* may be {layouts}; say which with `layout`"):
        open_clips(video)


def test_layout_settles_it():
    video = torch.rand(1, 3, 3, 8, 8)
    signed = read_quietly(video * 2 - 1)  # only (B, C, T, H, W) has negative values
    torch.testing.assert_close(signed, video * 2 - 1)
    torch.testing.assert_close(read_quietly(video, layout="BTCHW"), video.transpose(1, 2) * 2 - 1)
    torch.testing.assert_close(read_quietly(video, layout="BCTHW", value_range=(0, 1)), video * 2 - 1)
    array = video[0].numpy()
    torch.testing.assert_close(read_quietly(array, layout="TCHW"), video.transpose(1, 2) * 2 - 1)


def test_a_tensor_without_negative_values_is_read_with_a_warning():
    video = torch.rand(1, 3, 5, 8, 8)
    with pytest.warns(
        MediaWarning, match=r"without values below 0 taken to lie in \[-1, 1\]; .* `value_range=\(0, 1\)`"
    ):
        (opened,) = open_clips(video)
    torch.testing.assert_close(opened.read(), video)
    torch.testing.assert_close(read_quietly(video, value_range=(-1, 1)), video)
    torch.testing.assert_close(read_quietly(video, value_range=(0, 1)), video * 2 - 1)
    torch.testing.assert_close(read_quietly(video * 255, value_range=(0, 255)), video * 2 - 1, atol=1e-5, rtol=0)


def test_frames_without_negative_values_are_warned_of_at_their_end():
    frames = list(torch.rand(4, 3, 8, 8))
    (opened,) = open_clips(iter(frames))
    with pytest.warns(MediaWarning, match="frames without values below 0"):
        opened.read()
    read_quietly(iter([*frames, -frames[0]]))


@pytest.mark.parametrize(
    ("video", "options", "message"),
    [
        (torch.rand(1, 5, 3, 8, 8) * 2 - 1, {}, r"lie in \[0, 1\], got .* `value_range` says"),
        (torch.zeros(1, 3, 5, 8, 8, dtype=torch.int64), {}, "must hold uint8 or floats, got a int64 tensor"),
        (torch.zeros(1, 5, 2, 8, 8), {}, r"shape \(B, C, T, H, W\) or .* with C = 3, got .* \(1, 5, 2, 8, 8\)"),
        (np.zeros((5, 8, 8, 3), np.uint8), {"layout": "TCHW"}, "`layout` 'TCHW' needs 1 or 3 or 4 channels at C"),
        (np.zeros((5, 8, 8, 3), np.uint8), {"layout": "XYZ"}, "`layout` must be one of .* got 'XYZ'"),
        (np.zeros((5, 8, 8, 3)), {"value_range": (1, 0)}, r"`value_range` must be \(lowest, highest\), got \(1, 0\)"),
        (np.zeros((5, 8, 8, 3), np.uint8), {"fps": 0}, "`fps` must be positive, got 0"),
        ({"frames": 1}, {}, "A video must be .* got dict"),
        (io.StringIO("text"), {}, "must be binary"),
        (b"", {}, r"the file is empty \(0 bytes\)"),
        (b"no media at all", {}, "not a readable video or image"),
    ],
)
def test_what_is_no_clip_is_refused_in_one_sentence(video, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_clips(video, **options)
    assert str(caught.value).endswith(".")


def test_channels_other_than_three(clip):
    grey = np.ascontiguousarray(clip[..., :1])
    (opened,) = open_clips(grey, channels=1)
    assert opened.read().shape == (1, 1, 12, 96, 128)
    (opened,) = open_clips([Image.fromarray(frame) for frame in clip], channels=1)
    assert opened.read().shape == (1, 1, 12, 96, 128)
    with pytest.warns(MediaWarning, match="alpha"):
        (opened,) = open_clips(np.pad(clip, [(0, 0)] * 3 + [(0, 1)]))
        assert opened.read().shape == (1, 3, 12, 96, 128)


# Times


def test_what_has_times_is_resampled_and_what_has_none_gets_a_rate(clip, clip_file):
    expected = read_video(clip_file, fps=12)[0].data
    for video in (clip_file, VideoReader(clip_file), read_video(clip_file)[0]):
        (opened,) = open_clips(video, fps=12)
        np.testing.assert_array_equal(np.stack([frame.to_image() for frame in opened]), expected)
        assert opened.fps == 12 and opened.count_frames() == 6
    (opened,) = open_clips(clip, fps=29.97002997)
    assert opened.fps == Fraction(30000, 1001) and opened.num_frames == 12
    assert next(opened.cut(3)).pts_seconds == pytest.approx([0, 0.033367, 0.066733], abs=1e-5)
    assert open_clips(clip)[0].fps is None
    assert next(open_clips(clip)[0].cut(3)).pts_seconds is None
    assert float(open_clips(read_video(clip_file)[0])[0].fps) == pytest.approx(24, rel=0.01)


# Folders of pictures


@pytest.mark.parametrize("fps", [24, Fraction(30000, 1001)])
def test_the_folder_that_is_written_is_read_back(clip, tmp_path, fps):
    with VideoWriter(tmp_path / "frames", fps) as writer:
        writer.write(clip)
    assert media_kind(tmp_path / "frames") == "video"
    reader = VideoReader(tmp_path / "frames")
    assert (reader.info.fps, reader.info.num_frames, reader.info.width) == (fps, 12, 128)
    np.testing.assert_array_equal(reader.read().data, clip)
    np.testing.assert_array_equal(reader.read(3, 5).data, clip[3:5])
    (opened,) = open_clips(tmp_path / "frames", fps=fps / 2)
    np.testing.assert_array_equal(np.stack([frame.to_image() for frame in opened]), clip[::2])


def test_a_folder_keeps_uneven_times(clip, tmp_path):
    times = [0.0, 0.04, 0.2, 0.25]
    with VideoWriter(tmp_path / "frames", 25) as writer:
        writer.write(clip[:4], times)
    assert [frame.pts_seconds for frame in VideoReader(tmp_path / "frames")] == pytest.approx(times)


def test_pictures_come_in_the_order_of_their_numbers(clip, tmp_path):
    for index, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / f"shot {index}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (opened,) = open_clips(str(tmp_path), fps=30)  # nothing says their rate, so that it is 30
    assert opened.fps == 30 and opened.count_frames() == 12
    np.testing.assert_array_equal(np.stack([frame.to_image() for frame in opened]), clip)


def test_odd_folders_are_refused_or_warned_of(clip, tmp_path):
    def save(name, frame=clip[0]):
        Image.fromarray(frame).save(tmp_path / name)

    with pytest.raises(MediaError, match="is a folder without numbered pictures"):
        open_clips(tmp_path)
    save("a_1.png")
    save("a_3.png", clip[0][:50])
    with pytest.warns(MediaWarning, match="1 of the numbers from 1 to 3 are missing"):
        (opened,) = open_clips(tmp_path)
    with pytest.raises(MediaError, match=r"a_3\.png: is 128x50, the first picture of its folder is 128x96"):
        opened.read()
    save("b_2.png")
    with pytest.raises(MediaError, match=r"more than one sequence of pictures \(a_1\.png and b_2\.png\)"):
        open_clips(tmp_path)
    (tmp_path / "b_2.png").unlink()
    save("cover.png")
    with pytest.raises(MediaError, match=r"cover\.png: has no number at the end of its name"):
        open_clips(tmp_path)


# Images


def test_every_form_of_image_is_a_clip_of_one_frame(clip, tmp_path):
    Image.fromarray(clip[0]).save(tmp_path / "photo.png")
    expected = torch.from_numpy(clip[0]).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    for image in (
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        (tmp_path / "photo.png").read_bytes(),
        Image.fromarray(clip[0]),
        clip[0],
        expected[0, :, 0],
        expected[:, :, 0],
        clip[:1],
        [clip[0]],
    ):
        (opened,) = open_images(image)
        torch.testing.assert_close(opened.read(), expected)
    assert len(open_images(clip[:3])) == len(open_images([clip[0]] * 3)) == 3
    with pytest.raises(ValueError, match="An empty list holds no image"):
        open_images([])


# Addresses


class Handler(BaseHTTPRequestHandler):
    folder: Path

    def do_GET(self):
        path = self.folder / self.path.split("?")[0].strip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    handler = type("Files", (Handler,), {"folder": tmp_path})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_url_is_downloaded_and_removed_again(server, clip_file, pixels, tmp_path):
    (tmp_path / "clip.mkv").write_bytes(clip_file.read_bytes())
    address = f"{server}/clip.mkv?token=secret"
    torch.testing.assert_close(read_quietly(address), pixels)
    # What a command line makes of it.
    torch.testing.assert_close(read_quietly(Path(f"{server}/clip.mkv")), pixels)
    file = MediaFile.of(address)
    assert file.name == f"{server.rsplit(':', 1)[0]}/clip.mkv" and file.path.is_file()
    path = file.path
    del file
    gc.collect()
    assert not path.exists()


def test_addresses_that_cannot_be_read_are_named(server, tmp_path):
    (tmp_path / "long.mp4").write_bytes(bytes(5000))
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match=r"missing\.mp4: the server answers with status 404\."):
        open_clips(f"{server}/missing.mp4?token=secret")
    with pytest.raises(MediaError, match="larger than the 1000 bytes that are downloaded"):
        download(f"{server}/long.mp4", largest=1000)
    with pytest.raises(MediaError, match=r"empty\.mp4: the file is empty"):
        open_clips(f"{server}/empty.mp4")
    with pytest.raises(MediaError, match=r"^ftp://host/clip\.mp4: only http and https addresses are read, not ftp\.$"):
        open_clips("ftp://user:secret@host/clip.mp4")
    with pytest.raises(MediaError, match="cannot be downloaded"):
        open_clips("http://127.0.0.1:9/clip.mp4")


def test_batch_of_frames_is_iterated_with_its_times(clip_file):
    batch = read_video(clip_file)[0]
    assert isinstance(batch, FrameBatch)
    (opened,) = open_clips(batch)
    assert [frame.pts_seconds for frame in opened] == batch.pts_seconds.tolist()
