"""Images: reading them upright as RGB, writing them whole or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusers_vidvae.files import atomic_path, naming_disk_errors

from .decoding import decodes_strictly
from .errors import MediaError, MediaWarning
from .inputs import FileInput, MediaFile
from .limits import IMAGE_FORMATS, check_frame_size
from .rgb import to_rgb


_ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "AVIF")


def load_image(image: FileInput | Image.Image) -> Image.Image:
    r"""Reads an image as 8-bit RGB, turned as its EXIF orientation says.

    The file is recognised by its content, as one of `IMAGE_FORMATS`. Alpha is dropped with a `MediaWarning`, 16-bit
    images are rounded to 8 bits, and of an animation the first frame is taken, with a warning.

    Args:
        image: A path, an http(s) URL, bytes or an open binary file, or an image in memory.

    Raises:
        MediaError: The file cannot be read, is no image, is damaged, or has more than `PIL.Image.MAX_IMAGE_PIXELS`
            pixels, 89 million unless that is set otherwise.
    """
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image), getattr(image, "filename", "") or "image")
    file = MediaFile.of(image)
    try:
        with open_image(file) as opened:
            if is_animation(opened):
                warnings.warn(f"{file}: is an animation, its first frame is read.", MediaWarning, stacklevel=2)
            loaded = to_rgb(ImageOps.exif_transpose(opened), file)
            if opened.format == "JPEG" and not decodes_strictly(file):
                warnings.warn(f"{file}: its data is damaged, part of it is grey.", MediaWarning, stacklevel=2)
            return loaded
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise MediaError(f"{file}: the image is damaged ({error}).") from error


@contextmanager
def open_image(file: MediaFile) -> Iterator[Image.Image]:
    """Pillow's image of a file, before its pixels are decoded.

    Raises:
        MediaError: It is none of the kinds that are read, is damaged at its start, or too large.
    """
    with file.open() as opened:
        try:
            # Pillow warns of large images, and refuses larger ones, before it tells how large they are.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = Image.open(opened, formats=_known_formats())
        except UnidentifiedImageError as error:
            raise MediaError(f"{file}: not an image that can be read.") from error
        except Image.DecompressionBombError as error:
            raise MediaError(f"{file}: the image is too large ({error}).") from error
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise MediaError(f"{file}: the image is damaged ({error}).") from error
        with image:
            check_frame_size(file, image)
            yield image


@cache
def _known_formats() -> list[str]:
    """Those of `IMAGE_FORMATS` that this build of Pillow has."""
    Image.init()
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def save_image(
    image: Image.Image | NDArray[np.uint8], path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Writes an image in the format that its name's ending says; on an error nothing is left on disk.

    Raises:
        MediaError: The file exists and `overwrite` is False, the ending names no image format, or the disk is full.
    """
    path = Path(path)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if path.suffix.lower() not in Image.registered_extensions():
        raise MediaError(f"{path}: the ending {path.suffix!r} names no image format; use .png, .jpg or .webp.")
    with atomic_path(path, overwrite=overwrite, error=MediaError) as temporary:
        with naming_disk_errors(path, MediaError):
            image.save(temporary, quality=95)


def is_image_file(source: FileInput) -> bool:
    """Whether a file holds a still image, by its content; animations do not count."""
    file = MediaFile.of(source)
    try:
        with open_image(file) as image:
            return not is_animation(image)
    except MediaError:
        return False


def is_animation(image: Image.Image) -> bool:
    # Camera JPEGs (MPO) and scans (TIFF) have further pictures too, but no time.
    return image.format in _ANIMATED_FORMATS and getattr(image, "is_animated", False)
