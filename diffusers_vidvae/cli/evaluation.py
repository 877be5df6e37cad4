"""`vidvae evaluate`: figures of one model, or a report on several."""

from __future__ import annotations

import sys
from enum import Enum
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import console, models
from .compression import describe_compressed
from .console import CommandError
from .generation_half import check_generation, measure_generation, print_generation
from .options import Device, Fps, Json, ModelDType, Models, Quantize, Seed, SizeMode
from .reconstruction import figure_text, load_reconstruction_pipeline, media_in


if TYPE_CHECKING:
    import torch
    from diffusers import ModelMixin

    from diffusers_vidvae.metrics import PerceptualMetric


class SweepMode(str, Enum):
    systematic = "systematic"
    threshold = "threshold"
    bernoulli = "bernoulli"
    top_k = "top_k"
    uniform = "uniform"
    random = "random"


class CodecName(str, Enum):
    x264 = "x264"
    x265 = "x265"
    svtav1 = "svtav1"
    vp9 = "vp9"


def add_commands(app: typer.Typer) -> None:
    app.command()(evaluate)


Inputs = Annotated[
    list[Path] | None,
    typer.Argument(help="Images, videos, or folders of them. A report without any takes procedural clips."),
]
Report = Annotated[
    Path | None, typer.Option(help="Folder for a report with pictures, curves and codecs; an old one goes on.")
]
Mode = Annotated[
    list[SweepMode] | None,
    typer.Option(help="FrameSelectVAE: how the frames to keep are chosen; a report takes several."),
]
Rate = Annotated[
    list[float] | None,
    typer.Option(help="FrameSelectVAE: share of the frames to keep; a report takes several."),
]
QuantizeOption = Annotated[
    list[Quantize] | None, typer.Option(help="FrameSelectVAE: how latents are stored; a report takes several.")
]
QualityOption = Annotated[
    list[float] | None, typer.Option(help="Report: qualities of coded .fsv files, 0 to 100. Default: 20, 5, 35, 50.")
]
SizeModeOption = Annotated[
    SizeMode | None, typer.Option(help="FrameSelectVAE: how frames fit the model. Default: auto.")
]
Generation = Annotated[
    bool,
    typer.Option("--generation", help="Report: also measure how easily latents are generated."),
]
ProbeSteps = Annotated[int | None, typer.Option(help="Generation: steps of the probe's training. Default: 500.")]
ProbeSeeds = Annotated[int | None, typer.Option(min=1, help="Generation: trainings of the probe. Default: 3.")]
ProbeSide = Annotated[int | None, typer.Option(help="Generation: side of the windows in pixels. Default: 64.")]
FeaturesFile = Annotated[
    Path | None,
    typer.Option(help="Generation: TorchScript network of features, such as I3D. Default: a random one."),
]
Codec = Annotated[list[CodecName] | None, typer.Option(help="Report: video codecs to compare with. Default: all.")]


def evaluate(
    inputs: Inputs = None,
    model: Models = None,
    report: Report = None,
    mode: Mode = None,
    num_frames: Annotated[int | None, typer.Option(help="FrameSelectVAE: frames to keep of every clip.")] = None,
    rate: Rate = None,
    quantize: QuantizeOption = None,
    quality: QualityOption = None,
    size_mode: SizeModeOption = None,
    codec: Codec = None,
    side: Annotated[int | None, typer.Option(help="Report: shorter side that clips are scaled to.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Report: frames of every clip. Default: 96.")] = None,
    chunk_frames: Annotated[int | None, typer.Option(help="Other autoencoders: frames to run at a time.")] = None,
    fps: Fps = None,
    lpips: Annotated[bool, typer.Option("--lpips", help="Measure LPIPS, too; needs its weights.")] = False,
    generation: Generation = False,
    probe_steps: ProbeSteps = None,
    probe_seeds: ProbeSeeds = None,
    probe_side: ProbeSide = None,
    features: FeaturesFile = None,
    seed: Seed = None,
    device: Device = None,
    dtype: ModelDType = None,
    json: Json = False,
) -> None:
    """Measure how well models bring clips back, and at what rate."""
    from diffusers_vidvae.metrics import LPIPS

    paths = [path for item in inputs or [] for path in media_in(item)]
    target = models.Device.choose(device, dtype)
    distance = LPIPS(device=target.device) if lpips else None
    sweep = {
        "modes": tuple(item.value for item in mode or ()),
        "rates": tuple(rate or ()),
        "quantizations": tuple(item.value for item in quantize or ()),
        "qualities": tuple(quality or ()),
        "codecs": tuple(item.value for item in codec or ()),
        "size_mode": size_mode and size_mode.value,
        "side": side,
        "max_frames": max_frames,
        "chunk_frames": chunk_frames,
        "fps": models.parse_fps(fps),
        "seed": seed,
    }
    given = {name: value for name, value in sweep.items() if value not in (None, ())}
    probe = {"steps": probe_steps, "seeds": probe_seeds, "side": probe_side, "features": features}
    check_generation(generation, report, probe)
    if report is not None:
        if num_frames is not None:
            raise CommandError("--num-frames: a report shares frames by --rate, which fits clips of any length.")
        write_report(model or [], paths, report, given, target, distance, json, probe if generation else None)
    else:
        print_figures(model or [], paths, {**given, "num_frames": num_frames}, target, distance, json)


# A report


def write_report(
    names: list[str],
    paths: list[Path],
    folder: Path,
    settings: dict[str, Any],
    target: models.Device,
    distance: PerceptualMetric | None,
    json: bool,
    probe: dict[str, Any] | None = None,
) -> None:
    """Measures models on clips into a folder, or goes on with what is there, and draws the report."""
    from accelerate import PartialState

    from diffusers_vidvae import evaluation

    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{folder}: is a file; a report is a folder.")
    loaded = load_models(names, target)
    plan = evaluation.EvaluationSettings(**settings)
    with console.progress_of("Evaluating", len(paths) or len(evaluation.DEMO_MOTIONS)) as advance:
        results = evaluation.evaluate_models(loaded, paths, folder, plan, distance, advance)
    generation = None if probe is None else measure_generation(loaded, paths, results, plan, probe, target)
    if not PartialState().is_main_process:
        return
    command = " ".join(["vidvae", *sys.argv[1:]])
    page = evaluation.write_report(results, command, generation)
    summary = evaluation.summarize(results.load(), results.header)
    if json:
        points = [
            {**point.method._asdict(), "budget": point.budget, "figures": _means(point.figures)}
            for point in summary.points
        ]
        found = {"report": page, "models": list(loaded), "clips": summary.clips, "points": points}
        console.print_json(found | ({"generation": generation.to_json()} if generation else {}))
        return
    fields = {"models": ", ".join(loaded), "clips": len(summary.clips), "size": console.size_text(page.stat().st_size)}
    notes = [*summary.notes, *(generation.notes if generation else [])]
    console.print_fields(str(page), fields | ({"missing": " ".join(notes)} if notes else {}))
    if generation is not None:
        print_generation(generation)


def _means(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: estimate._asdict() for name, estimate in figures.items()}


def load_models(names: list[str], target: models.Device) -> dict[str, ModelMixin]:
    """Models by short names; without any, both autoencoders of the embedded demo."""
    if not names:
        components = ("vae", "autoencoder_kl_3d")
        return {f"demo, {name}": models.load_model(None, target, demo_component=name) for name in components}
    if len(set(names)) < len(names):
        raise CommandError(f"--model: each may be given once, got {', '.join(names)}.")
    short = [Path(name).name for name in names]
    keys = short if len(set(short)) == len(short) else names
    return {key: models.load_model(name, target) for key, name in zip(keys, names, strict=True)}


# Figures


def print_figures(
    names: list[str],
    paths: list[Path],
    given: dict[str, Any],
    target: models.Device,
    distance: PerceptualMetric | None,
    json: bool,
) -> None:
    """Figures of one model, clip by clip."""
    from diffusers_vidvae.media import media_kind

    check_figures(names, paths, given)
    for path in paths:
        # What cannot be read is refused before the others were measured.
        media_kind(path)
    model = names[0] if names else None
    vae = models.load_model(model, target)
    single = {"modes": "mode", "rates": "rate", "quantizations": "quantize"}
    options = {single.get(name, name): value[0] if name in single else value for name, value in given.items()}
    options = {name: value for name, value in options.items() if value is not None}
    fps, chunk_frames = options.pop("fps", None), options.pop("chunk_frames", None)
    selects_frames = type(vae).__name__ == "FrameSelectVAE"
    refuse_options(type(vae).__name__, {"chunk_frames": chunk_frames} if selects_frames else options)
    rows = []
    for path in paths:
        if selects_frames:
            figures = evaluate_compression(vae, path, fps, distance, dict(options))
        else:
            figures = evaluate_reconstruction(vae, path, fps, distance, chunk_frames)
        rows.append({"input": path, **figures})
    if json:
        console.print_json({"model": models.model_name(model), "class": type(vae).__name__, "clips": rows})
        return
    console.stdout.print(f"model: {models.model_name(model)} ({type(vae).__name__})", markup=False)
    print_rows(rows)


def check_figures(names: list[str], paths: list[Path], given: dict[str, Any]) -> None:
    """Refuses what only a report can do."""
    if not paths:
        raise CommandError("Give images, videos or folders to measure, or --report for one on procedural clips.")
    several = {"model": names, "mode": given.get("modes"), "rate": given.get("rates")}
    several["quantize"] = given.get("quantizations")
    for name, values in several.items():
        if values and len(values) > 1:
            raise CommandError(f"--{name}: {len(values)} of them need --report.")
    for name, option in {
        "codecs": "codec",
        "qualities": "quality",
        "side": "side",
        "max_frames": "max-frames",
    }.items():
        if name in given:
            raise CommandError(f"--{option}: needs --report.")
    if given.get("modes") == ("random",):
        raise CommandError("--mode random: needs --report.")


def refuse_options(class_name: str, options: dict[str, Any]) -> None:
    """Refuses options that were given although a model has no use for them."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise CommandError(
            f"{' and '.join(given)}: {class_name} has no use for {'it' if len(given) == 1 else 'them'}."
        )


def evaluate_compression(
    vae: ModelMixin, path: Path, fps: Fraction | None, lpips: PerceptualMetric | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Fidelity and cost of a compressed clip, decoded from what its file would hold, in constant memory."""
    import numpy as np

    from diffusers_vidvae import VideoCompressionPipeline
    from diffusers_vidvae.media import open_clips
    from diffusers_vidvae.metrics import ClipMetrics

    pipeline = models.quiet_pipeline(VideoCompressionPipeline(vae))
    generator = models.make_generator(options.pop("seed", None))
    compressed = pipeline.compress(path, fps=fps, generator=generator, **options)
    boundaries = [window.start for window in compressed.selections[1:]]
    metrics = ClipMetrics(compressed.keep_mask, boundaries, lpips=lpips)
    (clip,) = open_clips(path, fps)
    originals = iter(clip)
    for frames in pipeline.decompress_frames(compressed):
        metrics.update(np.stack([frame.to_image() for frame in islice(originals, len(frames))]), frames)
    return {**metrics.compute(), **describe_compressed(compressed)}


def evaluate_reconstruction(
    vae: ModelMixin, path: Path, fps: Fraction | None, lpips: PerceptualMetric | None, chunk_frames: int | None
) -> dict[str, Any]:
    """Fidelity of a reconstructed image or clip at its native size and rate."""
    from diffusers_vidvae.metrics import ClipMetrics

    metrics, boundaries = ClipMetrics(lpips=lpips), []
    for piece in load_reconstruction_pipeline(vae).reconstruct_frames(path, fps=fps, chunk_frames=chunk_frames):
        boundaries.append(metrics.num_frames)
        metrics.update(piece.original, cast("torch.Tensor", piece.sample))
    metrics.boundaries = boundaries[1:]
    height, width = piece.original.shape[3:]
    return {"width": width, "height": height, **metrics.compute()}


COLUMNS = {
    "num_frames": "frames",
    "keep_rate": "kept",
    "psnr": "PSNR",
    "psnr_dropped": "dropped",
    "ssim": "SSIM",
    "temporal_psnr": "temporal",
    "still_flicker": "flicker",
    "lpips": "LPIPS",
    "bits_per_pixel": "bpp",
}


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Prints a line for every clip and, for more than one, their mean."""
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = [[row["input"].name, *(figure_text(name, row) or "-" for name in names)] for row in rows]
    if len(rows) > 1:
        values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
        mean = {name: sum(known) / len(known) for name, known in values.items() if name != "num_frames"}
        lines.append(["mean", *(figure_text(name, mean) or "" for name in names)])
    console.print_table(["clip", *(COLUMNS[name] for name in names)], lines)
