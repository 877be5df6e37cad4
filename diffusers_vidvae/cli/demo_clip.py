"""`vidvae demo-clip`."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffusers_vidvae.assets import demo_film

from . import console
from .options import Force


if TYPE_CHECKING:
    import numpy as np


def add_commands(app: typer.Typer) -> None:
    app.command("demo-clip")(demo_clip)


def demo_clip(
    output: Annotated[Path, typer.Argument(help="Video or animation to write.")],
    num_frames: Annotated[
        int, typer.Option(min=1, max=10_000, help="Frames; more than 48 play it backwards and forwards again.")
    ] = 48,
    width: Annotated[int, typer.Option(min=16, max=4096, help="Width in pixels.")] = 256,
    height: Annotated[int, typer.Option(min=16, max=4096, help="Height in pixels.")] = 144,
    force: Force = False,
) -> None:
    """Write a short film to try things with: a flower opens.

    It is a part of a film that comes with the package, by the contributors of MDN Web Docs, CC0.
    """
    from diffusers_vidvae.media import VideoReader, VideoWriter

    console.check_output(output, force)
    film = VideoReader(demo_film())
    frames = [frame.data for frame in film]
    there_and_back = cycle([*frames, *frames[-2:0:-1]])
    fps = film.info.fps
    with VideoWriter(output, fps, overwrite=force) as writer:
        for frame in islice(there_and_back, num_frames):
            writer.write(fill_size(frame, width, height))
    report = {"num_frames": num_frames, "width": width, "height": height, "fps": float(fps)}
    console.print_fields(str(output), {"clip": console.clip_text(report)})


def fill_size(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """The middle of a frame `(H, W, 3)` of uint8, as much of it as another shape allows, in another size."""
    import numpy as np
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS))
