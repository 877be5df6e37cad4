"""Files from strangers read nothing but themselves, run nothing, and end."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from diffusers_vidvae.media import (
    Frame,
    MediaError,
    VideoReader,
    VideoWriter,
    load_image,
    load_media,
    media_kind,
    read_video,
    resample_frames,
)


@pytest.fixture
def secret(clip, tmp_path):
    """A local video that no other file may lead to."""
    path = tmp_path / "secret.ts"
    with VideoWriter(tmp_path / "secret.mp4", 24) as writer:
        writer.write(clip)
    shutil.copy(tmp_path / "secret.mp4", path)
    return path


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{name}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile {name}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth='
    '"1"><BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("ending", [".m3u8", ".mp4", ".ffconcat", ".mpd", ".sdp", ".jpg"])
def test_playlists_are_refused_under_every_name(secret, kind, ending):
    for name in (secret.name, str(secret), f"file:{secret}"):
        path = secret.with_name(f"list{ending}")
        path.write_text(PLAYLISTS[kind].format(name=name))
        for read in (VideoReader, load_media, media_kind):
            with pytest.raises(MediaError, match=r"list\.\w+: not a readable video or image"):
                read(path)
        with pytest.raises(MediaError, match="not a readable video or image"):
            VideoReader(path.read_bytes())


def test_names_with_patterns_are_names(clip, tmp_path):
    for index in range(3):
        Image.fromarray(clip[index]).save(tmp_path / f"shot{index}.png")
    Image.fromarray(clip[5]).save(tmp_path / "shot%d.png")
    np.testing.assert_array_equal(read_video(tmp_path / "shot%d.png")[0].data, clip[5:6])


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.eps"])
def test_postscript_does_not_reach_its_interpreter(tmp_path, monkeypatch, name):
    from PIL import EpsImagePlugin

    def run(*args, **options):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(MediaError, match="not an image that can be read"):
        load_image(tmp_path / name)
    with pytest.raises(MediaError, match="not a readable video or image"):
        load_media(tmp_path / name)


def test_a_jump_in_time_does_not_make_frames_without_end():
    image = np.zeros((2, 2, 3), np.uint8)
    frames = [Frame(image, 0.0, 1e9), Frame(image, 1e9, 0.04)]
    with pytest.raises(MediaError, match="at 24 frames per second it would be repeated 24000000000 times, 100000 are"):
        list(resample_frames(frames, 24))
    with pytest.raises(MediaError, match="it would be repeated"):
        list(resample_frames([Frame(image, 0.0, 1e9)], 24))


def test_a_still_of_an_hour_is_no_attack():
    image = np.zeros((2, 2, 3), np.uint8)
    assert sum(1 for _ in resample_frames([Frame(image, 0.0, 3600.0), Frame(image, 3600.0, 1 / 24)], 24)) == 86401


def test_frames_beyond_the_limit_are_refused_before_they_are_decoded(clip_file, tmp_path, monkeypatch):
    Image.new("RGB", (300, 200)).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for path, size in ((clip_file, "128x96"), (tmp_path / "photo.png", "300x200")):
        with pytest.raises(MediaError, match=rf"({size} have more than the 10000 pixels|the image is too large)"):
            load_media(path)
