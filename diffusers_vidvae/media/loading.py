"""Loading whatever a user has, by what the file holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from PIL import Image

from .errors import checked_input
from .frames import FrameBatch, VideoInfo
from .images import is_image_file, load_image
from .reader import open_source, read_video


@dataclass(frozen=True)
class LoadedMedia:
    """An image or a clip in memory.

    Attributes:
        kind: "image" or "video".
        frames: Its frames; an image is one frame.
        info: What the video file says about itself; None for an image.
    """

    kind: Literal["image", "video"]
    frames: FrameBatch
    info: VideoInfo | None = None

    @property
    def fps(self) -> Fraction | None:
        return None if self.info is None else self.info.fps

    @property
    def image(self) -> Image.Image:
        """The image, or a clip's first frame."""
        return Image.fromarray(self.frames.data[0])


def media_kind(path: str | os.PathLike[str]) -> Literal["image", "video"]:
    """Whether a file holds a still image or a video (or animation), by its content; its name does not matter.

    Raises:
        MediaError: The file cannot be read, or is neither.
    """
    if is_image_file(path):
        return "image"
    open_source(checked_input(path))
    return "video"


def load_media(path: str | os.PathLike[str], *, fps: Fraction | float | None = None) -> LoadedMedia:
    """Reads an image or a whole clip by what the file holds: a clip called `photo.png` is still a clip.

    Args:
        path: The file.
        fps: Resample a clip to this rate by its frames' times.

    Raises:
        MediaError: The file cannot be read, or is neither.
    """
    if is_image_file(path):
        image = np.asarray(load_image(path))
        return LoadedMedia("image", FrameBatch(image[None], np.zeros(1), np.zeros(1)))
    batch, info = read_video(path, fps=fps)
    return LoadedMedia("video", batch, info)
