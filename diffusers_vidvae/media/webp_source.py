"""Animated WebP, which FFmpeg does not decode, through Pillow."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from fractions import Fraction

import numpy as np
from PIL import Image

from .errors import MediaError
from .frames import Frame, VideoInfo
from .images import open_image
from .inputs import MediaFile
from .rgb import has_transparent_pixels


_MILLISECOND = Fraction(1, 1000)


def is_animated_webp(file: MediaFile) -> bool:
    with file.open() as opened:
        header = opened.read(21)
    return header[:4] == b"RIFF" and header[8:16] == b"WEBPVP8X" and bool(header[20] & 2)


class WebpSource:
    """The frames of an animated WebP file.

    Raises:
        MediaError: The file is damaged before its first frame, or `stream` is not 0.
    """

    def __init__(self, file: MediaFile, stream: int = 0):
        if stream != 0:
            raise MediaError(f"{file}: video stream {stream} was asked for, an animated WebP has one (0).")
        self.file = file
        with open_image(file) as image:
            durations = list(_durations(image, file))
            total = sum(durations, Fraction(0))
            self.info = _describe(file, image, len(durations), total)

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
        with open_image(self.file) as image:
            for number, duration in enumerate(_durations(image, self.file)):
                if number >= index:
                    yield Frame(np.asarray(image.convert("RGB")), float(time), float(duration))
                time += duration


def _durations(image: Image.Image, file: MediaFile) -> Iterator[Fraction]:
    """Steps through the animation and yields how long each frame is shown."""
    for index in range(getattr(image, "n_frames", 1)):
        try:
            image.seek(index)
            image.load()
        except (OSError, EOFError, ValueError) as error:
            raise MediaError(f"{file}: frame {index} of the animation is damaged ({error}).") from error
        yield max(1, image.info.get("duration") or 40) * _MILLISECOND


def _describe(file: MediaFile, image: Image.Image, num_frames: int, total: Fraction) -> VideoInfo:
    width, height = image.size
    return VideoInfo(
        path=file.path,
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
