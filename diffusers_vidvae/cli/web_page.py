"""`vidvae app`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, models, sources
from .console import CommandError
from .generation import load_generation_pipeline
from .options import Device, Model, ModelDType


if TYPE_CHECKING:
    from diffusers_vidvae.app.page import PageModels
    from diffusers_vidvae.app.settings import Limits


LOCAL = "127.0.0.1"


def add_commands(app: typer.Typer) -> None:
    app.command("app")(serve_page)


def serve_page(
    model: Model = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; `0.0.0.0` for everybody who reaches this machine.")
    ] = LOCAL,
    port: Annotated[int | None, typer.Option(help="Port. Default: the first free one from 7860 on.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Ask Gradio's servers for a public address, too.")] = False,
    max_megabytes: Annotated[float, typer.Option(help="Largest upload.")] = 50.0,
    max_frames: Annotated[int, typer.Option(help="Longest clip.")] = 300,
    max_side: Annotated[int, typer.Option(help="Largest shorter side in pixels that clips are scaled to.")] = 256,
    export_space: Annotated[
        Path | None, typer.Option(help="Write a folder that runs this page as a Hugging Face Space, and do not serve.")
    ] = None,
    device: Device = None,
    dtype: ModelDType = None,
) -> None:
    """Serve a page to try models on: compress clips with sliders, and generate them."""
    from diffusers_vidvae.app.settings import Address, Limits

    limits = Limits(max_megabytes, max_frames, max_side)
    if find_spec("gradio") is None:
        raise CommandError("The page needs Gradio, which `pip install diffusers-vidvae[app]` brings.")
    if export_space is not None:
        elsewhere = {"--host": host != LOCAL, "--port": port is not None, "--share": share}
        if given := [name for name, is_given in elsewhere.items() if is_given]:
            raise CommandError(f"{' and '.join(given)}: a Space has an address of its own.")
        export_page(export_space, model, limits, {"device": device, "dtype": dtype and dtype.value})
        return
    from diffusers_vidvae.app.serving import serve

    loaded = load_page_models(model, models.Device.choose(device, dtype))
    serve(loaded, limits, Address(host, port, share), lambda url: console.print_fields(url, {"to end": "Ctrl-C"}))


def export_page(folder: Path, model: str | None, limits: Limits, options: dict[str, str | None]) -> None:
    """Writes a Space, in which the model is found again."""
    from diffusers_vidvae.app.space import write_space

    source = sources.current.get()
    models.check_source(model, source)
    if model is not None and not Path(model).exists() and not model.startswith(models.HUB_FILE):
        models.check_hub_id(model)
    given = {name: value for name, value in options.items() if value is not None}
    write_space(folder, model, short_name(model), limits, source.given() | given)
    console.print_fields(str(folder), {"model": models.model_name(model), "to run it": f"python {folder / 'app.py'}"})


def short_name(model: str | None) -> str:
    """How the page calls a model; where it lies on this machine is nobody's business."""
    return Path(model).resolve().name if model is not None and Path(model).exists() else models.model_name(model)


def load_page_models(model: str | None, device: models.Device) -> PageModels:
    """The autoencoder that compresses, and the generator around it if the model is a `GapDiTPipeline`."""
    from diffusers_vidvae import VideoCompressionPipeline
    from diffusers_vidvae.app.page import PageModels

    generation = load_generation_pipeline(model, None, device) if is_generator(model) else None
    vae = models.load_model(model, device) if generation is None else generation.vae
    compression = models.quiet_pipeline(VideoCompressionPipeline(vae))
    return PageModels(short_name(model), compression, generation)


def is_generator(model: str | None) -> bool:
    """Whether a folder or Hub id is that of a `GapDiTPipeline`."""
    from diffusers import DiffusionPipeline

    if model is None:
        return True
    path = Path(model)
    if models.is_checkpoint(path) or model.startswith(models.HUB_FILE):
        return False
    if path.is_dir() and not (path / "model_index.json").is_file():
        return False
    try:
        config = DiffusionPipeline.load_config(model, revision=sources.current.get().revision)
    except OSError:
        # A model alone, or none; loading it says which.
        return False
    return config["_class_name"] == "GapDiTPipeline"
