"""`vidvae train`, `vidvae encode-dataset` and `vidvae stats`."""

from __future__ import annotations

import inspect
import json as json_module
from collections.abc import Callable, Iterator
from dataclasses import asdict
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from diffusers_vidvae.files import write_file

from . import console, models
from .console import CommandError
from .options import Device, Json, Model, ModelDType
from .reconstruction import media_in


if TYPE_CHECKING:
    from diffusers import ModelMixin

    from diffusers_vidvae.autoencoders.latent_statistics import LatentStatistics
    from diffusers_vidvae.codec.latents_basis import LatentsBasis
    from diffusers_vidvae.training.encoding import EncodingReport


# Beside the config.json of an autoencoder whose config has no place for them.
STATISTICS_FILE = "latent_statistics.json"


class Engine(str, Enum):
    accelerate = "accelerate"
    ray = "ray"


class TrainedModel(str, Enum):
    frame_select_vae = "frame-select-vae"
    autoencoder_kl_3d = "autoencoder-kl-3d"
    gap_dit = "gap-dit"


Sources = Annotated[
    list[str],
    typer.Argument(
        help="Folders of videos and images, files, lists of files (.txt, .csv, .tsv, .jsonl), WebDataset shards (.tar,"
        " also URLs), data sets (datasets://owner/name?column=video), indexes."
    ),
]
CarriedColumns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Column of lists, shards or data sets to carry along; again for more."),
]
CaptionColumn = Annotated[str, typer.Option(help="Their column of captions.")]


def add_commands(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(index)
    app.command("encode-dataset")(encode_dataset)
    app.command()(stats)


def train(
    model: Annotated[TrainedModel, typer.Argument(help="What to train.")],
    config: Annotated[str, typer.Option("--config", "-c", help="YAML file, or the name of one of the package's.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values in place of the file's.")
    ] = None,
    json: Json = False,
) -> None:
    """Train a model by a configuration file, or continue an interrupted training.

    For several processes: `accelerate launch -m diffusers_vidvae.training.train_gap_dit --config FILE`.
    """
    module = import_module(f"diffusers_vidvae.training.train_{model.name}")
    folder = module.main(config, overrides or [])
    console.print_result({"output": folder, "config": config}, json, f"{folder}: trained", {"model": model.value})


def index(
    sources: Sources,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Index to write (.jsonl). Default: a hidden file in each folder."),
    ] = None,
    columns: CarriedColumns = None,
    caption_column: CaptionColumn = "caption",
    threads: Annotated[int | None, typer.Option(min=1, help="Files looked at at once. Default: processors.")] = None,
    json: Json = False,
) -> None:
    """Look at the files of a data set once, so that trainings start without; again for what is new or changed."""
    from diffusers_vidvae.training.sources import index_sources

    if output is not None and output.suffix != ".jsonl":
        raise CommandError(f"--output {output}: an index must end in .jsonl.")
    found = index_sources(sources, output, threads, columns or (), caption_column)
    readable = found.readable()
    report = {
        "output": output,
        "files": len(found),
        "readable": len(readable),
        "frames": int(readable.num_frames().sum()),
        "captions": sum(1 for caption in readable.captions if caption),
        "fingerprint": readable.fingerprint(),
        "errors": [{"path": found.paths[place], "error": error} for place, error in found.errors.items()],
    }
    fields = {"files": f"{len(readable)} of {len(found)} readable", "frames": report["frames"]}
    fields |= {"captions": report["captions"] or None, "index": output}
    console.print_result(report, json, ", ".join(sources), fields)
    for error in () if json else found.errors.values():
        console.print_warning(error)


NumClips = Annotated[
    int | None, typer.Option(min=1, help="Random clips to encode. Default: every file once, window by window.")
]
NumFrames = Annotated[int | None, typer.Option(min=1, help="Frames of a clip. Default: the model's window.")]
SampleSize = Annotated[int | None, typer.Option(min=1, help="Side of a clip in pixels. Default: the model's.")]

WebDataset = Annotated[
    bool, typer.Option("--webdataset", help="Write every shard as a tar file that webdataset reads, too.")
]
UsedEngine = Annotated[
    Engine, typer.Option("--engine", help="ray: actors of a Ray cluster, of RAY_ADDRESS or of this machine alone.")
]
Actors = Annotated[
    int | None, typer.Option(min=1, help="Most Ray actors at once. Default: GPUs, or processors without these.")
]


def encode_dataset(
    folders: Sources,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of latents to write, or to finish.")],
    num_clips: NumClips = None,
    model: Model = None,
    num_frames: NumFrames = None,
    sample_size: SampleSize = None,
    fps: Annotated[float | None, typer.Option(help="Rate that videos are resampled to.")] = None,
    columns: CarriedColumns = None,
    caption_column: CaptionColumn = "caption",
    min_crop: Annotated[float, typer.Option(help="Smallest random crop, as a share of the shorter side.")] = 0.5,
    shard_size: Annotated[int, typer.Option(help="Clips in a file.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Clips encoded at once.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode ahead, for each that encodes.")] = 0,
    latent_type: Annotated[str, typer.Option(help="fp16, bf16, fp32, int8 or coded:QUALITY.")] = "fp16",
    max_damaged: Annotated[float, typer.Option(min=0, max=1, help="Share of clips that may be unreadable.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the choice of clips and crops.")] = 0,
    webdataset: WebDataset = False,
    engine: UsedEngine = Engine.accelerate,
    actors: Actors = None,
    device: Device = None,
    dtype: ModelDType = None,
    json: Json = False,
) -> None:
    """Encode a data set with any autoencoder once, to train on its latents; several processes share the work.

    On several processes or machines: `accelerate launch -m diffusers_vidvae encode-dataset ...` or `torchrun`.
    """
    from accelerate import Accelerator

    from diffusers_vidvae.training.config import DataConfig
    from diffusers_vidvae.training.data import ClipDataset, EveryWindow

    if actors is not None and engine is not Engine.ray:
        raise CommandError("--actors: needs --engine ray.")
    place = models.Device.choose(device, dtype)
    accelerator = Accelerator(cpu=place.device == "cpu")
    vae = models.load_model(model, place)
    data = DataConfig(
        folders=folders,
        columns=columns or [],
        caption_column=caption_column,
        procedural_share=0.0,
        num_frames=num_frames or int(getattr(vae.config, "clip_num_frames", 16)),
        sample_size=sample_size or trained_side(vae),
        fps=fps,
        min_crop=min_crop,
    )
    with accelerator.local_main_process_first():
        clips = EveryWindow(data) if num_clips is None else ClipDataset(data, seed)
    count = len(clips) if isinstance(clips, EveryWindow) else cast(int, num_clips)
    settings: dict[str, Any] = {
        "shard_size": shard_size,
        "batch_size": batch_size,
        "num_workers": workers,
        "latent_type": latent_type,
        "max_damaged": max_damaged,
        "webdataset": webdataset,
    }
    settings |= {"num_actors": actors} if engine is Engine.ray else {"accelerator": accelerator}
    done = engine_of(engine)(vae, clips, output, count, **settings)
    if not accelerator.is_main_process:
        return
    report = {"output": output, "model": models.model_name(model), "num_clips": done.num_clips}
    print_encoded(report | {"num_frames": data.num_frames}, done, json)


def engine_of(engine: Engine) -> Callable[..., EncodingReport]:
    """The function that encodes with an engine."""
    if engine is Engine.ray:
        from diffusers_vidvae.training.ray_engine import encode_with_ray

        return encode_with_ray
    from diffusers_vidvae.training.encoding import encode_dataset

    return encode_dataset


def print_encoded(report: dict[str, Any], done: EncodingReport, json: bool) -> None:
    """Prints what was encoded, and how long the model waited for clips."""
    report |= {"damaged": done.damaged, "waited": done.waited, "seconds": done.seconds}
    waited = None if done.waited is None else f"{done.waited:.0%} of {done.seconds:.0f} s for clips"
    clips = f"{done.num_clips} of {report['num_frames']} frames"
    fields = {"model": report["model"], "clips": clips, "waited": waited}
    console.print_result(report, json, str(report["output"]), fields)
    for clip in () if json else done.damaged:
        console.print_warning(clip["error"])


def trained_side(vae: Any) -> int:
    """Side of the clips that a model was trained on, as its config has it; 256 where it does not say."""
    size = vae.config.get("sample_size") or 256
    return size if isinstance(size, int) else min(size)


def stats(
    inputs: Annotated[list[Path], typer.Argument(help="Images, videos, or folders of them.")],
    model: Model = None,
    fps: Annotated[str | None, typer.Option(help="Rate that videos are resampled to.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Frames to read of every clip. Default: all.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="File that remembers what was encoded; a run that was interrupted continues.")
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Write mean and deviation into the config of --model, a folder, or beside it if it takes none, and"
            " the --axes in which .fsv files store its latents.",
        ),
    ] = False,
    axes: Annotated[
        bool,
        typer.Option(
            "--axes",
            help="Find the principal axes of the latents in the decoder's metric, too (a backward pass for each of up"
            " to 16 files).",
        ),
    ] = False,
    device: Device = None,
    dtype: ModelDType = None,
    json: Json = False,
) -> None:
    """Compute mean and standard deviation of a model's latents, channel by channel, and the KL divergence."""
    from diffusers_vidvae.autoencoders.latent_statistics import latent_statistics
    from diffusers_vidvae.autoencoders.latents_basis import LatentsBasisEstimator

    config_file = find_config(model) if update else None
    paths = [path for item in inputs for path in media_in(item)]
    vae = models.load_model(model, models.Device.choose(device, dtype))
    rate_of_frames = models.parse_fps(fps)
    estimator = LatentsBasisEstimator(vae) if axes or update else None
    with console.progress_of("Encoding", len(paths)) as advance:

        def remaining() -> Iterator[Path]:
            for path in paths:
                yield path
                advance()

        found = latent_statistics(
            vae, remaining(), rate_of_frames, max_frames=max_frames, state_file=state, basis=estimator
        )
    basis = None if estimator is None else estimator.basis()
    if config_file is not None and basis is not None:
        write_basis(config_file, basis.to_config())
        config_file = update_statistics(vae, config_file, found)
    report = {"model": models.model_name(model), "class": type(vae).__name__, **asdict(found)}
    report |= {"axes": None if basis is None else describe_axes(basis), "updated": config_file}
    kl = found.kl_per_element
    fields = {
        "model": f"{report['model']} ({report['class']})",
        "clips": f"{found.num_clips}, {found.num_frames} frames",
        "latents_mean": " ".join(f"{value:.4f}" for value in found.latents_mean),
        "latents_std": " ".join(f"{value:.4f}" for value in found.latents_std),
        "KL per value": None if kl is None else f"{kl:.4f} nats",
        "axes": None
        if basis is None
        else f"{basis.axes_that_show(0.9)} of {len(basis.mean)} show 90 % of the variance",
        "updated": config_file,
    }
    console.print_result(report, json, "Latents", fields)


def describe_axes(basis: LatentsBasis) -> dict[str, Any]:
    """Axes, one a row, and the deviation of pixels that each makes."""
    return {
        "mean": basis.mean.tolist(),
        "forward": basis.forward.tolist(),
        "deviations": basis.deviations.tolist(),
        "show_90_percent": basis.axes_that_show(0.9),
    }


def find_config(model: str | None) -> Path:
    """The config.json of a model that lies in a folder here."""
    for file in [] if model is None else [Path(model) / "vae" / "config.json", Path(model) / "config.json"]:
        if file.is_file():
            return file
    raise CommandError(f"--update: needs a --model that is a folder here, got {models.model_name(model)}.")


def write_basis(config_file: Path, basis: dict[str, Any]) -> None:
    """Puts the axes of latents where any model's config keeps them, under a private name."""
    from diffusers_vidvae.codec.latents_basis import CONFIG_KEY

    values = json_module.loads(config_file.read_text()) | {CONFIG_KEY: basis}
    write_file(config_file, json_module.dumps(values, indent=2) + "\n", overwrite=True, error=CommandError)


def update_statistics(vae: ModelMixin, config_file: Path, found: LatentStatistics) -> Path:
    """Writes mean and deviation where the model looks for them, or beside its config if it does not; says where."""
    values = {"latents_mean": found.latents_mean, "latents_std": found.latents_std}
    if all(name in inspect.signature(type(vae).__init__).parameters for name in values):
        values = json_module.loads(config_file.read_text()) | values
    else:
        config_file = config_file.with_name(STATISTICS_FILE)
    write_file(config_file, json_module.dumps(values, indent=2) + "\n", overwrite=True, error=CommandError)
    return config_file
