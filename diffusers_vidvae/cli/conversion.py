"""`vidvae convert` and `vidvae push`."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console, models
from .console import CommandError
from .options import DType, Force, Json


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

    from diffusers_vidvae.conversion import Checkpoint, Conversion


def add_commands(app: typer.Typer) -> None:
    app.command()(convert)
    app.command()(push)


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Original .pt or .safetensors file, or Orbax folder.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what becomes of every tensor, write nothing.")
    ] = False,
    to_pipeline: Annotated[bool, typer.Option("--to-pipeline", help="Write a pipeline instead of a model.")] = False,
    vae: Annotated[
        str | None, typer.Option(help="FrameSelectVAE for the pipeline of a GapDiT: folder, Hub id or checkpoint.")
    ] = None,
    dtype: Annotated[
        DType | None, typer.Option(help="Type of the written weights. Default: that of the checkpoint.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="Hub repository to publish the result in.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Convert an original checkpoint to a folder that `from_pretrained` loads."""
    from diffusers_vidvae.conversion import detect_source, open_checkpoint

    opened = open_checkpoint(checkpoint)
    source = detect_source(opened)
    if dry_run:
        print_plan(opened, source, json)
        return
    if output is None:
        raise CommandError("--output FOLDER is missing (or --dry-run).")
    check_output_folder(output, force)
    import torch

    torch_dtype = None if dtype is None else getattr(torch, dtype.value)
    with console.progress_of("Converting", len(opened.shapes)) as advance:

        def read(key: str) -> torch.Tensor:
            advance()
            return opened.read(key)

        model = source.convert(replace(opened, read=read), torch_dtype)
    result = make_pipeline(model, vae, torch_dtype) if to_pipeline else model
    save_folder(result, output)
    report = {
        "input": checkpoint,
        "output": output,
        "class": type(result).__name__,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if push is not None:
        report["url"] = publish(output, push)
    if json:
        console.print_json(report)
        return
    console.print_fields(
        f"{output}: {report['class']}",
        {"parameters": f"{report['num_parameters']:,} in {report['dtype']}", "published": report.get("url")},
    )


def print_plan(checkpoint: Checkpoint, source: Conversion, json: bool) -> None:
    """Prints what becomes of every tensor of a checkpoint."""
    from diffusers_vidvae.conversion import describe_plan

    plan = source.plan(checkpoint)
    if json:
        tensors = {key: {"shape": planned.shape, "targets": planned.targets} for key, planned in plan.tensors.items()}
        console.print_json({"config": plan.config, "tensors": tensors})
    else:
        print(describe_plan(checkpoint, plan.tensors))


def make_pipeline(model: ModelMixin, vae: str | None, dtype: Any) -> DiffusionPipeline:
    """The pipeline that runs a converted model."""
    import diffusers_vidvae as vidvae

    kind = type(model).__name__
    if kind == "FrameSelectVAE":
        return vidvae.VideoCompressionPipeline(model)
    if kind != "GapDiT":
        return vidvae.VideoReconstructionPipeline(model)
    if vae is None:
        raise CommandError("a pipeline of a GapDiT needs its autoencoder; give --vae a folder, Hub id or checkpoint.")
    autoencoder = models.load_model(vae, models.Device("cpu", dtype or model.dtype))
    models.require_class(autoencoder, "FrameSelectVAE", vae)
    return vidvae.GapDiTPipeline(model, autoencoder, vidvae.FlowMatchGapScheduler())


def check_output_folder(folder: Path, force: bool) -> None:
    """Refuses a folder that exists without `force`, and any that does not look like a model's or pipeline's."""
    if not folder.absolute().parent.is_dir():
        raise CommandError(f"{folder}: there is no folder {folder.absolute().parent}.")
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not _holds_model(folder)):
        raise CommandError(f"{folder}: exists already and is no model's folder; choose another name.")
    if _holds_model(folder) and not force:
        raise CommandError(f"{folder}: exists already; --force replaces it.")


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "model_index.json"))


def save_folder(model: Any, folder: Path) -> None:
    """Saves a model or pipeline, all of it or nothing."""
    target = folder.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        saved = Path(temporary) / "saved"
        model.save_pretrained(str(saved))
        if target.exists():
            shutil.rmtree(target)
        saved.rename(target)


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a model or pipeline.")],
    repository: Annotated[str, typer.Argument(help="Hub repository, owner/name.")],
    standalone: Annotated[
        bool,
        typer.Option("--standalone", help="Publish with source files, for users without this package, on a branch."),
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch. Default: main, or remote-code with --standalone.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    json: Json = False,
) -> None:
    """Publish a model or pipeline on the Hub, with a model card."""
    if not folder.is_dir() or not _holds_model(folder):
        raise CommandError(f"{folder}: is not the folder of a model (config.json) or pipeline (model_index.json).")
    url = publish(folder, repository, standalone, revision, private)
    console.print_result({"input": folder, "url": url}, json, f"{folder}: published", {"at": url})


def publish(
    folder: Path, repository: str, standalone: bool = False, revision: str | None = None, private: bool = False
) -> str:
    """Publishes a folder and returns its address on the Hub."""
    from diffusers_vidvae.hub import export_standalone, push_folder

    # A repository that exists keeps the visibility that it has.
    options: dict[str, Any] = {"private": True} if private else {}
    if not standalone:
        return push_folder(folder, repository, revision=revision, **options)
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary) / "standalone"
        export_standalone(load_saved(folder), exported)
        return push_folder(exported, repository, revision=revision or "remote-code", standalone=True, **options)


def load_saved(folder: Path) -> Any:
    """The model or pipeline of a folder, with weights of the type they are stored in."""
    from diffusers import AutoModel, DiffusionPipeline

    loader = DiffusionPipeline if (folder / "model_index.json").is_file() else AutoModel
    return loader.from_pretrained(str(folder), torch_dtype=_stored_dtype(folder))


def _stored_dtype(folder: Path) -> Any:
    import torch

    from diffusers_vidvae.conversion import Checkpoint

    for file in sorted(folder.rglob("*.safetensors")):
        checkpoint = Checkpoint.open(file)
        dtype = checkpoint.read(next(iter(checkpoint.shapes))).dtype
        return dtype if dtype.is_floating_point else None
    return torch.float32
