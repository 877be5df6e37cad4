"""A clip to try things with: a camera that rests and moves over a photograph that comes with matplotlib."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image


FPS = 24


def moving_camera(num_frames: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Yields frames `(height, width, 3)` of uint8: rest, a pan down the photograph, rest, and a way closer."""
    from matplotlib.cbook import get_sample_data

    photo = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    # Left, top and width of the view, as shares of the photograph, at shares of the time.
    times = [0, 0.2, 0.5, 0.65, 1]
    views = np.array([[0.2, 0, 0.5], [0.2, 0, 0.5], [0.35, 0.3, 0.5], [0.35, 0.3, 0.5], [0.32, 0.26, 0.3]])
    for time in np.linspace(0, 1, num_frames):
        left, top, view_width = (np.interp(time, times, column) for column in views.T)
        box_width = min(view_width * photo.width, photo.height * width / height)
        box_height = box_width * height / width
        left = min(left * photo.width, photo.width - box_width)
        top = min(top * photo.height, photo.height - box_height)
        box = (left, top, left + box_width, top + box_height)
        yield np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS, box=box))
