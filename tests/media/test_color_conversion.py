"""Decoded pictures to RGB: matrix, range, bit depth and orientation against the formulas."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from diffusers_vidvae.media import VideoReader
from diffusers_vidvae.media.color import Orientation, RgbConverter
from diffusers_vidvae.media.hdr import tone_map


# Share of red and of blue in luma, by FFmpeg's number of the matrix.
MATRICES = {"bt709": (1, 0.2126, 0.0722), "bt601": (5, 0.299, 0.114), "bt2020": (9, 0.2627, 0.0593)}


def yuv_picture(matrix: str, full_range: bool, bits: int):
    """A 4:4:4 picture with random colours, and what its samples mean in RGB."""
    number, kr, kb = MATRICES[matrix]
    peak, step = 2**bits - 1, 2 ** (bits - 8)
    rgb = np.random.default_rng(0).uniform(0.1, 0.9, (16, 16, 3))
    luma = kr * rgb[..., 0] + (1 - kr - kb) * rgb[..., 1] + kb * rgb[..., 2]
    chroma = [(rgb[..., 2] - luma) / (2 - 2 * kb), (rgb[..., 0] - luma) / (2 - 2 * kr)]
    luma_scale, luma_offset, chroma_scale = (peak, 0, peak) if full_range else (219 * step, 16 * step, 224 * step)
    planes = [luma * luma_scale + luma_offset, *(c * chroma_scale + 128 * step for c in chroma)]
    dtype = np.uint8 if bits == 8 else np.uint16
    samples = [np.round(plane).astype(dtype) for plane in planes]

    picture = av.VideoFrame(16, 16, "yuv444p" if bits == 8 else "yuv444p10le")
    for plane, values in zip(picture.planes, samples, strict=True):
        rows = np.zeros((16, plane.line_size // dtype().itemsize), dtype)
        rows[:, :16] = values
        plane.update(rows.tobytes())
    picture.colorspace = number
    picture.color_range = 2 if full_range else 1
    luma = (samples[0] - float(luma_offset)) / luma_scale
    blue, red = ((chroma - 128.0 * step) / chroma_scale for chroma in samples[1:])
    red, blue = luma + red * (2 - 2 * kr), luma + blue * (2 - 2 * kb)
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return picture, 255 * np.stack([red, green, blue], axis=-1)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("bits", [8, 10])
def test_conversion_follows_matrix_range_and_depth(matrix, full_range, bits):
    picture, expected = yuv_picture(matrix, full_range, bits)
    converted = RgbConverter(picture, Fraction(1), True, False)(picture)
    error = converted - expected
    # FFmpeg takes 1020 of 1023, not 1023, as full scale of ten bits.
    largest, bias = (1.3, 0.5) if full_range and bits == 10 else (0.55, 0.05)
    assert np.abs(error).max() < largest and abs(error.mean()) < bias


def test_halved_colour_resolution_is_interpolated_exactly(tmp_path):
    rng = np.random.default_rng(0)
    planes = [rng.integers(60, 180, (32, 32)), *(rng.integers(90, 166, (16, 16)) for _ in range(2))]
    picture = av.VideoFrame(32, 32, "yuv420p")
    for plane, values in zip(picture.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : plane.width] = values
        plane.update(rows.tobytes())
    with av.open(tmp_path / "clip.mkv", "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "0"})  # lossless
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux([*stream.encode(picture), *stream.encode(None)])

    # Chroma samples lie on every second column, and between every two rows.
    def upsampled(chroma):
        columns, rows = np.arange(32) / 2, (np.arange(32) - 0.5) / 2
        wide = np.stack([np.interp(columns, np.arange(16), row) for row in chroma])
        return np.stack([np.interp(rows, np.arange(16), column) for column in wide.T], axis=1) - 128

    luma, blue, red = (planes[0] - 16) * 255 / 219, *(upsampled(plane) * 255 / 224 for plane in planes[1:])
    expected = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
    error = VideoReader(tmp_path / "clip.mkv").read().data[0] - expected.clip(0, 255)
    assert np.abs(error).max() < 0.6 and abs(error.mean()) < 0.05


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (Orientation(), lambda x: x),
        (Orientation(transpose=True, flip_columns=True), lambda x: np.rot90(x, -1)),
        (Orientation(transpose=True, flip_rows=True), lambda x: np.rot90(x)),
        (Orientation(flip_columns=True, flip_rows=True), lambda x: np.rot90(x, 2)),
        (Orientation(flip_columns=True), np.fliplr),
        (Orientation(flip_rows=True), np.flipud),
    ],
)
def test_orientations_turn_the_picture(turn, expected):
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(turn.apply(image), expected(image))


@pytest.mark.parametrize(("degrees", "mirrored"), [(0, False), (90, False), (180, False), (270, False), (0, True)])
def test_display_matrix_of_a_file_is_applied(tmp_path, clip, degrees, mirrored):
    path = tmp_path / "turned.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "4"})
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        for image in clip[:2]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    reader = VideoReader(path)
    turned = np.rot90(clip[0], reader.info.rotation // 90)
    expected = np.fliplr(clip[0]) if mirrored else turned
    assert degrees in (reader.info.rotation % 360, -reader.info.rotation % 360) or mirrored
    assert (reader.info.height, reader.info.width) == expected.shape[:2]
    assert np.abs(reader.read(0, 1).data[0] - expected.astype(float)).mean() < 4


def test_tone_mapping_puts_diffuse_white_near_white_and_keeps_greys_grey():
    # PQ code values of 0, 26 (mid grey), 203 (diffuse white) and 1000 cd/m2.
    codes = np.array([0.0, 0.3775, 0.5807, 0.7518]) * 65535
    image = np.repeat(codes.astype(np.uint16)[None, :, None], 3, axis=2)
    black, grey, white, peak = tone_map(image, "pq", wide_gamut=True)[0]
    assert (black == 0).all() and (peak >= 254).all()
    assert 90 < grey.min() <= grey.max() < 110 and np.ptp(grey) <= 1
    assert 210 < white.min() <= white.max() < 250 and np.ptp(white) <= 1


def test_tone_mapping_is_monotone_for_both_transfers():
    ramp = np.repeat(np.arange(0, 65536, 64, dtype=np.uint16)[None, :, None], 3, axis=2)
    for transfer in ("pq", "hlg"):
        mapped = tone_map(ramp, transfer, wide_gamut=False)[0, :, 0].astype(int)
        assert (np.diff(mapped) >= 0).all() and mapped[0] == 0 and mapped[-1] == 255
