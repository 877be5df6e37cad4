"""Pictures of any kind as 8-bit RGB."""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image

from .errors import MediaWarning


def to_rgb(image: Image.Image, name: object = "image") -> Image.Image:
    """An image as 8-bit RGB: 16 bits become 8, alpha is dropped with a `MediaWarning` that has `name` in it."""
    if has_transparent_pixels(image):
        warnings.warn(f"{name}: its alpha channel is dropped.", MediaWarning, stacklevel=3)
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        # Pillow clips these to 255 instead of scaling them.
        samples = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.round(samples / 257), 0, 255).astype(np.uint8))
    if image.mode == "RGBA":
        return Image.merge("RGB", image.split()[:3])
    return image.convert("RGB")


def has_transparent_pixels(image: Image.Image) -> bool:
    return image.has_transparency_data and bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())
