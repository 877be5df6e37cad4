"""A decoded picture to upright 8-bit RGB: matrix and range, bit depth, pixel aspect and rotation."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray


# Chroma is interpolated to full resolution and rounded, not truncated: about 1 dB closer to the exact conversion.
ACCURATE = int(
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)

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
    """

    def __init__(self, first: VideoFrame, sample_aspect_ratio: Fraction, square_pixels: bool):
        self.orientation = Orientation.of(first)
        width, height = first.width, first.height
        if square_pixels and abs(sample_aspect_ratio - 1) > ASPECT_TOLERANCE:
            width = max(1, round(width * sample_aspect_ratio))
        self._grid = (width, height)
        self.width, self.height = (height, width) if self.orientation.transpose else (width, height)
        self._reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame) -> NDArray[np.uint8]:
        width, height = self._grid
        rgb = self._reformatter.reformat(picture, width, height, format="rgb24", interpolation=ACCURATE)
        return self.orientation.apply(rgb.to_ndarray())


def has_alpha(picture: VideoFrame) -> bool:
    return any(component.is_alpha for component in picture.format.components)


def is_transparent(picture: VideoFrame) -> bool:
    """Whether some pixel of a picture with an alpha channel is not opaque."""
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
    values = np.frombuffer(bytes(data), dtype=np.int32)
    return (int(values[0]), int(values[1])), (int(values[3]), int(values[4]))
