"""Animated WebP, which FFmpeg does not decode, through Pillow."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import MediaError
from .frames import Frame, VideoInfo
from .images import has_transparent_pixels


_MILLISECOND = Fraction(1, 1000)


def is_animated_webp(path: Path) -> bool:
    with open(path, "rb") as file:
        header = file.read(21)
    return header[:4] == b"RIFF" and header[8:16] == b"WEBPVP8X" and bool(header[20] & 2)


class WebpSource:
    """The frames of an animated WebP file.

    Raises:
        MediaError: The file is damaged before its first frame, or `stream` is not 0.
    """

    def __init__(self, path: Path, stream: int = 0):
        if stream != 0:
            raise MediaError(f"{path}: video stream {stream} was asked for, an animated WebP has one (0)")
        self.path = path
        with _open(path) as image:
            durations = list(_durations(image, path))
            total = sum(durations, Fraction(0))
            self.info = _describe(path, image, len(durations), total)

    def frames(self, start: float | None = None, stop: float | None = None) -> Generator[Frame, None, None]:
        """The frames on screen in `[start, stop)` seconds."""
        for frame in self.frames_from(0):
            if start is not None and frame.end_seconds <= start:
                continue
            if stop is not None and frame.pts_seconds >= stop:
                return
            yield frame

    def frames_from(self, index: int) -> Generator[Frame, None, None]:
        """The frames from the `index`-th on."""
        time = Fraction(0)
        with _open(self.path) as image:
            for number, duration in enumerate(_durations(image, self.path)):
                if number >= index:
                    yield Frame(np.asarray(image.convert("RGB")), float(time), float(duration))
                time += duration


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as error:
        raise MediaError(f"{path}: not a readable video or image ({error})") from error


def _durations(image: Image.Image, path: Path) -> Iterator[Fraction]:
    """Steps through the animation and yields how long each frame is shown."""
    for index in range(getattr(image, "n_frames", 1)):
        try:
            image.seek(index)
            image.load()
        except (OSError, EOFError, ValueError) as error:
            raise MediaError(f"{path}: frame {index} of the animation is damaged ({error})") from error
        yield max(1, image.info.get("duration") or 40) * _MILLISECOND


def _describe(path: Path, image: Image.Image, num_frames: int, total: Fraction) -> VideoInfo:
    width, height = image.size
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        stored_width=width,
        stored_height=height,
        fps=(num_frames / total).limit_denominator(1001),
        num_frames=num_frames,
        duration_seconds=float(total),
        start_seconds=0.0,
        codec="webp",
        container="webp",
        pixel_format=image.mode.lower(),
        bit_depth=8,
        rotation=0,
        sample_aspect_ratio=Fraction(1),
        color_range="full",
        color_matrix="rgb",
        color_transfer="sdr",
        is_interlaced=False,
        has_alpha=has_transparent_pixels(image),
        has_audio=False,
        num_video_streams=1,
    )
