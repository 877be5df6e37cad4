"""`vidvae compress` and `vidvae decompress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console, models
from .console import CommandError
from .options import Device, Force, Fps, Json, Mode, Model, ModelDType, Output, Quantize, Seed, SizeMode


if TYPE_CHECKING:
    from diffusers_vidvae import VideoCompressionPipeline
    from diffusers_vidvae.codec import CompressedVideo


def add_commands(app: typer.Typer) -> None:
    app.command()(compress)
    app.command()(decompress)


def load_compression_pipeline(model: str | None, device: str | None, dtype: Any | None) -> VideoCompressionPipeline:
    from diffusers_vidvae import VideoCompressionPipeline

    vae = models.load_model(model, models.Device.choose(device, dtype))
    models.require_class(vae, "FrameSelectVAE", model)
    return models.quiet_pipeline(VideoCompressionPipeline(vae))


def compress(
    input: Annotated[Path, typer.Argument(help="Video, animation or image.")],
    output: Output,
    model: Model = None,
    mode: Annotated[Mode, typer.Option(help="How the frames to keep are chosen.")] = Mode.systematic,
    num_frames: Annotated[
        int | None, typer.Option(help="Frames to keep of the whole clip. Default: as many as the model asks for.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Share of the frames to keep, in (0, 1].")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep probability above which mode `threshold` keeps. Default: 0.5.")
    ] = None,
    quantize: Annotated[Quantize, typer.Option(help="How latents are stored.")] = Quantize.bf16,
    size_mode: Annotated[
        SizeMode, typer.Option(help="How frames are brought to a size that the model takes.")
    ] = SizeMode.auto,
    fps: Fps = None,
    seed: Seed = None,
    device: Device = None,
    dtype: ModelDType = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compress a video to an .fsv file of the latents of its kept frames."""
    console.check_output(output, force, [".fsv"])
    rate_of_frames = models.parse_fps(fps)
    if threshold is not None and mode != Mode.threshold:
        raise CommandError(f"--threshold {threshold}: is for --mode threshold, got --mode {mode.value}")
    pipeline = load_compression_pipeline(model, device, dtype)
    compressed = pipeline.compress_file(
        input,
        output,
        overwrite=force,
        mode=mode.value,
        num_frames=num_frames,
        rate=rate,
        threshold=0.5 if threshold is None else threshold,
        generator=models.make_generator(seed),
        quantize=quantize.value,
        size_mode=size_mode.value,
        fps=rate_of_frames,
    )
    report = describe_compressed(compressed) | {"model": models.model_name(model), "input": input, "output": output}
    if json:
        console.print_json(report)
        return
    console.print_fields(f"{output}: {console.size_text(report['num_bytes'])}", summary(report))


def decompress(
    input: Annotated[Path, typer.Argument(help="An .fsv file, or a .pt file of the original project.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Video, animation, or folder of PNG images (no ending) to write; of a photo, an image.",
        ),
    ],
    model: Model = None,
    fps: Annotated[str | None, typer.Option(help="Frame rate. Default: the clip's own, or 30.")] = None,
    audio_from: Annotated[Path | None, typer.Option(help="File whose sound is carried over.")] = None,
    crf: Annotated[int | None, typer.Option(help="Quality of H.264 or VP9, lower is better.")] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Write FFV1 (.mkv) or lossless WebP.")] = False,
    device: Device = None,
    dtype: ModelDType = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn a compressed video back into a video."""
    from diffusers_vidvae import CompressedVideo

    console.check_output(output, force)
    rate_of_frames = models.parse_fps(fps)
    compressed: CompressedVideo | Path = input if input.suffix == ".pt" else CompressedVideo.load(input)
    pipeline = load_compression_pipeline(model, device, dtype)
    opened = pipeline.open_compressed(compressed)
    pipeline.decompress_file(
        opened, output, fps=rate_of_frames, audio_from=audio_from, overwrite=force, crf=crf, lossless=lossless
    )
    header = opened.header
    report = {
        "input": input,
        "output": output,
        "model": models.model_name(model),
        "num_frames": header.num_frames,
        "width": header.width,
        "height": header.height,
        "fps": rate_of_frames or header.fps,
    }
    if json:
        console.print_json(report)
        return
    fields = {"model": report["model"], "clip": console.clip_text(report)}
    console.print_fields(f"{output}: {console.size_text(_size_of(output))}", fields)


def describe_compressed(compressed: CompressedVideo) -> dict[str, Any]:
    """What a compressed video is and costs, as plain values."""
    from diffusers_vidvae.pipelines.pipeline_video_compression import compression_statistics

    header = compressed.header
    return {
        "width": header.width,
        "height": header.height,
        "fps": header.fps,
        **compression_statistics(compressed),
        "quantize": header.quantization,
        "size_mode": header.size_fit,
        "model_width": header.model_width,
        "model_height": header.model_height,
        "num_windows": len(compressed.windows),
    }


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The lines in which people read `describe_compressed`."""
    kbps = report["kbps"]
    return {
        "model": report["model"],
        "clip": console.clip_text(report),
        "kept frames": f"{report['kept_frames']} of {report['num_frames']} ({100 * report['keep_rate']:.1f} %)",
        "stored as": f"{report['quantize']}, {report['size_mode']}, {report['model_width']}x{report['model_height']}",
        "value ratio": f"{report['value_ratio']:.1f} pixel values for each latent value",
        "bits per pixel": f"{report['bits_per_pixel']:.3f}" + ("" if kbps is None else f" ({kbps:.0f} kbit/s)"),
    }


def _size_of(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
