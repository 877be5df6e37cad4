"""Sizes, errors, times and memory of `.fsv` files.

python tests/benchmarks/bench_fsv.py               # Gaussian latents of the published shape
python tests/benchmarks/bench_fsv.py clip.fsv      # and how a real clip's latents take each quantization
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusers_vidvae.codec import (  # noqa: E402
    QUANTIZATIONS,
    CompressedVideo,
    FsvHeader,
    FsvWriter,
    LatentWindow,
    dequantize,
    quantize,
)


CHANNELS, SIDE, CLIP_FRAMES, KEPT = 96, 16, 32, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="an .fsv file, best one of fp32 latents")
    arguments = parser.parse_args()
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


if __name__ == "__main__":
    main()
