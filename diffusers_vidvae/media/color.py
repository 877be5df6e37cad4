"""A decoded picture to upright 8-bit RGB: matrix and range, bit depth, pixel aspect and rotation."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from .hdr import tone_map


# With these flags FFmpeg's conversion stays within half a level of the exact one; by default it is off by 1.2 levels
# on average and by up to 50 at coloured edges (43 dB), more than a good autoencoder's own error.
_EXACT = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
_TO_RGB = int(Interpolation.BILINEAR | _EXACT)
_TO_RGB_SCALED = int(Interpolation.BICUBIC | _EXACT)
FROM_RGB = int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND)

# Encoders round aspect ratios (399:400 for a scaled 800x332 clip); resampling for less than this serves nobody.
ASPECT_TOLERANCE = Fraction(1, 100)

# Display matrices of counter-clockwise degrees.
_ROTATIONS = {
    -90: ((0, 1), (-1, 0)),
    90: ((0, -1), (1, 0)),
    180: ((-1, 0), (0, -1)),
    -180: ((-1, 0), (0, -1)),
}

_MATRICES = {0: "rgb", 1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020"}
_BT2020_PRIMARIES = 9
_RANGES = {1: "limited", 2: "full"}
_TRANSFERS = {2: "unspecified", 0: "unspecified", 16: "pq", 18: "hlg"}


@dataclass(frozen=True)
class Orientation:
    """How a stored picture is turned for display: transposed first, then mirrored."""

    transpose: bool = False
    flip_columns: bool = False
    flip_rows: bool = False

    @classmethod
    def of(cls, picture: VideoFrame) -> Orientation:
        """Reads a picture's display matrix (the eight right-angled ones; others count as upright)."""
        matrix = _display_matrix(picture)
        if matrix is None:
            return cls()
        (xx, yx), (xy, yy) = matrix  # displayed x = xx * x + xy * y; displayed y = yx * x + yy * y
        if abs(xy) > abs(xx):
            return cls(True, flip_columns=xy < 0, flip_rows=yx < 0)
        return cls(False, flip_columns=xx < 0, flip_rows=yy < 0)

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.transpose:
            image = image.swapaxes(0, 1)
        if self.flip_columns:
            image = image[:, ::-1]
        if self.flip_rows:
            image = image[::-1]
        return np.ascontiguousarray(image)


class RgbConverter:
    """Turns the pictures of one stream into `(height, width, 3)` uint8 RGB, all of one size.

    Args:
        first: The stream's first picture, which settles orientation and size.
        sample_aspect_ratio: Width over height of a stored pixel.
        square_pixels: Resample the width so that pixels are square.
        tone_mapped: Bring high dynamic range to what an ordinary screen shows.
    """

    def __init__(self, first: VideoFrame, sample_aspect_ratio: Fraction, square_pixels: bool, tone_mapped: bool):
        self.orientation = Orientation.of(first)
        width, height = first.width, first.height
        if square_pixels and abs(sample_aspect_ratio - 1) > ASPECT_TOLERANCE:
            width = max(1, round(width * sample_aspect_ratio))
        self._grid = (width, height)
        self.width, self.height = (height, width) if self.orientation.transpose else (width, height)
        self._transfer = color_transfer_name(first.color_trc)
        self._tone_mapped = tone_mapped and self._transfer in ("pq", "hlg")
        self._wide_gamut = first.color_primaries == _BT2020_PRIMARIES
        self._reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame) -> NDArray[np.uint8]:
        width, height = self._grid
        flags = _TO_RGB if (picture.width, picture.height) == self._grid else _TO_RGB_SCALED
        # Planar is three times as fast as packed for YUV sources, and packed 16-bit overflows with these flags.
        format = "gbrp16le" if self._tone_mapped else "rgb24" if picture.format.is_rgb else "gbrp"
        image = self._reformatter.reformat(picture, width, height, format=format, interpolation=flags).to_ndarray()
        if self._tone_mapped:
            image = tone_map(image.astype(np.uint16, copy=False), self._transfer, self._wide_gamut)
        return self.orientation.apply(image.astype(np.uint8, copy=False))


def is_transparent(picture: VideoFrame) -> bool:
    """Whether a picture has an alpha channel and some pixel of it is not opaque."""
    if not any(component.is_alpha for component in picture.format.components):
        return False
    alpha = picture.reformat(format="rgba").to_ndarray()[..., 3]
    return bool((alpha < 255).any())


def color_matrix_name(value: int) -> str:
    return _MATRICES.get(value, "unspecified")


def color_range_name(picture: VideoFrame) -> str:
    if picture.format.name.startswith("yuvj"):
        return "full"
    return _RANGES.get(picture.color_range, "unspecified")


def color_transfer_name(value: int) -> str:
    return _TRANSFERS.get(value, "sdr")


def bit_depth(picture: VideoFrame) -> int:
    return max(component.bits for component in picture.format.components)


def _display_matrix(picture: VideoFrame) -> tuple[tuple[int, int], tuple[int, int]] | None:
    try:
        data = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV knows no name for one of the picture's kinds of side data
        return _ROTATIONS.get(picture.rotation)
    if data is None:
        return None
    values = np.frombuffer(bytes(data), dtype=np.int32)  # type: ignore[call-overload]
    return (int(values[0]), int(values[1])), (int(values[3]), int(values[4]))
