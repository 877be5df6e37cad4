from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
from media_clips import largest_file, photo_clip
from PIL import Image

from diffusers_vidvae.media import (
    MediaError,
    MediaWarning,
    VideoWriter,
    load_image,
    load_media,
    media_kind,
    save_image,
)


@pytest.fixture
def photo():
    return Image.fromarray(photo_clip(1)[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, photo, orientation):
    turned = {
        1: photo,
        2: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: photo.transpose(Image.Transpose.ROTATE_180),
        4: photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: photo.transpose(Image.Transpose.TRANSPOSE),
        6: photo.transpose(Image.Transpose.ROTATE_90),
        7: photo.transpose(Image.Transpose.TRANSVERSE),
        8: photo.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "photo.png")), np.asarray(photo))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, photo, mode):
    name = "photo.tif" if mode in ("CMYK", "YCbCr") else "photo.png"
    photo.convert(mode).save(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(tmp_path / name)
    assert image.mode == "RGB" and image.size == photo.size


def test_sixteen_bit_image_is_scaled_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 256).astype(np.uint16)
    Image.fromarray(np.tile(levels, (4, 1))).save(tmp_path / "deep.png")
    image = np.asarray(load_image(tmp_path / "deep.png"))
    np.testing.assert_array_equal(image[0, :, 0], np.arange(256))


def test_alpha_is_dropped_with_a_warning_only_where_it_shows(tmp_path, photo):
    photo.putalpha(128)
    photo.save(tmp_path / "glass.png")
    with pytest.warns(MediaWarning, match="glass.png: its alpha channel is dropped"):
        assert load_image(tmp_path / "glass.png").mode == "RGB"
    photo.putalpha(255)
    photo.save(tmp_path / "opaque.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(tmp_path / "opaque.png")


def test_images_in_memory_are_taken_too(photo):
    assert load_image(photo.convert("L")).mode == "RGB"


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp"])
def test_animation_is_a_video_and_its_first_frame_an_image(tmp_path, clip, name):
    with VideoWriter(tmp_path / name, 10) as writer:
        writer.write(clip[:3])
    assert media_kind(tmp_path / name) == "video"
    assert len(load_media(tmp_path / name).frames) == 3
    with pytest.warns(MediaWarning, match=f"{name}: is an animation, its first frame is read"):
        assert load_image(tmp_path / name).size == (128, 96)


def test_load_media_tells_images_from_clips(tmp_path, photo, clip_file):
    photo.save(tmp_path / "photo.png")
    image = load_media(tmp_path / "photo.png")
    assert (image.kind, len(image.frames), image.info, image.fps) == ("image", 1, None, None)
    np.testing.assert_array_equal(np.asarray(image.image), np.asarray(photo))
    video = load_media(clip_file, fps=12)
    assert (video.kind, len(video.frames), video.fps) == ("video", 6, 24)


@pytest.mark.parametrize("load", [load_image, load_media, media_kind])
def test_what_is_no_image_is_refused(tmp_path, load):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    with pytest.raises(MediaError, match="text.png: not "):
        load(tmp_path / "text.png")
    with pytest.raises(MediaError, match="empty.png: the file is empty"):
        load(tmp_path / "empty.png")
    with pytest.raises(MediaError, match="no such file"):
        load(tmp_path / "nowhere.png")
    with pytest.raises(MediaError, match="is a folder|has no number at the end of its name"):
        load(tmp_path)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("fraction", [0.1, 0.6])
def test_truncated_image_is_refused(tmp_path, photo, ending, fraction):
    path = tmp_path / f"photo{ending}"
    photo.save(path)
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    with pytest.raises(MediaError, match=f"photo{ending}: "):
        load_image(path)


def test_absurdly_large_image_is_refused_before_memory_is_taken(tmp_path):
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(content + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0))
    with pytest.raises(MediaError, match="bomb.png: the image is too large"):
        load_image(tmp_path / "bomb.png")


def test_save_image_writes_whole_files_only(tmp_path, photo):
    save_image(photo, tmp_path / "out.png")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "out.png")), np.asarray(photo))
    with pytest.raises(MediaError, match="out.png: exists already"):
        save_image(photo, tmp_path / "out.png")
    save_image(np.asarray(photo)[:10], tmp_path / "out.png", overwrite=True)
    assert load_image(tmp_path / "out.png").height == 10
    with pytest.raises(MediaError, match="the ending '.xyz' names no image format"):
        save_image(photo, tmp_path / "out.xyz")
    with pytest.raises(MediaError, match="full.png: not enough disk space"), largest_file(1000):
        save_image(photo, tmp_path / "full.png")
    assert os.listdir(tmp_path) == ["out.png"]
