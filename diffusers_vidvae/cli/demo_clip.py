"""`vidvae demo-clip`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .options import Force


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
    from diffusers_vidvae.media.moving_camera import FPS, moving_camera

    console.check_output(output, force)
    with VideoWriter(output, FPS, overwrite=force) as writer:
        for frame in moving_camera(num_frames, width, height):
            writer.write(frame)
    report = {"num_frames": num_frames, "width": width, "height": height, "fps": FPS}
    console.print_fields(str(output), {"clip": console.clip_text(report)})
