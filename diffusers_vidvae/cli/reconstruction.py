"""`vidvae reconstruct`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console, forecast, models
from .console import CommandError
from .options import Compile, Device, Force, Fps, Json, Mode, Model, ModelDType, Seed


if TYPE_CHECKING:
    from diffusers import ModelMixin

    from diffusers_vidvae import VideoReconstructionPipeline


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


def load_reconstruction_pipeline(model: ModelMixin) -> VideoReconstructionPipeline:
    from diffusers_vidvae import VideoReconstructionPipeline

    return models.quiet_pipeline(VideoReconstructionPipeline(model))


Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="Image or video to write; the original as encoded goes beside it."),
]
NoResize = Annotated[
    bool,
    typer.Option("--no-resize", help="Native size and rate, where an AutoencoderKL3D would get them preprocessed."),
]
SizeBucket = Annotated[
    SizeBucketName | None, typer.Option(help="Size that an image is brought to. Default: the nearest.")
]


def reconstruct(
    input: Annotated[Path, typer.Argument(help="Image or video.")],
    output: Output,
    model: Model = None,
    no_resize: NoResize = False,
    size_bucket: SizeBucket = None,
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
    compile: Compile = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Send an image or a video through an autoencoder and measure what comes back."""
    console.check_output(output, force)
    rate_of_frames = models.parse_fps(fps)
    forecast.introduce(input)
    vae = models.load_model(model, models.Device.choose(device, dtype), demo_component="autoencoder_kl_3d")
    writer_options = {"crf": crf, "lossless": lossless or None, "audio_from": input if audio else None}
    pipeline = load_reconstruction_pipeline(vae)
    bucket = None if size_bucket is None else size_bucket.value
    preprocess = not no_resize and type(vae).__name__ == "AutoencoderKL3D"
    with forecast.reconstructing(pipeline, input, preprocess, bucket, rate_of_frames):
        if compile:
            pipeline.enable_compile()
        result = pipeline.reconstruct_file(
            input,
            output,
            original_output=not no_original,
            preprocess=False if no_resize else None,
            size_bucket=bucket,
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
    fields: dict[str, Any] = {"model": f"{report['model']} ({report['class']})", "clip": console.clip_text(report)}
    fields |= {"original": result.original_output}
    fields |= {name: figure_text(name, result.metrics) for name in ("psnr", "ssim", "temporal_psnr")}
    console.print_result(report, json, str(result.output), fields)


def media_in(path: Path) -> list[Path]:
    """The path itself, or the media files of a folder."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in MEDIA_SUFFIXES)
    if not files:
        raise CommandError(f"{path}: holds no file that ends in {', '.join(MEDIA_SUFFIXES)}.")
    return files


def figure_text(name: str, figures: dict[str, Any] | None) -> str | None:
    """A figure as people read it."""
    value = (figures or {}).get(name)
    if value is None or isinstance(value, int):
        return None if value is None else str(value)
    if name == "keep_rate":
        return f"{100 * value:.1f} %"
    return f"{value:.2f}" if "psnr" in name else f"{value:.4f}"
