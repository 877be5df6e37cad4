"""Animated WebP, which FFmpeg does not decode, through Pillow."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from fractions import Fraction

import numpy as np
from PIL import Image

from .errors import MediaError
from .frames import Frame
from .images import open_image
from .inputs import MediaFile
from .picture_source import PictureSource, describe_pictures


_MILLISECOND = Fraction(1, 1000)


def is_animated_webp(file: MediaFile) -> bool:
    with file.open() as opened:
        header = opened.read(21)
    return header[:4] == b"RIFF" and header[8:16] == b"WEBPVP8X" and bool(header[20] & 2)


class WebpSource(PictureSource):
    """The frames of an animated WebP file.

    Raises:
        MediaError: The file is damaged before its first frame, or `stream` is not 0.
    """

    def __init__(self, file: MediaFile, stream: int = 0):
        super().__init__(file, "an animated WebP", stream)
        self.file = file
        with open_image(file) as image:
            durations = list(_durations(image, file))
            count, seconds = len(durations), sum(durations, Fraction(0))
            fps = (count / seconds).limit_denominator(1001)
            self.info = describe_pictures(file.path, image, image.size, count, seconds, fps, "webp", "webp")

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
