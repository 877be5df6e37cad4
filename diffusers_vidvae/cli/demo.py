"""`vidvae demo`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from . import console
from .options import Device, Force


def add_commands(app: typer.Typer) -> None:
    app.command()(demo)


TOUR = (
    ("A clip to try things with.", "demo-clip clip.mp4"),
    ("Its latents, of the frames worth keeping.", "compress clip.mp4 --output clip.fsv"),
    ("What is in the file.", "info clip.fsv"),
    ("Every frame again, the others filled in.", "decompress clip.fsv --output back.mp4"),
    ("Both side by side, on a page for any browser.", "compare clip.mp4 clip.fsv --output compared.html"),
    ("How near they come.", "evaluate clip.mp4"),
    (
        "A video from a prompt.",
        'generate --output generated.mp4 --prompt "a large red disc moves fast to the left on a blue background"'
        " --seed 0 --contact-sheet generated.png",
    ),
    ("The clip through the other autoencoder, and back.", "reconstruct clip.mp4 --output reconstructed.mp4"),
)


def demo(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; made if absent.")] = Path("vidvae-demo"),
    device: Device = None,
    force: Force = False,
) -> None:
    """Take the tour: compress, look, generate and reconstruct with the embedded models, command by command."""
    from .app import run

    folder.mkdir(parents=True, exist_ok=True)
    for purpose, line in TOUR:
        arguments = arguments_of(line, folder, device, force)
        console.stdout.print(f"\n[bold]{purpose}[/]\n$ {escape(shlex.join(['vidvae', *arguments]))}")
        code = run(arguments)
        if code:
            raise typer.Exit(code)
    console.stdout.print(f"\nAll of it lies in {folder}.", markup=False)


def arguments_of(line: str, folder: Path, device: str | None, force: bool) -> list[str]:
    """Arguments of a command of the tour, with its files in the folder."""
    arguments = [
        str(folder / part) if Path(part).suffix in (".mp4", ".fsv", ".png", ".html") else part
        for part in shlex.split(line)
    ]
    if arguments[0] not in ("demo-clip", "info") and device is not None:
        arguments += ["--device", device]
    return arguments + (["--force"] if force and arguments[0] not in ("info", "evaluate") else [])
