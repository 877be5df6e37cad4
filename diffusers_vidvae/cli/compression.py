"""`vidvae compress` and `vidvae decompress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console, forecast, models
from .console import CommandError
from .options import Compile, Device, Force, Fps, Json, Mode, Model, ModelDType, Output, Quantize, Seed, SizeMode


if TYPE_CHECKING:
    from diffusers_vidvae import VideoCompressionPipeline
    from diffusers_vidvae.codec import CompressedVideo


def add_commands(app: typer.Typer) -> None:
    app.command()(compress)
    app.command()(decompress)


def load_compression_pipeline(model: str | None, device: str | None, dtype: Any | None) -> VideoCompressionPipeline:
    from diffusers_vidvae import VideoCompressionPipeline

    vae = models.load_model(model, models.Device.choose(device, dtype))
    return models.quiet_pipeline(VideoCompressionPipeline(vae))


Quality = Annotated[
    float | None, typer.Option(help="Quality of the latents, from 0 to 100. Default: 30.", show_default=False)
]
TargetSize = Annotated[
    str | None, typer.Option(help="Size that the file may have, such as `200kB`; chooses frames and quality.")
]
TargetBpp = Annotated[
    float | None, typer.Option(help="Bits for each pixel that it may have; chooses frames and quality.")
]
ModeOption = Annotated[
    Mode | None,
    typer.Option(help="Drop frames, chosen so; by itself as many as the model asks for. Default: keep all."),
]
Threshold = Annotated[
    float | None, typer.Option(help="Keep probability above which mode `threshold` keeps. Default: 0.5.")
]
QuantizeOption = Annotated[Quantize | None, typer.Option(help="Store latents as raw numbers instead, for training.")]
SizeModeOption = Annotated[SizeMode, typer.Option(help="How frames are brought to a size that the model takes.")]


def compress(
    input: Annotated[Path, typer.Argument(help="Video, animation or image.")],
    output: Output,
    model: Model = None,
    quality: Quality = None,
    target_size: TargetSize = None,
    target_bpp: TargetBpp = None,
    target_psnr: Annotated[float | None, typer.Option(help="PSNR in dB to reach with the smallest file.")] = None,
    mode: ModeOption = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames to keep of the whole clip. Default: all.")] = None,
    rate: Annotated[float | None, typer.Option(help="Share of the frames to keep, in (0, 1].")] = None,
    threshold: Threshold = None,
    quantize: QuantizeOption = None,
    size_mode: SizeModeOption = SizeMode.auto,
    fps: Fps = None,
    seed: Seed = None,
    device: Device = None,
    dtype: ModelDType = None,
    compile: Compile = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compress a video to an .fsv file of latents."""
    console.check_output(output, force, [".fsv"])
    rate_of_frames = models.parse_fps(fps)
    if threshold is not None and mode != Mode.threshold:
        given = "no --mode" if mode is None else f"--mode {mode.value}"
        raise CommandError(f"--threshold {threshold}: is for --mode threshold, got {given}.")
    most_bytes = None if target_size is None else parse_target(target_size)
    forecast.introduce(input)
    pipeline = load_compression_pipeline(model, device, dtype)
    with forecast.compressing(pipeline, input, rate_of_frames, size_mode.value):
        if compile:
            pipeline.enable_compile()
        compressed = pipeline.compress_file(
            input,
            output,
            overwrite=force,
            mode=None if mode is None else mode.value,
            num_frames=num_frames,
            rate=rate,
            threshold=0.5 if threshold is None else threshold,
            generator=models.make_generator(seed),
            quality=quality,
            target_size=most_bytes,
            target_bpp=target_bpp,
            target_psnr=target_psnr,
            quantize=None if quantize is None else quantize.value,
            size_mode=size_mode.value,
            fps=rate_of_frames,
        )
    report = describe_compressed(compressed) | {"model": models.model_name(model), "input": input, "output": output}
    report["input_bytes"] = size_of(input)
    share = report["num_bytes"] / report["input_bytes"]
    of_input = f"{100 * share:.0f} % of {input}'s {console.size_text(report['input_bytes'])}"
    title = f"{output}: {console.size_text(report['num_bytes'])}, {of_input}"
    console.print_result(report, json, title, summary(report))
    if share > 1 and not json:
        console.note("It is larger than the input; --rate 0.25, a lower --quality or --target-size make it smaller.")


def parse_target(text: str) -> int:
    """Bytes of `--target-size`."""
    from diffusers_vidvae.pipelines.compression_budget import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise CommandError(f"--target-size {error}") from error


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
    compile: Compile = False,
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
    header = opened.header
    with forecast.decompressing(pipeline, header):
        if compile:
            pipeline.enable_compile()
        pipeline.decompress_file(
            opened, output, fps=rate_of_frames, audio_from=audio_from, overwrite=force, crf=crf, lossless=lossless
        )
    report = {
        "input": input,
        "output": output,
        "model": models.model_name(model),
        "num_frames": header.num_frames,
        "width": header.width,
        "height": header.height,
        "fps": rate_of_frames or header.fps,
    }
    fields = {"model": report["model"], "clip": console.clip_text(report)}
    console.print_result(report, json, f"{output}: {console.size_text(size_of(output))}", fields)


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
        "quality": quality_of(compressed),
        "size_mode": header.size_fit,
        "model_width": header.model_width,
        "model_height": header.model_height,
        "num_windows": len(compressed.windows),
    }


def quality_of(compressed: CompressedVideo) -> float | None:
    """Quality of coded latents, where the file is with the axes that it is measured by."""
    from diffusers_vidvae.codec import CodedFsvReader

    windows = compressed.windows
    if not isinstance(windows, CodedFsvReader) or windows.basis is None:
        return None
    return round(windows.basis.quality(compressed.header.step), 2)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The lines in which people read `describe_compressed`."""
    kbps = report["kbps"]
    stored = report["quantize"] if report["quality"] is None else f"quality {report['quality']:.4g}"
    return {
        "model": report["model"],
        "clip": console.clip_text(report),
        "kept frames": f"{report['kept_frames']} of {report['num_frames']} ({100 * report['keep_rate']:.1f} %)",
        "stored as": f"{stored}, {report['size_mode']}, {report['model_width']}x{report['model_height']}",
        "value ratio": f"{report['value_ratio']:.1f} pixel values for each latent value",
        "bits per pixel": f"{report['bits_per_pixel']:.3f}" + ("" if kbps is None else f" ({kbps:.0f} kbit/s)"),
    }


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
