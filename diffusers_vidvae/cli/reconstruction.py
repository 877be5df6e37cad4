"""`vidvae reconstruct` and `vidvae evaluate`."""

from __future__ import annotations

from enum import Enum
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console, models
from .compression import describe_compressed
from .console import CommandError
from .options import Device, Force, Fps, Json, Mode, Model, ModelDType, Quantize, Seed, SizeMode


if TYPE_CHECKING:
    from diffusers import ModelMixin

    from diffusers_vidvae import VideoReconstructionPipeline
    from diffusers_vidvae.metrics import PerceptualMetric


class SizeBucketName(str, Enum):
    xx_small = "XX_SMALL"
    x_small = "X_SMALL"
    small = "SMALL"
    medium = "MEDIUM"
    large = "LARGE"
    x_large = "X_LARGE"
    xx_large = "XX_LARGE"


VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
MEDIA_SUFFIXES = (*VIDEO_SUFFIXES, ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tiff")


def add_commands(app: typer.Typer) -> None:
    app.command()(reconstruct)
    app.command()(evaluate)


def load_reconstruction_pipeline(model: ModelMixin) -> VideoReconstructionPipeline:
    from diffusers_vidvae import VideoReconstructionPipeline

    return models.quiet_pipeline(VideoReconstructionPipeline(model))


def reconstruct(
    input: Annotated[Path, typer.Argument(help="Image or video.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Image or video to write; the original as encoded goes beside it."),
    ],
    model: Model = None,
    no_resize: Annotated[
        bool,
        typer.Option(
            "--no-resize", help="Native size and rate, where an AutoencoderKL3D would get them preprocessed."
        ),
    ] = False,
    size_bucket: Annotated[
        SizeBucketName | None, typer.Option(help="Size that an image is brought to. Default: the nearest.")
    ] = None,
    no_original: Annotated[bool, typer.Option("--no-original", help="Do not write the original.")] = False,
    fps: Fps = None,
    chunk_frames: Annotated[int | None, typer.Option(help="Frames to run at a time.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="FrameSelectVAE: keep some frames only, chosen like this.")] = None,
    rate: Annotated[float | None, typer.Option(help="FrameSelectVAE: share of the frames to keep.")] = None,
    crf: Annotated[int | None, typer.Option(help="Quality of H.264 or VP9, lower is better.")] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Write FFV1 (.mkv) or lossless WebP.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="Carry the input's sound over.")] = False,
    seed: Seed = None,
    device: Device = None,
    dtype: ModelDType = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Send an image or a video through an autoencoder and measure what comes back."""
    console.check_output(output, force)
    rate_of_frames = models.parse_fps(fps)
    vae = models.load_model(model, models.Device.choose(device, dtype), demo_component="autoencoder_kl_3d")
    writer_options = {"crf": crf, "lossless": lossless or None, "audio_from": input if audio else None}
    result = load_reconstruction_pipeline(vae).reconstruct_file(
        input,
        output,
        original_output=not no_original,
        preprocess=False if no_resize else None,
        size_bucket=None if size_bucket is None else size_bucket.value,
        fps=rate_of_frames,
        chunk_frames=chunk_frames,
        mode=None if mode is None else mode.value,
        rate=rate,
        generator=models.make_generator(seed),
        compute_metrics=True,
        overwrite=force,
        writer_options={name: value for name, value in writer_options.items() if value is not None},
    )
    report = {
        "input": input,
        "output": result.output,
        "original": result.original_output,
        "model": models.model_name(model),
        "class": type(vae).__name__,
        "num_frames": result.num_frames,
        "width": result.width,
        "height": result.height,
        "metrics": result.metrics,
    }
    if json:
        console.print_json(report)
        return
    fields = {
        "model": f"{report['model']} ({report['class']})",
        "clip": console.clip_text(report),
        "original": result.original_output,
        **{name: _figure(name, result.metrics) for name in ("psnr", "ssim", "temporal_psnr")},
    }
    console.print_fields(str(result.output), fields)


def evaluate(
    inputs: Annotated[list[Path], typer.Argument(help="Images, videos, or folders of them.")],
    model: Model = None,
    mode: Annotated[
        Mode | None, typer.Option(help="FrameSelectVAE: how the frames to keep are chosen. Default: systematic.")
    ] = None,
    num_frames: Annotated[int | None, typer.Option(help="FrameSelectVAE: frames to keep of every clip.")] = None,
    rate: Annotated[float | None, typer.Option(help="FrameSelectVAE: share of the frames to keep.")] = None,
    quantize: Annotated[
        Quantize | None, typer.Option(help="FrameSelectVAE: how latents are stored. Default: bf16.")
    ] = None,
    size_mode: Annotated[
        SizeMode | None, typer.Option(help="FrameSelectVAE: how frames fit the model. Default: auto.")
    ] = None,
    chunk_frames: Annotated[int | None, typer.Option(help="Other autoencoders: frames to run at a time.")] = None,
    fps: Fps = None,
    lpips: Annotated[bool, typer.Option("--lpips", help="Measure LPIPS, too; needs its weights.")] = False,
    seed: Seed = None,
    device: Device = None,
    dtype: ModelDType = None,
    json: Json = False,
) -> None:
    """Measure how well a model brings clips back, and at what rate."""
    from diffusers_vidvae.media import media_kind
    from diffusers_vidvae.metrics import LPIPS

    paths = [path for item in inputs for path in media_in(item)]
    for path in paths:
        # What cannot be read is refused before the others were measured.
        media_kind(path)
    rate_of_frames = models.parse_fps(fps)
    vae = models.load_model(model, models.Device.choose(device, dtype))
    options = {
        "mode": mode and mode.value,
        "num_frames": num_frames,
        "rate": rate,
        "quantize": quantize and quantize.value,
        "size_mode": size_mode and size_mode.value,
        "seed": seed,
    }
    options = {name: value for name, value in options.items() if value is not None}
    selects_frames = type(vae).__name__ == "FrameSelectVAE"
    refuse_options(type(vae).__name__, {"chunk_frames": chunk_frames} if selects_frames else options)
    distance = LPIPS(device=vae.device) if lpips else None
    rows = []
    for path in paths:
        if selects_frames:
            figures = evaluate_compression(vae, path, rate_of_frames, distance, dict(options))
        else:
            figures = evaluate_reconstruction(vae, path, rate_of_frames, distance, chunk_frames)
        rows.append({"input": path, **figures})
    if json:
        console.print_json({"model": models.model_name(model), "class": type(vae).__name__, "clips": rows})
        return
    console.stdout.print(f"model: {models.model_name(model)} ({type(vae).__name__})", markup=False)
    print_rows(rows)


def refuse_options(class_name: str, options: dict[str, Any]) -> None:
    """Refuses options that were given although a model has no use for them."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise CommandError(
            f"{' and '.join(given)}: {class_name} has no use for {'it' if len(given) == 1 else 'them'}."
        )


def media_in(path: Path) -> list[Path]:
    """The path itself, or the media files of a folder."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in MEDIA_SUFFIXES)
    if not files:
        raise CommandError(f"{path}: holds no file that ends in {', '.join(MEDIA_SUFFIXES)}")
    return files


def evaluate_compression(
    vae: ModelMixin, path: Path, fps: Fraction | None, lpips: PerceptualMetric | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Fidelity and cost of a compressed clip, decoded from what its file would hold, in constant memory."""
    import torch

    from diffusers_vidvae import VideoCompressionPipeline
    from diffusers_vidvae.metrics import ClipMetrics
    from diffusers_vidvae.pipelines.clip_source import open_clips

    pipeline = models.quiet_pipeline(VideoCompressionPipeline(vae))
    generator = models.make_generator(options.pop("seed", None))
    compressed = pipeline.compress(path, fps=fps, generator=generator, **options)
    boundaries = [window.start for window in compressed.selections[1:]]
    metrics = ClipMetrics(compressed.keep_mask, boundaries, lpips=lpips)
    (source,) = open_clips(path, fps)
    for frames in pipeline.decompress_frames(compressed):
        reference = torch.stack(list(islice(source.frames, len(frames))), dim=1)
        metrics.update(reference[None], frames)
    return {**metrics.compute(), **describe_compressed(compressed)}


def evaluate_reconstruction(
    vae: ModelMixin, path: Path, fps: Fraction | None, lpips: PerceptualMetric | None, chunk_frames: int | None
) -> dict[str, Any]:
    """Fidelity of a reconstructed image or clip at its native size and rate."""
    from diffusers_vidvae.metrics import ClipMetrics

    metrics, boundaries = ClipMetrics(lpips=lpips), []
    for piece in load_reconstruction_pipeline(vae).reconstruct_frames(path, fps=fps, chunk_frames=chunk_frames):
        boundaries.append(metrics.num_frames)
        metrics.update(piece.original, piece.sample)
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
    lines = [[row["input"].name, *(_figure(name, row) or "-" for name in names)] for row in rows]
    if len(rows) > 1:
        values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
        mean = {name: sum(known) / len(known) for name, known in values.items() if name != "num_frames"}
        lines.append(["mean", *(_figure(name, mean) or "" for name in names)])
    console.print_table(["clip", *(COLUMNS[name] for name in names)], lines)


def _figure(name: str, figures: dict[str, Any] | None) -> str | None:
    """A figure as people read it."""
    value = (figures or {}).get(name)
    if value is None or isinstance(value, int):
        return None if value is None else str(value)
    if name == "keep_rate":
        return f"{100 * value:.1f} %"
    return f"{value:.2f}" if "psnr" in name else f"{value:.4f}"
