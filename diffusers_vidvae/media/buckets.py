"""Sizes an image or a clip is brought to before it is encoded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from .errors import MediaError
from .frames import Frame, FrameBatch, VideoInfo
from .images import load_image
from .inputs import FileInput
from .reader import VideoReader
from .resample import check_min_fps, resample_frames


MULTIPLE = 8

# Side of each size's square.
_SIDES = {
    "XX_SMALL": 128,
    "X_SMALL": 192,
    "SMALL": 256,
    "MEDIUM": 384,
    "LARGE": 512,
    "X_LARGE": 768,
    "XX_LARGE": 1024,
}
_ASPECTS = tuple(
    Fraction(*ratio) for ratio in ((9, 21), (9, 16), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (16, 9), (21, 9))
)


@dataclass(frozen=True)
class SizeBucket:
    """One size that images are brought to.

    Attributes:
        name: "XX_SMALL" to "XX_LARGE"; buckets of one name have nearly the same area.
        aspect: Nominal width over height; the sides are the nearest multiples of 8.
        width, height: In pixels.
    """

    name: str
    aspect: Fraction
    width: int
    height: int


def _make_bucket(name: str, side: int, aspect: Fraction) -> SizeBucket:
    width = MULTIPLE * round(side * math.sqrt(aspect) / MULTIPLE)
    height = MULTIPLE * round(side / math.sqrt(aspect) / MULTIPLE)
    return SizeBucket(name, aspect, width, height)


SIZE_BUCKETS: dict[str, tuple[SizeBucket, ...]] = {
    name: tuple(_make_bucket(name, side, aspect) for aspect in _ASPECTS) for name, side in _SIDES.items()
}


def nearest_bucket(width: int, height: int, size_bucket: str | None = None) -> SizeBucket:
    """The bucket nearest to a size: first by aspect ratio, then by area, both compared as ratios.

    Args:
        width, height: The size to place.
        size_bucket: Consider only the buckets of this name.

    Raises:
        ValueError: There is no such name, or a side is not positive.
    """
    if width < 1 or height < 1:
        raise ValueError(f"sides must be at least 1, got {width}x{height}.")
    names = list(SIZE_BUCKETS) if size_bucket is None else [size_bucket]
    if names[0] not in SIZE_BUCKETS:
        raise ValueError(f"size_bucket must be one of {', '.join(SIZE_BUCKETS)}, got {size_bucket!r}.")

    def distance(bucket: SizeBucket) -> tuple[float, float]:
        by_aspect = abs(math.log(width / height / bucket.aspect))
        by_area = abs(math.log(width * height / (bucket.width * bucket.height)))
        return round(by_aspect, 9), by_area

    return min((bucket for name in names for bucket in SIZE_BUCKETS[name]), key=distance)


def preprocess_image(
    image: FileInput | Image.Image, size_bucket: str | None = None, resize: bool = True
) -> Image.Image:
    r"""Reads an image and brings it to the size of its nearest bucket.

    The image is scaled until it covers the bucket, keeping its aspect, and what hangs over is cut off evenly on both
    sides.

    Args:
        image: A file or an image in memory.
        size_bucket: Name of the size, "XX_SMALL" to "XX_LARGE"; by default the one of the nearest area.
        resize: False keeps the native size.

    Returns:
        An upright RGB image.

    Raises:
        MediaError: The file cannot be read.
        ValueError: Unknown `size_bucket`, or without resizing a side shorter than 8 pixels.
    """
    loaded = load_image(image)
    if not resize:
        if size_bucket is not None:
            raise ValueError(f"size_bucket={size_bucket!r} asks for resizing, resize=False forbids it.")
        if min(loaded.size) < MULTIPLE:
            raise ValueError(f"both sides must have at least {MULTIPLE} pixels, got {loaded.width}x{loaded.height}.")
        return loaded
    bucket = nearest_bucket(*loaded.size, size_bucket)
    return _cover(loaded, bucket.width, bucket.height)


def iter_preprocessed_video(
    path: FileInput, *, fps: Fraction | float = 24, min_fps: Fraction | float | None = None
) -> tuple[Iterator[Frame], VideoInfo]:
    r"""Opens a clip as `AutoencoderKL3D` takes it, one frame at a time.

    The clip is resampled to `fps` by its frames' times, and its sides are cut to multiples of 8, evenly on both sides,
    so that no pixel is interpolated.

    Args:
        path: The file.
        fps: The rate to reach.
        min_fps: The slowest clip that is taken, `fps` by default. 24000/1001 counts as 24.

    Returns:
        The frames, and what the file says about itself before all this.

    Raises:
        MediaError: The file cannot be read, is slower than `min_fps`, or has a side shorter than 8 pixels.
    """
    reader = VideoReader(path)
    info = reader.info
    check_min_fps(reader.name, info.fps, fps if min_fps is None else min_fps)
    if min(info.width, info.height) < MULTIPLE:
        raise MediaError(
            f"{reader.name}: both sides must have at least {MULTIPLE} pixels, got {info.width}x{info.height}."
        )
    frames = resample_frames(reader, fps)
    cropped = (Frame(_crop_centre(f.data), f.pts_seconds, f.duration_seconds) for f in frames)
    return cropped, info


def preprocess_video(
    path: FileInput, *, fps: Fraction | float = 24, min_fps: Fraction | float | None = None
) -> tuple[FrameBatch, VideoInfo]:
    """Reads a whole clip as `AutoencoderKL3D` takes it; see `iter_preprocessed_video`."""
    frames, info = iter_preprocessed_video(path, fps=fps, min_fps=min_fps)
    return FrameBatch.from_frames(list(frames)), info


def _cover(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = max(width / image.width, height / image.height)
    # The part of the source that fills the target, centred.
    source_width, source_height = width / scale, height / scale
    left, top = (image.width - source_width) / 2, (image.height - source_height) / 2
    box = (left, top, left + source_width, top + source_height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _crop_centre(frame: np.ndarray) -> np.ndarray:
    height, width = (side // MULTIPLE * MULTIPLE for side in frame.shape[:2])
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return np.ascontiguousarray(frame[top : top + height, left : left + width])
