"""`vidvae compare`."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console, models
from .compression import load_compression_pipeline, size_of
from .console import CommandError
from .options import Device, Force, Fps, Json, Model, ModelDType, Output


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffusers_vidvae import VideoCompressionPipeline
    from diffusers_vidvae.evaluation.comparison import ClipPair, Comparison
    from diffusers_vidvae.evaluation.comparison_page import ComparisonTexts
    from diffusers_vidvae.media import Clip


SUFFIXES = (".png", ".html")
COMPRESSED_SUFFIXES = (".fsv", ".pt")
SHEET_FRAMES, PAGE_FRAMES = 4, 24


def add_commands(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    one: Annotated[Path, typer.Argument(metavar="A", help="The original: a video, animation, image or .fsv file.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="What is held against it, any of these too.")],
    output: Output,
    model: Model = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=32, help="Frames to show. Default: 4 on a .png, 24 on an .html page.")
    ] = None,
    amplify: Annotated[float, typer.Option(min=1, help="What shown differences are multiplied by.")] = 4,
    fps: Fps = None,
    resize: Annotated[bool, typer.Option("--resize", help="Scale B's frames to the size of A's.")] = False,
    shorter: Annotated[bool, typer.Option("--shorter", help="Compare as many frames as the shorter one has.")] = False,
    any_rate: Annotated[
        bool, typer.Option("--any-rate", help="Compare frame by frame although the frame rates differ.")
    ] = False,
    device: Device = None,
    dtype: ModelDType = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Look at two clips side by side: frames of both, their difference, PSNR and bytes, as a picture or a page."""
    from diffusers_vidvae.evaluation.comparison import compare_clips, pair_clips
    from diffusers_vidvae.evaluation.comparison_page import PAGE_WIDTH, SHEET_WIDTH, ComparisonTexts

    console.check_output(output, force, SUFFIXES)
    if output.resolve() in (one.resolve(), other.resolve()):
        raise CommandError(f"{output}: would be overwritten; choose another name for the output.")
    is_page = output.suffix.lower() == ".html"
    clips = open_pair((one, other), models.parse_fps(fps), model, device, dtype)
    pair = pair_clips(*clips, resize=resize, shorter=shorter, any_rate=any_rate)
    with console.progress_of("Comparing", pair.num_frames) as advance:
        comparison = compare_clips(
            pair,
            num_shown=frames or (PAGE_FRAMES if is_page else SHEET_FRAMES),
            most_width=PAGE_WIDTH if is_page else SHEET_WIDTH,
            amplify=amplify,
            advance=advance,
        )
    report = describe(comparison, pair, (one, other)) | {"output": output, "amplify": amplify}
    texts = ComparisonTexts(*lines_of(report), amplify)
    write(output, comparison, pair, texts, force)
    console.print_result(report, json, str(output), {"A": texts.one, "B": texts.other, "both": texts.summary})


def open_pair(
    paths: tuple[Path, Path], fps: Fraction | None, model: str | None, device: str | None, dtype: Any | None
) -> list[Clip]:
    """Opens both, with the model where one of them needs it."""
    from diffusers_vidvae.media import open_clips

    pipeline = None
    if any(path.suffix.lower() in COMPRESSED_SUFFIXES for path in paths):
        pipeline = load_compression_pipeline(model, device, dtype)
        pipeline.set_progress_bar_config(disable=True)
    elif model is not None:
        raise CommandError(f"--model {model}: is for .fsv files, got {paths[0]} and {paths[1]}.")
    return [
        open_compressed(pipeline, path, fps)
        if pipeline is not None and path.suffix.lower() in COMPRESSED_SUFFIXES
        else open_clips(path, fps)[0]
        for path in paths
    ]


def open_compressed(pipeline: VideoCompressionPipeline, path: Path, fps: Fraction | None) -> Clip:
    """The clip that a compressed one decodes to, window by window, as often as it is read."""
    import numpy as np

    from diffusers_vidvae.media import Clip, ClipFrame, Frame, resample_frames

    compressed = pipeline.open_compressed(path)
    header = compressed.header

    def at_rate(images: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        if fps is None or header.fps is None:
            return images
        period = 1 / header.fps
        timed = (Frame(image, float(index * period), float(period)) for index, image in enumerate(images))
        return (frame.data for frame in resample_frames(timed, fps))

    def read() -> Iterator[ClipFrame]:
        return map(ClipFrame, at_rate(frame for piece in pipeline.decompress_frames(compressed) for frame in piece))

    num_frames = sum(1 for _ in at_rate(repeat(np.zeros((1, 1, 3), np.uint8), header.num_frames)))
    rate = None if header.fps is None else fps or header.fps
    return Clip(read, header.height, header.width, rate, num_frames, str(path))


def describe(comparison: Comparison, pair: ClipPair, paths: tuple[Path, Path]) -> dict[str, Any]:
    """The comparison as plain values."""
    sides = [
        {"path": path, "num_bytes": size_of(path), "width": clip.width, "height": clip.height, "fps": clip.fps}
        for path, clip in zip(paths, (pair.one, pair.other), strict=True)
    ]
    worst = comparison.worst_frame
    return {
        "a": sides[0],
        "b": sides[1],
        "num_frames": pair.num_frames,
        "identical_frames": comparison.num_identical,
        "psnr": comparison.psnr,
        "worst_frame": worst,
        "psnr_worst": comparison.frame_psnrs[worst],
        "frame_psnrs": comparison.frame_psnrs,
        "shown": [{"frame": frame.index, "psnr": frame.psnr, "ssim": frame.ssim} for frame in comparison.shown],
    }


def lines_of(report: dict[str, Any]) -> tuple[str, str, str]:
    """A line on each file, and one on both."""
    one, other = report["a"], report["b"]
    texts = [f"{side['path'].name}, {console.size_text(side['num_bytes'])}" for side in (one, other)]
    share = f" ({100 * other['num_bytes'] / one['num_bytes']:.3g} % of A)"
    clip = console.clip_text({**one, "num_frames": report["num_frames"]})
    if report["identical_frames"] == report["num_frames"]:
        return texts[0], texts[1] + share, f"{clip}: no pixel differs"
    worst = ""
    if report["num_frames"] > 1:
        worst = f", worst {report['psnr_worst']:.2f} dB in frame {report['worst_frame']}"
    return texts[0], texts[1] + share, f"{clip}: PSNR {report['psnr']:.2f} dB{worst}"


def write(output: Path, comparison: Comparison, pair: ClipPair, texts: ComparisonTexts, force: bool) -> None:
    """Writes the picture, or the page, whole or not at all."""
    from diffusers_vidvae.evaluation.comparison_page import draw_sheet, render_comparison
    from diffusers_vidvae.files import write_file
    from diffusers_vidvae.media import save_image

    if output.suffix.lower() == ".html":
        write_file(output, render_comparison(comparison, pair, texts), overwrite=force)
    else:
        save_image(draw_sheet(comparison, texts), output, overwrite=force)
