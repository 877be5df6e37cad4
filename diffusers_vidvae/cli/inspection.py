"""`vidvae info`."""

from __future__ import annotations

import json as json_module
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console, models
from .compression import describe_compressed
from .console import CommandError
from .options import Json


def add_commands(app: typer.Typer) -> None:
    app.command()(info)


def info(
    file: Annotated[Path, typer.Argument(help="Media, .fsv file, checkpoint, or folder of a model or pipeline.")],
    scan: Annotated[bool, typer.Option("--scan", help="Decode all of it: count and time frames.")] = False,
    json: Json = False,
) -> None:
    """Say what a file or folder is."""
    report = describe(file, scan)
    if json:
        console.print_json(report)
        return
    kind = report.pop("kind")
    console.print_fields(f"{file}: {kind}", {name.replace("_", " "): _text(value) for name, value in report.items()})


def describe(path: Path, scan: bool = False) -> dict[str, Any]:
    """What a file or folder is, as plain values; `kind` says which fields it has.

    Raises:
        ValueError: It cannot be read, or is nothing that this package knows.
    """
    if not path.exists():
        raise CommandError(f"{path}: no such file or folder.")
    if path.is_dir():
        return _describe_folder(path)
    if path.suffix == ".fsv":
        return _describe_fsv(path)
    if path.suffix in models.CHECKPOINT_SUFFIXES:
        return _describe_weights(path)
    return _describe_media(path, scan)


def _describe_fsv(path: Path) -> dict[str, Any]:
    from diffusers_vidvae import CompressedVideo

    compressed = CompressedVideo.load(path)
    header = compressed.header
    return {
        "kind": "compressed video",
        **describe_compressed(compressed),
        "written_by": header.model_id or None,
        "model_hash": header.model_hash[:16] or None,
    }


def _describe_media(path: Path, scan: bool) -> dict[str, Any]:
    from diffusers_vidvae.media import VideoReader, load_image, media_kind

    kind = media_kind(path)
    with VideoReader(path) as reader:
        clip = reader.info
        report: dict[str, Any] = {
            "kind": kind,
            "width": clip.width,
            "height": clip.height,
            "fps": clip.fps,
            "num_frames": clip.num_frames,
            "duration_seconds": clip.duration_seconds,
            "codec": clip.codec,
            "container": clip.container,
            "pixel_format": clip.pixel_format,
            "bit_depth": clip.bit_depth,
            "color_transfer": clip.color_transfer,
            "rotation": clip.rotation or None,
            "sample_aspect_ratio": clip.sample_aspect_ratio if clip.sample_aspect_ratio != 1 else None,
            "has_audio": clip.has_audio,
            "has_alpha": clip.has_alpha,
        }
        if kind == "image":
            if scan:
                load_image(path)
            # FFmpeg gives pictures a frame rate, too.
            return report | {"fps": None, "num_frames": 1, "duration_seconds": None}
        if scan:
            durations = [frame.duration_seconds for frame in reader]
            report |= {
                "decoded_frames": len(durations),
                "shortest_frame_seconds": min(durations),
                "longest_frame_seconds": max(durations),
            }
    return report


def _describe_weights(path: Path) -> dict[str, Any]:
    """An original checkpoint, or a compressed video of the original project, which also is a `.pt` file."""
    from diffusers_vidvae.codec import FsvError, read_original_pt
    from diffusers_vidvae.conversion import CheckpointError, open_checkpoint

    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        if path.suffix != ".pt":
            raise
        try:
            compressed = read_original_pt(path)
        except FsvError:
            compressed = None
        if compressed is None:
            raise
        return {"kind": "compressed video of the original project", **describe_compressed(compressed)}
    return {"kind": "checkpoint", **describe_checkpoint(checkpoint)}


def describe_checkpoint(checkpoint: Any) -> dict[str, Any]:
    """Keys and parameters of a checkpoint, the model it is of, and whether every key fits that model."""
    from diffusers_vidvae.conversion import CheckpointError, detect_source

    report: dict[str, Any] = {
        "num_keys": len(checkpoint.shapes),
        "num_parameters": sum(math.prod(shape) for shape in checkpoint.shapes.values()),
        "source": None,
        "fits": None,
    }
    try:
        source = detect_source(checkpoint)
    except CheckpointError:
        return report | {"problem": "the keys are those of no known model"}
    report["source"] = source.name
    try:
        plan = source.plan(checkpoint)
    except CheckpointError as error:
        return report | {"fits": False, "problem": str(error)}
    return report | {"fits": True, "config": plan.config}


def _describe_folder(folder: Path) -> dict[str, Any]:
    if (folder / "model_index.json").is_file():
        index = _read_json(folder / "model_index.json")
        components = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[0]}
        weights = _weights_of([folder / name for name in components])
        return {"kind": "pipeline", "class": index.get("_class_name"), **components, **weights}
    if (folder / "config.json").is_file():
        config = _read_json(folder / "config.json")
        public = {name: value for name, value in config.items() if not name.startswith("_")}
        return {"kind": "model", "class": config.get("_class_name"), **_weights_of([folder]), "config": public}
    if models.is_checkpoint(folder):
        from diffusers_vidvae.conversion import open_checkpoint

        return {"kind": "Orbax checkpoint", **describe_checkpoint(open_checkpoint(folder))}
    raise CommandError(
        f"{folder}: holds neither a pipeline (model_index.json) nor a model (config.json) nor an Orbax checkpoint."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json_module.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: cannot be read as JSON ({str(error).splitlines()[0]}).") from error
    if not isinstance(content, dict):
        raise CommandError(f"{path}: expected a JSON object, got {type(content).__name__}.")
    return content


def _weights_of(folders: list[Path]) -> dict[str, Any]:
    """Parameters and bytes of all safetensors files in some folders."""
    from diffusers_vidvae.conversion import Checkpoint

    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    shapes = [shape for file in files for shape in Checkpoint.open(file).shapes.values()]
    return {
        "num_parameters": sum(math.prod(shape) for shape in shapes),
        "num_bytes": sum(file.stat().st_size for file in files),
    }


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item is not None)
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and value >= 100_000 else value
