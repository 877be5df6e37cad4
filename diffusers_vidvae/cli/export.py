"""`vidvae export`."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import console, models
from .console import CommandError
from .options import Force, Json, ModelArgument


class Format(str, Enum):
    torch = "torch"
    onnx = "onnx"


class Part(str, Enum):
    encoder = "encoder"
    decoder = "decoder"
    both = "both"


def add_commands(app: typer.Typer) -> None:
    app.command()(export)


def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    model: ModelArgument = None,
    format: Annotated[
        Format, typer.Option(help="Programs of `torch.export`, or ONNX, which needs `diffusers-vidvae[export]`.")
    ] = Format.onnx,
    part: Annotated[Part, typer.Option(help="Which half of the autoencoder.")] = Part.both,
    frames: Annotated[
        str | None,
        typer.Option(help="Frames that the graphs take, `8-64`, `16`, or `1` for images. Default: all that may be."),
    ] = None,
    height: Annotated[str | None, typer.Option(help="Heights in pixels, likewise, such as `64-512`.")] = None,
    width: Annotated[str | None, typer.Option(help="Widths in pixels, likewise.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an autoencoder's encoder and decoder as graphs that run without this package."""
    import torch

    from diffusers_vidvae.export import SizeRange, export_autoencoder

    sizes = {
        name: parse_range(name, text) for name, text in (("frames", frames), ("height", height), ("width", width))
    }
    vae = models.load_model(model, models.Device("cpu", torch.float32))
    description = export_autoencoder(
        vae,
        output,
        format=format.value,
        parts=("encoder", "decoder") if part is Part.both else (part.value,),
        **sizes,
        overwrite=force,
    )
    fields = {
        name: f"{part['file']}, {console.size_text(part['num_bytes'])}, differs by at most {part['difference']:.1g}"
        for name, part in description["parts"].items()
    }
    fields["takes"] = ", ".join(str(SizeRange(**size)) for size in description["sizes"])
    report = {"model": models.model_name(model), "output": output, **description}
    console.print_result(report, json, f"{output}: {description['class']}", fields)


def parse_range(name: str, text: str | None) -> int | tuple[int, int] | None:
    """A size, `16`, or the least and the largest, `8-64`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None:
        raise CommandError(f"--{name} {text}: must be a size such as 16, or two such as 8-64.")
    low, high = match.groups()
    return int(low) if high is None else (int(low), int(high))
