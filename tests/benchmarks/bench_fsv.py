"""Bits and PSNR of `.fsv` files beside those of other codecs; sizes, times and memory of raw files.

python tests/benchmarks/bench_fsv.py --clips a.mp4 b.mp4      # rate and distortion; --model FOLDER for others
python tests/benchmarks/bench_fsv.py --clips a.mp4 --crop 64  # a square of 64 pixels from the middle
python tests/benchmarks/bench_fsv.py --clips a.mp4 --picture curves.png
python tests/benchmarks/bench_fsv.py --speed                  # latents to files and back at 1280x720
python tests/benchmarks/bench_fsv.py                          # raw files: Gaussian latents of the published shape
python tests/benchmarks/bench_fsv.py clip.fsv                 # and how a real clip's latents take each quantization
"""

from __future__ import annotations

import argparse
import io
import math
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusers_vidvae import FrameSelectVAE, VideoCompressionPipeline, demo_model  # noqa: E402
from diffusers_vidvae.codec import (  # noqa: E402
    QUANTIZATIONS,
    CodedFsvReader,
    CodedFsvWriter,
    CompressedVideo,
    FsvHeader,
    FsvWriter,
    LatentsBasis,
    LatentWindow,
    dequantize,
    quantize,
)
from diffusers_vidvae.codec.compressed_video import open_fsv  # noqa: E402
from diffusers_vidvae.media import VideoReader  # noqa: E402
from diffusers_vidvae.pipelines.compression_budget import DEFAULT_QUALITY  # noqa: E402


CHANNELS, SIDE, CLIP_FRAMES, KEPT = 96, 16, 32, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="an .fsv file, best one of fp32 latents")
    parser.add_argument("--clips", nargs="+", type=Path, help="videos to measure rate and distortion on")
    parser.add_argument("--crop", type=int, help="side of the square to cut from the middle")
    parser.add_argument("--frames", type=int, default=64, help="frames of every clip")
    parser.add_argument("--picture", type=Path, help="draw the curves into this file")
    parser.add_argument("--model", help="folder of a model; the demo model by default")
    parser.add_argument("--speed", action="store_true", help="time latents to files and back")
    arguments = parser.parse_args()
    if arguments.clips:
        curves = measure_curves(arguments.clips, arguments.crop, arguments.frames, arguments.model)
        show_rate_and_distortion(curves)
        if arguments.picture:
            draw(curves, arguments.picture)
        return
    if arguments.speed:
        show_speed()
        return
    torch.manual_seed(0)
    show_errors("Gaussian", torch.randn(CHANNELS, KEPT, SIDE, SIDE))
    shifted = torch.randn(CHANNELS, KEPT, SIDE, SIDE) + torch.randn(CHANNELS, 1, 1, 1)
    show_errors("Gaussian with means", shifted)
    if arguments.file:
        for window in CompressedVideo.load(arguments.file).windows:
            show_errors(f"{arguments.file} from frame {window.start}", window.latents.float())
    show_files()


def show_errors(name: str, latents: torch.Tensor) -> None:
    """Signal-to-noise ratio in dB of every quantization, and of integers symmetric about zero for comparison."""
    ratios = {kind: noise_ratio(latents, dequantize(quantize(latents, kind)).float()) for kind in QUANTIZATIONS}
    ratios |= {f"int{bits} symmetric": noise_ratio(latents, symmetric(latents, bits)) for bits in (8, 4)}
    print(f"{name}, dB: " + ", ".join(f"{kind} {ratio:.1f}" for kind, ratio in ratios.items()))


def symmetric(latents: torch.Tensor, bits: int) -> torch.Tensor:
    largest = 2 ** (bits - 1) - 1
    scale = latents.abs().amax((1, 2, 3), keepdim=True) / largest
    return (latents / scale).round() * scale


def noise_ratio(latents: torch.Tensor, restored: torch.Tensor) -> float:
    signal = latents.flatten(1).var(1).mean()
    error = (latents - restored).square().mean()
    return float(10 * torch.log10(signal / error)) if error else math.inf


def show_files() -> None:
    """Files of 40 seconds and, for the memory, of ten times as much."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in QUANTIZATIONS:
            show_file(Path(folder, f"{kind}.fsv"), kind, 1189)
        show_file(Path(folder, "long.fsv"), "bf16", 11890)


def show_file(path: Path, kind: str, num_frames: int) -> None:
    header = FsvHeader(
        num_frames=num_frames,
        height=256,
        width=256,
        model_height=256,
        model_width=256,
        clip_num_frames=CLIP_FRAMES,
        latent_channels=CHANNELS,
        latent_height=SIDE,
        latent_width=SIDE,
        fps=Fraction(179, 6),
        quantization=kind,
    )
    start = time.perf_counter()
    with FsvWriter(path, header) as writer:
        for window in windows(num_frames):
            writer.write_window(window)
    written = time.perf_counter()
    video = CompressedVideo.load(path)
    for window in video.windows:
        window.latents.mean()
    read = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{kind} {num_frames} frames: {video.num_bytes} bytes, {video.bits_per_pixel:.4f} bits/pixel, "
        f"{video.kbps:.0f} kbit/s, header {video.num_bytes - video.payload_bits // 8}, mask {video.mask_bits // 8} "
        f"bytes; written in {written - start:.2f} s, read in {read - written:.2f} s, peak memory {peak:.0f} MiB"
    )


def windows(num_frames: int) -> Iterator[LatentWindow]:
    for start in range(0, num_frames, CLIP_FRAMES):
        count = min(CLIP_FRAMES, num_frames - start)
        gaps = torch.full((max(1, round(count * KEPT / CLIP_FRAMES)),), 5)
        latents = torch.randn(CHANNELS, len(gaps), SIDE, SIDE)
        yield LatentWindow(start=start, num_frames=count, gaps=gaps.clamp(max=count - 1), latents=latents)


# Rate and distortion


CRFS = {"libx264": (24, 30, 36, 42, 48), "libx265": (24, 30, 36, 42, 48), "libsvtav1": (30, 40, 48, 56, 63)}
QUALITIES = (8, 20, DEFAULT_QUALITY, 55, 80)
RATES_AND_QUALITIES = ((0.5, 18), (0.25, 14), (0.25, 4))
IMAGE_QUALITIES = {"JPEG": (5, 15, 30, 60), "WEBP": (1, 10, 30, 60)}

Curves = dict[str, list[tuple[float, float]]]


def measure_curves(paths: list[Path], crop: int | None, num_frames: int, model: str | None) -> Curves:
    """Bits per pixel and PSNR of every codec and setting, means over the clips."""
    pipeline = VideoCompressionPipeline.from_pretrained(model or demo_model())
    pipeline.set_progress_bar_config(disable=True)
    points: dict[str, dict[Any, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    times: list[tuple[float, float]] = []
    for path in paths:
        clip = read_clip(path, crop, num_frames)
        for kind in ("int8", "int4"):
            points["version 1"][kind].append(fsv_point(pipeline, clip, times, quantize=kind))
        for quality in QUALITIES:
            points["version 2"][quality].append(fsv_point(pipeline, clip, times, quality=quality))
        for rate, quality in RATES_AND_QUALITIES:
            point = fsv_point(pipeline, clip, times, quality=quality, rate=rate)
            points["version 2, frames dropped"][rate, quality].append(point)
        for codec, crfs in CRFS.items():
            for crf in crfs:
                points[codec][crf].append(video_point(clip, codec, crf))
        for format, qualities in IMAGE_QUALITIES.items():
            for quality in qualities:
                points[format][quality].append(image_point(clip, format, quality))
    compressing, decompressing = 1000 * np.median(times, axis=0)
    print(f"model and coder: {compressing:.0f} ms of CPU to compress a megapixel, {decompressing:.0f} to decompress")
    return {
        name: sorted(tuple(np.mean(measured, axis=0).tolist()) for measured in settings.values())
        for name, settings in points.items()
    }


def show_rate_and_distortion(curves: Curves) -> None:
    """Prints every point, and the BD-rate of every codec against x264."""
    for name, points in curves.items():
        print(f"{name}: " + ", ".join(f"{bpp:.4f} bpp {psnr:.2f} dB" for bpp, psnr in points))
    for name, points in curves.items():
        if len(points) > 2 and name != "libx264":
            change = bd_rate(curves["libx264"], points)
            print(
                f"BD-rate of {name} against libx264: " + ("no common PSNR" if change is None else f"{change:+.0f} %")
            )


def draw(curves: Curves, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.8), dpi=100)
    for name, points in curves.items():
        style = "o-" if name.startswith("version") else ".:"
        axes.plot(*zip(*points, strict=True), style, label=name.replace("version", ".fsv, version"), markersize=4)
    axes.set_xscale("log")
    axes.set(xlabel="bits per pixel", ylabel="PSNR, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def read_clip(path: Path, crop: int | None, num_frames: int) -> np.ndarray:
    """Frames `(T, H, W, 3)` of uint8, of even sides."""
    frames = np.stack([frame.data for frame in islice(VideoReader(path), num_frames)])
    height, width = (min(crop or side, side) // 2 * 2 for side in frames.shape[1:3])
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])


def psnr_of(clip: np.ndarray, decoded: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(clip.astype(np.float64) - decoded).mean()))


def fsv_point(
    pipeline: VideoCompressionPipeline, clip: np.ndarray, times: list[tuple[float, float]], **options: Any
) -> tuple[float, float]:
    """Bits per pixel and PSNR; adds the seconds of CPU for each megapixel to `times`."""
    megapixels, start = clip[..., 0].size / 1e6, time.process_time()
    compressed = pipeline.compress(clip, **options)
    middle = time.process_time()
    decoded = np.concatenate(list(pipeline.decompress_frames(compressed)))
    times.append(((middle - start) / megapixels, (time.process_time() - middle) / megapixels))
    return compressed.bits_per_pixel, psnr_of(clip, decoded)


def video_point(clip: np.ndarray, codec: str, crf: int) -> tuple[float, float]:
    """Size of the packets alone, without a container."""
    buffer = io.BytesIO()
    preset = "6" if codec == "libsvtav1" else "slow"
    size = 0
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=24, options={"crf": str(crf), "preset": preset})
        stream.width, stream.height, stream.pix_fmt = clip.shape[2], clip.shape[1], "yuv420p"
        for frame in [*map(av.VideoFrame.from_ndarray, clip), None]:
            for packet in stream.encode(frame):
                size += packet.size
                container.mux(packet)
    buffer.seek(0)
    with av.open(buffer) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return 8 * size / clip[..., 0].size, psnr_of(clip, decoded)


def image_point(clip: np.ndarray, kind: str, quality: int) -> tuple[float, float]:
    size, decoded = 0, []
    for frame in clip:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, kind, quality=quality)
        size += buffer.tell()
        decoded.append(np.asarray(Image.open(buffer).convert("RGB")))
    return 8 * size / clip[..., 0].size, psnr_of(clip, np.stack(decoded))


def bd_rate(anchor: list[tuple[float, float]], points: list[tuple[float, float]]) -> float | None:
    """Mean difference of bits at equal PSNR in percent (Bjontegaard, VCEG-M33), between points joined by lines."""
    curves = [np.array(sorted(curve, key=lambda point: point[1])) for curve in (anchor, points)]
    low, high = max(curve[0, 1] for curve in curves), min(curve[-1, 1] for curve in curves)
    if high - low < 0.1:
        return None
    psnrs = np.linspace(low, high, 200)
    logs = [np.interp(psnrs, curve[:, 1], np.log(curve[:, 0])) for curve in curves]
    return float(100 * (np.exp((logs[1] - logs[0]).mean()) - 1))


def show_speed(side: tuple[int, int] = (720, 1280), length: int = 16, num_windows: int = 2) -> None:
    """CPU time to write and to read latents of 1280x720, raw and coded, with the embedded model's axes and without."""
    basis = LatentsBasis.from_config(FrameSelectVAE.load_config(demo_model(), subfolder="vae"))
    assert basis is not None
    num_frames = num_windows * length
    megapixels = num_frames * math.prod(side) / 1e6
    print(
        "| kept | stored as | bits a pixel | write, ms a megapixel | read | megapixels a second | |\n"
        + "|---" * 7
        + "|"
    )
    for share in (1, 4):
        windows = moving_windows(basis, side, length, num_windows, share)
        header = speed_header(side, num_frames, length, basis.cycle.channels)
        statistics = torch.cat([window.latents for window in windows], dim=1).flatten(1)
        plain = LatentsBasis.of_channels(statistics.mean(1).numpy(), statistics.std(1).numpy())
        raw: list[float] = []
        for kind, axes in (("bf16", None), ("int8", None), ("coded, channels", plain), ("coded, axes", basis)):
            size, seconds = write_and_read(kind, header, axes, windows)
            raw = raw or seconds
            costs = " | ".join(f"{1000 * value / megapixels:.1f}" for value in seconds)
            speeds = " and ".join(f"{megapixels / value:.1f}" for value in seconds)
            ratios = " and ".join(f"{value / first:.1f}" for value, first in zip(seconds, raw, strict=True))
            print(
                f"| 1/{share} | {kind} | {8e-6 * size / megapixels:.3f} | {costs} | {speeds} | {ratios} x bf16 |",
                flush=True,
            )


def moving_windows(
    basis: LatentsBasis, side: tuple[int, int], length: int, num_windows: int, share: int
) -> list[LatentWindow]:
    """Windows of which one frame in `share` is kept: fields smooth in space that change a little between frames."""
    generator = np.random.default_rng(0)
    shape = (basis.cycle.num_axes, side[0] // 8, side[1] // 8)
    deviations = basis.deviations[:, None, None]
    field = generator.normal(size=shape).cumsum(1).cumsum(2)
    field *= deviations / field.std(axis=(1, 2), keepdims=True)
    windows, gaps = [], torch.tensor([0, *[share] * (length // share - 1)])
    for start in range(0, num_windows * length, length):
        latents = []
        for frame in range(start, start + length, share):
            field = field + generator.laplace(size=shape) * 0.05 * deviations
            latents.append(basis.to_latents(field[basis.cycle.shown(frame)], frame))
        stacked = torch.from_numpy(np.stack(latents, axis=1)).float()
        windows.append(LatentWindow(start=start, num_frames=length, gaps=gaps, latents=stacked))
    return windows


def speed_header(side: tuple[int, int], num_frames: int, length: int, channels: int) -> FsvHeader:
    height, width = side
    return FsvHeader(
        num_frames=num_frames,
        height=height,
        width=width,
        model_height=height,
        model_width=width,
        clip_num_frames=length,
        latent_channels=channels,
        latent_height=height // 8,
        latent_width=width // 8,
    )


def write_and_read(
    kind: str, header: FsvHeader, basis: LatentsBasis | None, windows: list[LatentWindow]
) -> tuple[int, list[float]]:
    """Bytes of the file, and seconds of CPU to write and to read it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.fsv")
        start = time.process_time()
        if basis is None:
            with FsvWriter(path, replace(header, quantization=kind)) as raw:
                for window in windows:
                    raw.write_window(window)
        else:
            cycle, step = basis.cycle, basis.step(DEFAULT_QUALITY)
            turns = {"shared_channels": cycle.shared, "cycle_length": cycle.length}
            statistics = {"basis": basis.name, "channel_statistics": basis.channel_statistics}
            with CodedFsvWriter(
                path, replace(header, quantization="coded", step=step, **turns, **statistics), basis
            ) as coded:
                for window in windows:
                    coded.write_window(window)
        written = time.process_time()
        reader = open_fsv(path)
        if isinstance(reader, CodedFsvReader):
            reader.basis = basis
        for window in reader:
            assert torch.isfinite(window.latents).all()
        return path.stat().st_size, [written - start, time.process_time() - written]


if __name__ == "__main__":
    main()
