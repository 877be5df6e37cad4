"""`vidvae demo-clip`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .options import Force


if TYPE_CHECKING:
    import numpy as np


FPS = 24


def add_commands(app: typer.Typer) -> None:
    app.command("demo-clip")(demo_clip)


def demo_clip(
    output: Annotated[Path, typer.Argument(help="Video or animation to write.")],
    num_frames: Annotated[int, typer.Option(min=1, max=10_000, help="Frames.")] = 48,
    width: Annotated[int, typer.Option(min=16, max=4096, help="Width in pixels.")] = 160,
    height: Annotated[int, typer.Option(min=16, max=4096, help="Height in pixels.")] = 128,
    force: Force = False,
) -> None:
    """Write a short clip to try things with: a camera that rests and moves over a photograph.

    The photograph is a portrait of Grace Hopper by the US Navy, in the public domain; it comes with matplotlib.
    """
    from diffusers_vidvae.media import VideoWriter

    console.check_output(output, force)
    with VideoWriter(output, FPS, overwrite=force) as writer:
        for frame in moving_camera(num_frames, width, height):
            writer.write(frame)
    report = {"num_frames": num_frames, "width": width, "height": height, "fps": FPS}
    console.print_fields(str(output), {"clip": console.clip_text(report)})


def moving_camera(num_frames: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Yields frames `(height, width, 3)` of uint8: rest, a pan down the photograph, rest, and a way closer."""
    import numpy as np
    from matplotlib.cbook import get_sample_data
    from PIL import Image

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
