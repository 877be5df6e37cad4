"""Folders of numbered pictures, such as `VideoWriter` writes, read as a clip."""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import MediaError, MediaWarning
from .frames import Frame
from .images import load_image, open_image
from .inputs import MediaFile
from .picture_source import PictureSource, describe_pictures


# As FFmpeg takes numbered pictures whose rate nobody says.
DEFAULT_FPS = Fraction(25)

# Where `VideoWriter` notes the frame rate and a frame's time, as texts of each PNG file.
RATE_NOTE, TIME_NOTE = "frame_rate", "frame_time"

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2", ".qoi")

_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)


class FolderSource(PictureSource):
    """The numbered pictures of a folder in the order of their numbers: 2 comes before 10.

    Files that are no pictures by their ending, and hidden ones, do not matter. Frames are evenly spaced, at the rate
    that `VideoWriter` noted in them or else at 25 frames per second, unless it noted the time of each.

    Raises:
        MediaError: The folder holds no picture, one without a number, two sequences, or pictures of several sizes.
    """

    def __init__(self, folder: Path, stream: int = 0):
        super().__init__(folder, "a folder of pictures", stream)
        self.folder = folder
        self.pictures = numbered_pictures(folder)
        with open_image(MediaFile.of(self.pictures[0])) as first:
            self._notes_times = TIME_NOTE in first.info
            self.knows_rate = _noted(first, RATE_NOTE) is not None
            fps = _noted(first, RATE_NOTE) or DEFAULT_FPS
            size, codec, count = load_image(first).size, (first.format or "").lower(), len(self.pictures)
            self.info = describe_pictures(folder, first, size, count, count / fps, fps, codec, "folder")

    def frames_from(self, index: int) -> Generator[Frame, None, None]:
        """The frames from the `index`-th on."""
        ends = [*self._times[1:], self._times[-1] + 1 / self.info.fps]
        for number in range(index, len(self.pictures)):
            time = self._times[number]
            yield Frame(np.asarray(self._load(number)), float(time), float(ends[number] - time))

    @cached_property
    def _times(self) -> list[Fraction]:
        """When each frame is shown: as noted in the pictures if that makes sense, else evenly spaced."""
        evenly = [number / self.info.fps for number in range(len(self.pictures))]
        if not self._notes_times:
            return evenly
        noted = []
        for path in self.pictures:
            with open_image(MediaFile.of(path)) as image:
                noted.append(_noted(image, TIME_NOTE))
        times = [time for time in noted if time is not None]
        grows = all(before < after for before, after in pairwise(times))
        return times if grows and len(times) == len(noted) else evenly

    def _load(self, number: int) -> Image.Image:
        with warnings.catch_warnings():
            # Said once for the whole folder, by its info.
            warnings.filterwarnings("ignore", "(?s).*alpha channel is dropped", MediaWarning)
            image = load_image(self.pictures[number])
        if image.size != (self.info.width, self.info.height):
            raise MediaError(
                f"{self.pictures[number]}: is {image.width}x{image.height}, the first picture of its folder is"
                f" {self.info.width}x{self.info.height}."
            )
        return image


def numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of one sequence, in the order of the last number in each name.

    Raises:
        MediaError: See `FolderSource`.
    """
    pictures: dict[int, Path] = {}
    names: set[tuple[str, str]] = set()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in PICTURE_ENDINGS:
            continue
        found = _NUMBERED.fullmatch(path.stem)
        if found is None:
            raise MediaError(
                f"{path}: has no number at the end of its name, so its place among the frames is unknown."
            )
        names.add((found[1], path.suffix.lower()))
        number = int(found[2])
        if len(names) > 1 or number in pictures:
            other = next(iter(pictures.values()))
            raise MediaError(f"{folder}: holds more than one sequence of pictures ({other.name} and {path.name}).")
        pictures[number] = path
    if not pictures:
        raise MediaError(f"{folder}: is a folder without numbered pictures.")
    missing = max(pictures) - min(pictures) + 1 - len(pictures)
    if missing:
        warnings.warn(
            f"{folder}: {missing} of the numbers from {min(pictures)} to {max(pictures)} are missing; the pictures"
            " follow each other without a gap.",
            MediaWarning,
            stacklevel=4,
        )
    return [pictures[number] for number in sorted(pictures)]


def _noted(image: Image.Image, name: str) -> Fraction | None:
    """A positive rate, or a time, that `VideoWriter` noted in a picture; None without a sound one."""
    try:
        value = Fraction(image.info[name])
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        return None
    return value if value > 0 or name == TIME_NOTE else None
