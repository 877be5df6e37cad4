"""Loading whatever a user has, by what the file holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from PIL import Image

from .frames import FrameBatch, VideoInfo
from .images import is_image_file, load_image
from .inputs import FileInput, MediaFile
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


def media_kind(path: FileInput) -> Literal["image", "video"]:
    """Whether a file holds a still image or a video (or animation), by its content; its name does not matter.

    A folder of numbered pictures is a video.

    Raises:
        MediaError: The file cannot be read, or is neither.
    """
    if _is_folder(path):
        open_source(path)
        return "video"
    file = MediaFile.of(path)
    if is_image_file(file):
        return "image"
    open_source(file)
    return "video"


def load_media(path: FileInput, *, fps: Fraction | float | None = None) -> LoadedMedia:
    """Reads an image or a whole clip by what the file holds: a clip called `photo.png` is still a clip.

    Args:
        path: The file.
        fps: Resample a clip to this rate by its frames' times.

    Raises:
        MediaError: The file cannot be read, or is neither.
    """
    file = path if _is_folder(path) else MediaFile.of(path)
    if not _is_folder(path) and is_image_file(file):
        image = np.asarray(load_image(file))
        return LoadedMedia("image", FrameBatch(image[None], np.zeros(1), np.zeros(1)))
    batch, info = read_video(file, fps=fps)
    return LoadedMedia("video", batch, info)


def _is_folder(path: FileInput) -> bool:
    return isinstance(path, (str, os.PathLike)) and os.path.isdir(path)
