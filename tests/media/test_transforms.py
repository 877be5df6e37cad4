from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_vidvae.media import (
    MediaWarning,
    crop_to,
    load_media,
    pad_to_multiple,
    resize,
    to_frames,
    to_pil,
    to_pixels,
)


def test_uint8_frames_survive_the_round_trip(clip):
    pixels = to_pixels(clip)
    assert pixels.shape == (1, 3, 12, 96, 128) and pixels.dtype == torch.float32
    np.testing.assert_array_equal(to_frames(pixels), clip[None])
    np.testing.assert_array_equal(to_frames(pixels[0]), clip)
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(to_frames(to_pixels(levels))[0], levels)


def test_black_is_minus_one_and_white_is_one():
    assert to_pixels(np.zeros((1, 2, 2, 3), np.uint8)).unique().tolist() == [-1.0]
    assert to_pixels(np.full((1, 2, 2, 3), 255, np.uint8)).unique().tolist() == [1.0]


def test_all_ways_to_pass_a_clip_give_the_same_pixels(clip, clip_file):
    expected = to_pixels(clip)
    for video in (
        clip_file,
        str(clip_file),
        [Image.fromarray(frame) for frame in clip],
        list(clip),
        clip.astype(np.float32) / 255,
        clip[None],
        torch.from_numpy(clip),
        load_media(clip_file).frames,
        list(load_media(clip_file).frames),
        expected,
    ):
        torch.testing.assert_close(to_pixels(video), expected)


def test_a_list_of_clips_is_a_batch(clip, clip_file):
    batch = to_pixels([clip, clip_file, [Image.fromarray(frame) for frame in clip]])
    torch.testing.assert_close(batch, to_pixels(clip).expand(3, -1, -1, -1, -1))


def test_an_image_is_one_frame(clip):
    for image in (Image.fromarray(clip[0]), clip[0]):
        assert to_pixels(image).shape == (1, 3, 1, 96, 128)


def test_grey_is_spread_and_alpha_is_dropped(clip):
    grey = to_pixels(clip[..., :1])
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    with pytest.warns(MediaWarning, match="alpha"):
        torch.testing.assert_close(to_pixels(np.pad(clip, [(0, 0)] * 3 + [(0, 1)])), to_pixels(clip))


def test_dtype_is_as_asked(clip):
    assert to_pixels(clip, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (None, "A video must be a path, .* got NoneType"),
        (3.0, "got float"),
        ([], "got an empty list"),
        ([1, 2], "A frame must be a PIL image, .* got int"),
        (np.zeros((4, 4), np.uint8), r"got a uint8 array of shape \(4, 4\)"),
        (
            np.zeros((2, 3, 8, 8), np.uint8),
            r"shape \(T, H, W, C\) .* got a uint8 array of shape \(2, 3, 8, 8\)",
        ),
        (np.zeros((0, 8, 8, 3), np.uint8), r"got a uint8 array of shape \(0, 8, 8, 3\)"),
        (np.zeros((2, 8, 8, 3), np.int64), "must hold uint8 or floats in .*, got a int64 array"),
        (np.full((2, 8, 8, 3), 200.0), "values from 200 to 200; `value_range` says"),
        (np.full((2, 8, 8, 3), -0.5), "values from -0.5 to -0.5"),
        (np.full((2, 8, 8, 3), np.nan), "values from nan to nan"),
        (torch.zeros(1, 4, 2, 8, 8), r"got a float32 tensor of shape \(1, 4, 2, 8, 8\)"),
        (torch.full((1, 3, 2, 8, 8), 255.0), r"must lie in \[-1, 1\], got .* from 255 to 255"),
        (torch.full((1, 3, 2, 8, 8), torch.nan), "values from nan to nan"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], r"frame 1 is \(8, 9\)"),
        ([np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 8, 8, 3), np.uint8)], r"clip 1 has \(3, 8, 8\)"),
    ],
)
def test_anything_else_is_refused_with_what_it_is(video, message):
    with pytest.raises(ValueError, match=message):
        to_pixels(video)


def test_overshoot_is_clamped_and_nan_is_refused():
    frames = to_frames(torch.tensor([-1.4, 1.4]).expand(1, 3, 1, 1, 2))
    np.testing.assert_array_equal(frames[0, 0, 0, :, 0], [0, 255])
    with pytest.raises(ValueError, match="the pixels hold NaN: 1 of 6 values"):
        to_frames(torch.tensor([torch.nan, 0, 0, 0, 0, 0]).view(1, 3, 1, 1, 2))
    with pytest.raises(ValueError, match="got a uint8 tensor"):
        to_frames(torch.zeros(1, 3, 1, 2, 2, dtype=torch.uint8))


def test_to_pil_gives_the_frames_of_each_clip(clip):
    clips = to_pil(to_pixels(clip))
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in clips[0]]), clip)
    assert to_pil(to_pixels(clip)[0])[0].size == (128, 96)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_padding_repeats_the_border_and_cropping_undoes_it(dtype):
    pixels = torch.arange(2 * 3 * 3 * 5 * 7).view(2, 3, 3, 5, 7).to(dtype)
    padded = pad_to_multiple(pixels, height=8, width=8, frames=4)
    assert padded.shape == (2, 3, 4, 8, 8)
    assert (padded[..., 7, :7] == padded[..., 4, :7]).all()
    assert (padded[..., 7] == padded[..., 6]).all()
    assert (padded[:, :, 3] == padded[:, :, 2]).all()
    assert torch.equal(crop_to(padded, 3, 5, 7), pixels)


def test_padding_leaves_what_fits_alone():
    pixels = torch.zeros(1, 3, 4, 8, 16)
    assert pad_to_multiple(pixels, height=8, width=8, frames=4) is pixels


def test_cropping_to_something_larger_is_refused():
    with pytest.raises(ValueError, match=r"cannot crop \(T, H, W\) = \(2, 8, 8\) to the larger \(2, 9, 8\)"):
        crop_to(torch.zeros(1, 3, 2, 8, 8), 2, 9, 8)


def test_resizing_is_antialiased_and_keeps_the_range():
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32).expand(1, 3, 2, 64, 64)
    small = resize(checkerboard, 16, 8)
    assert small.shape == (1, 3, 2, 16, 8)
    assert small.abs().max() < 0.05
    assert resize(checkerboard, 100, 90).abs().max() <= 1
    assert resize(checkerboard, 64, 64) is checkerboard
    with pytest.raises(ValueError, match=r"expected \(B, C, T, H, W\) pixels, got shape \(3, 64, 64\)"):
        resize(checkerboard[0, :, 0], 8, 8)
