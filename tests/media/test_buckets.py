from __future__ import annotations

import numpy as np
import pytest
from media_clips import photo_clip, psnr
from PIL import Image

from diffusers_vidvae.media import (
    SIZE_BUCKETS,
    MediaError,
    VideoWriter,
    iter_preprocessed_video,
    nearest_bucket,
    preprocess_image,
    preprocess_video,
)


ALL_BUCKETS = [bucket for buckets in SIZE_BUCKETS.values() for bucket in buckets]


def test_sizes_run_from_xx_small_to_xx_large():
    assert list(SIZE_BUCKETS) == ["XX_SMALL", "X_SMALL", "SMALL", "MEDIUM", "LARGE", "X_LARGE", "XX_LARGE"]
    areas = [np.mean([b.width * b.height for b in buckets]) for buckets in SIZE_BUCKETS.values()]
    assert areas == sorted(areas)


def test_sides_are_multiples_of_8_near_their_aspect_and_area():
    for name, buckets in SIZE_BUCKETS.items():
        square = next(b for b in buckets if b.aspect == 1)
        assert square.width == square.height
        for bucket in buckets:
            assert bucket.name == name
            assert bucket.width % 8 == 0 and bucket.height % 8 == 0
            assert bucket.width / bucket.height == pytest.approx(float(bucket.aspect), rel=0.11)
            assert bucket.width * bucket.height == pytest.approx(square.width**2, rel=0.11)


def test_every_aspect_has_its_upright_counterpart():
    for buckets in SIZE_BUCKETS.values():
        assert {(b.width, b.height) for b in buckets} == {(b.height, b.width) for b in buckets}


def test_a_bucket_is_its_own_nearest():
    for bucket in ALL_BUCKETS:
        assert nearest_bucket(bucket.width, bucket.height, bucket.name) == bucket


@pytest.mark.parametrize(
    ("size", "name", "expected"),
    [
        ((1000, 1000), None, (1024, 1024)),
        ((4032, 3024), None, (1184, 888)),
        ((451, 300), None, (472, 312)),
        ((100, 3000), None, (336, 784)),
        ((4032, 3024), "SMALL", (296, 224)),
    ],
)
def test_nearest_bucket_goes_by_aspect_then_by_area(size, name, expected):
    bucket = nearest_bucket(*size, name)
    assert (bucket.width, bucket.height) == expected


def test_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="size_bucket must be one of XX_SMALL, .*, XX_LARGE, got 'HUGE'"):
        nearest_bucket(10, 10, "HUGE")
    with pytest.raises(ValueError, match="sides must be at least 1, got 0x10"):
        nearest_bucket(0, 10)


@pytest.mark.parametrize("name", ["XX_SMALL", "SMALL", None])
def test_image_fills_its_bucket_without_distortion(name):
    from skimage import data

    photo = Image.fromarray(data.coffee())  # 600x400
    image = preprocess_image(photo, name)
    bucket = nearest_bucket(600, 400, name)
    assert image.size == (bucket.width, bucket.height)
    scale = max(bucket.width / 600, bucket.height / 400)
    whole = photo.resize((round(600 * scale), round(400 * scale)), Image.Resampling.LANCZOS)
    left, top = (whole.width - bucket.width) // 2, (whole.height - bucket.height) // 2
    crop = whole.crop((left, top, left + bucket.width, top + bucket.height))
    assert psnr(np.asarray(image), np.asarray(crop)) > 25


def test_native_size_is_kept_on_request():
    image = Image.new("RGB", (451, 9))
    assert preprocess_image(image, resize=False).size == (451, 9)
    with pytest.raises(ValueError, match="both sides must have at least 8 pixels, got 451x7"):
        preprocess_image(Image.new("RGB", (451, 7)), resize=False)
    with pytest.raises(ValueError, match="size_bucket='SMALL' asks for resizing, resize=False forbids it"):
        preprocess_image(image, "SMALL", resize=False)


def write_clip(path, clip, fps):
    with VideoWriter(path, fps, lossless=True) as writer:
        writer.write(clip)
    return path


def test_video_is_resampled_to_24_fps_and_cut_to_multiples_of_8(tmp_path):
    clip = photo_clip(30, 101, 75)
    batch, info = preprocess_video(write_clip(tmp_path / "clip.mkv", clip, 30))
    assert info.fps == 30 and (info.width, info.height) == (75, 101)
    assert batch.data.shape == (24, 96, 72, 3)
    np.testing.assert_array_equal(batch.data[0], clip[0, 2:98, 1:73])
    np.testing.assert_allclose(np.diff(batch.pts_seconds), 1 / 24)


def test_preprocessed_video_can_be_streamed(tmp_path):
    frames, info = iter_preprocessed_video(write_clip(tmp_path / "clip.mkv", photo_clip(8), 24))
    assert next(frames).data.shape == (96, 128, 3)
    assert sum(1 for _ in frames) == 7


def test_slow_clip_is_refused_with_its_rate(tmp_path):
    path = write_clip(tmp_path / "slow.mkv", photo_clip(6), 15)
    with pytest.raises(MediaError, match=r"slow.mkv: has 15\.000 frames per second, at least 24 are needed"):
        preprocess_video(path)
    assert len(preprocess_video(path, min_fps=10)[0]) in (9, 10)


def test_tiny_clip_is_refused(tmp_path):
    path = write_clip(tmp_path / "tiny.mkv", photo_clip(3, 7, 64), 24)
    with pytest.raises(MediaError, match="tiny.mkv: both sides must have at least 8 pixels, got 64x7"):
        preprocess_video(path)


def test_film_rate_counts_as_24(shared_media):
    batch, info = preprocess_video(shared_media / "clips" / "roadtrip_10bit.webm")
    assert float(info.fps) < 24 and len(batch) == 72 and batch.data.shape[1:] == (240, 424, 3)
