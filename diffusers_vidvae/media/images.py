"""Images: reading them upright as RGB, writing them whole or not at all."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusers_vidvae.files import atomic_path, naming_disk_errors

from .decoding import decodes_strictly
from .errors import MediaError, MediaWarning, checked_input


_ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "AVIF")


def load_image(image: str | os.PathLike[str] | Image.Image) -> Image.Image:
    r"""Reads an image as 8-bit RGB, turned as its EXIF orientation says.

    The file is recognised by its content. Alpha is dropped with a `MediaWarning`, 16-bit images are rounded to 8 bits,
    and of an animation the first frame is taken, with a warning.

    Args:
        image: A file, or an image in memory.

    Raises:
        MediaError: The file cannot be read, is no image, is damaged or unreasonably large.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(image), getattr(image, "filename", "") or "image")
    path = checked_input(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if is_animation(opened):
                    warnings.warn(f"{path}: is an animation, its first frame is read", MediaWarning, stacklevel=2)
                loaded = _to_rgb(ImageOps.exif_transpose(opened), path)
                if opened.format == "JPEG" and not decodes_strictly(path):
                    warnings.warn(f"{path}: its data is damaged, part of it is grey", MediaWarning, stacklevel=2)
                return loaded
    except UnidentifiedImageError as error:
        raise MediaError(f"{path}: not an image that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"{path}: the image is too large ({error})") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise MediaError(f"{path}: the image is damaged ({error})") from error


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
        raise MediaError(f"{path}: the ending {path.suffix!r} names no image format; use .png, .jpg or .webp")
    with atomic_path(path, overwrite=overwrite, error=MediaError) as temporary:
        with naming_disk_errors(path, MediaError):
            image.save(temporary, quality=95)


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds a still image, by its content; animations do not count."""
    path = checked_input(path)
    try:
        with Image.open(path) as image:
            return not is_animation(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return False


def is_animation(image: Image.Image) -> bool:
    # Camera JPEGs (MPO) and scans (TIFF) have further pictures too, but no time.
    return image.format in _ANIMATED_FORMATS and getattr(image, "is_animated", False)


def has_transparent_pixels(image: Image.Image) -> bool:
    return image.has_transparency_data and bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())


def _to_rgb(image: Image.Image, name: str | Path) -> Image.Image:
    if has_transparent_pixels(image):
        warnings.warn(f"{name}: its alpha channel is dropped", MediaWarning, stacklevel=3)
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        # Pillow clips these to 255 instead of scaling them.
        samples = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.round(samples / 257), 0, 255).astype(np.uint8))
    if image.mode == "RGBA":
        return Image.merge("RGB", image.split()[:3])
    return image.convert("RGB")
