r"""Tiles of a `FrameSelectVAE` on real footage: time from file to file, next to the arithmetic alone, and quality.

    python tests/benchmarks/bench_tiles.py CLIP [--tiles 64:0.25:16 128:0.125:4] [--frames 16] [--model FOLDER]

A tile is its side in pixels, the overlap as a share of it, and how many run at once. Each is used to compress the
first frames of the clip, all of them kept, into an `.fsv` file, and to bring these back as H.264, with freed memory
kept as `vidvae` does. Times are processor seconds of one thread. The floor is the time that the multiplications of the
model take where nothing is computed twice, at the rate at which this machine multiplies large matrices in the same
run. The peak of memory is that of the whole process so far.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusers_vidvae import FrameSelectVAE, VideoCompressionPipeline, demo_model  # noqa: E402
from diffusers_vidvae.cli.models import keep_freed_memory  # noqa: E402
from diffusers_vidvae.media import VideoReader, VideoWriter  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--tiles", nargs="+", default=["64:0.25:16", "128:0.125:4", "192:0.125:2"])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--model", default=demo_model(), help="folder of a pipeline; by default the demo model")
    options = parser.parse_args()

    keep_freed_memory()
    vae = FrameSelectVAE.from_pretrained(options.model, subfolder="vae").eval()
    pipeline = VideoCompressionPipeline(vae)
    pipeline.set_progress_bar_config(disable=True)
    frames = np.stack([frame.data for frame in islice(VideoReader(options.clip), options.frames)])
    _, height, width, _ = frames.shape
    print(f"{len(frames)} frames of {width}x{height}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        with VideoWriter(clip, 30, crf=8) as writer:
            writer.write(frames)
        floors = [operations / multiplication_rate() for operations in count_operations(vae, frames)]
        print(f"{'floor':16} {floors[0]:8.1f} s {floors[1]:8.1f} s")
        for tile in options.tiles:
            print_row(pipeline, clip, tile, sum(floors))


def print_row(pipeline: VideoCompressionPipeline, clip: Path, tile: str, floor: float) -> None:
    side, overlap, batch = tile.split(":")
    pipeline.vae.enable_tiling(int(side), float(overlap), int(batch))
    compressed, back = clip.with_suffix(".fsv"), clip.with_name("back.mp4")
    seconds = [
        processor_seconds(lambda: pipeline.compress_file(clip, compressed, overwrite=True, size_mode="tile")),
        processor_seconds(lambda: pipeline.decompress_file(compressed, back, overwrite=True)),
    ]
    original = np.stack([frame.data for frame in VideoReader(clip)]).astype(np.float32)
    decoded = np.concatenate(list(pipeline.decompress_frames(compressed))).astype(np.float32)
    psnr = 10 * np.log10(255**2 / np.square(decoded - original).mean())
    share = 100 * floor / sum(seconds)
    size = f"{compressed.stat().st_size / 1e3:.0f} kB"
    peak = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB"
    row = f"{tile:16} {seconds[0]:8.1f} s {seconds[1]:8.1f} s {share:6.1f} % {psnr:7.2f} dB"
    print(f"{row} {size:>9} {peak:>8}", flush=True)


def processor_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def multiplication_rate(side: int = 1024, repeats: int = 8) -> float:
    """Operations per second of products of large matrices, float32."""
    left, right, output = torch.rand(3, side, side)
    torch.mm(left, right, out=output)
    seconds = processor_seconds(lambda: [torch.mm(left, right, out=output) for _ in range(repeats)])
    return repeats * 2 * side**3 / seconds


@torch.no_grad()
def count_operations(vae: FrameSelectVAE, frames: np.ndarray) -> tuple[float, float]:
    """Operations of encoding and of decoding frames `(T, H, W, 3)` by those of a clip of the model's own size."""
    side, num_frames = vae.config.sample_size, min(len(frames), vae.config.clip_num_frames)
    times = len(frames) / num_frames * frames.shape[1] * frames.shape[2] / side**2
    vae.disable_tiling()
    with FlopCounterMode(display=False) as counter:
        latents = vae.encode(torch.zeros(1, 3, num_frames, side, side)).latent_dist.mode()
    encoding = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        vae.decode(latents)
    return times * encoding, times * counter.get_total_flops()


if __name__ == "__main__":
    main()
