"""What sources share whose frames are pictures that Pillow decodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path

from PIL import Image

from .errors import MediaError
from .frames import Frame, VideoInfo
from .rgb import has_transparent_pixels


class PictureSource(ABC):
    """A clip of pictures, which has one video stream.

    Args:
        name: What errors call it.
        kind: What it is, for errors.
        stream: The stream that is asked for.

    Raises:
        MediaError: `stream` is not 0.
    """

    info: VideoInfo

    def __init__(self, name: object, kind: str, stream: int):
        if stream != 0:
            raise MediaError(f"{name}: video stream {stream} was asked for, {kind} has one (0).")

    @abstractmethod
    def frames_from(self, index: int) -> Generator[Frame, None, None]:
        """The frames from the `index`-th on."""

    def frames(self, start: float | None = None, stop: float | None = None) -> Generator[Frame, None, None]:
        """The frames on screen in `[start, stop)` seconds."""
        for frame in self.frames_from(0):
            if start is not None and frame.end_seconds <= start:
                continue
            if stop is not None and frame.pts_seconds >= stop:
                return
            yield frame


def describe_pictures(
    path: Path | None,
    first: Image.Image,
    size: tuple[int, int],
    num_frames: int,
    seconds: Fraction,
    fps: Fraction,
    codec: str,
    container: str,
) -> VideoInfo:
    """What there is to know of a clip of pictures.

    Args:
        path: The file or folder.
        first: The first picture as it is stored.
        size: Width and height of the frames, which metadata may have turned.
        num_frames: Number of pictures.
        seconds: How long they are shown.
        fps: Frame rate.
        codec: Name of the pictures' format.
        container: Name of what holds them.
    """
    width, height = size
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        stored_width=first.width,
        stored_height=first.height,
        fps=fps,
        num_frames=num_frames,
        duration_seconds=float(seconds),
        start_seconds=0.0,
        codec=codec,
        container=container,
        pixel_format=first.mode.lower(),
        bit_depth=8,
        rotation=0,
        sample_aspect_ratio=Fraction(1),
        color_range="full",
        color_matrix="rgb",
        color_transfer="sdr",
        is_interlaced=False,
        has_alpha=has_transparent_pixels(first),
        has_audio=False,
        num_video_streams=1,
    )
