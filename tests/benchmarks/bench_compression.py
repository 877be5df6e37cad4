"""Time and peak memory of compression and decompression.

python tests/benchmarks/bench_compression.py              # the published size, with random weights
python tests/benchmarks/bench_compression.py clip.mp4     # and a file with the demo model, whole and its first quarter

Every case runs in a process of its own, whose peak memory is that of the case and of the libraries it imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusers_vidvae import FrameSelectVAE, VideoCompressionPipeline, demo_model  # noqa: E402
from diffusers_vidvae.media import VideoReader, VideoWriter  # noqa: E402


NUM_FRAMES, SIDE = 32, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="video to compress with the demo model")
    parser.add_argument("--max-frames", type=int, help="frames of the file to take; all by default")
    parser.add_argument("--size-mode", default="auto", help="how the file's frames are brought to the model's size")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(CASES[arguments.case](arguments)))
        return

    base = run("imports")
    print(f"imports alone: {base['peak_mb']:.0f} MB; {torch.get_num_threads()} threads")
    for dtype in ("float32", "bfloat16"):
        print(f"published size, {SIDE}x{SIDE}, {dtype}: {describe(run(dtype))}")
    if arguments.file:
        with tempfile.TemporaryDirectory() as folder:
            whole = write_start(arguments.file, Path(folder) / "whole.mp4", arguments.max_frames)
            quarter = write_start(whole, Path(folder) / "quarter.mp4", count_frames(whole) // 4)
            short, long = (run("demo", file, "--size-mode", arguments.size_mode) for file in (quarter, whole))
        print(f"demo model, first quarter: {describe(short)}")
        print(f"demo model, whole clip:    {describe(long)}")
        print(f"peak memory, whole to quarter: {long['peak_mb'] / short['peak_mb']:.3f}")


def run(case: str, *options: str | Path) -> dict:
    """Runs a case in a process of its own."""
    command = [sys.executable, __file__, "--case", case, *map(str, options)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def describe(figures: dict) -> str:
    text = f"{figures['num_frames']} frames"
    for step in ("compress", "decompress"):
        seconds, cpu_seconds = figures[step]
        text += f", {step} {seconds:.1f} s ({cpu_seconds:.1f} s of CPU)"
    return f"{text}, peak {figures['peak_mb']:.0f} MB"


def measure_imports(arguments: argparse.Namespace) -> dict:
    return {"peak_mb": peak_mb()}


def measure_published_size(dtype: torch.dtype) -> dict:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        vae = FrameSelectVAE()
    vae = vae.to_empty(device="cpu").to(dtype)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    pipeline = VideoCompressionPipeline(vae.to(device).eval())
    clip = 2 * torch.rand(1, 3, NUM_FRAMES, SIDE, SIDE) - 1
    with tempfile.TemporaryDirectory() as folder:
        return measure(pipeline, clip, Path(folder))


def measure_demo(arguments: argparse.Namespace) -> dict:
    pipeline = VideoCompressionPipeline(FrameSelectVAE.from_pretrained(demo_model(), subfolder="vae"))
    with tempfile.TemporaryDirectory() as folder:
        return measure(pipeline, arguments.file, Path(folder), size_mode=arguments.size_mode)


def measure(pipeline: VideoCompressionPipeline, clip: torch.Tensor | str, folder: Path, **options: str) -> dict:
    pipeline.set_progress_bar_config(disable=True)
    clocks = [(time.perf_counter(), time.process_time())]
    compressed = pipeline.compress(clip, rate=0.25, output=folder / "clip.fsv", **options)
    clocks.append((time.perf_counter(), time.process_time()))
    pipeline.decompress_file(compressed, folder / "clip.mp4")
    clocks.append((time.perf_counter(), time.process_time()))
    steps = [[end - begin for begin, end in zip(*pair, strict=True)] for pair in pairwise(clocks)]
    return {
        "num_frames": compressed.header.num_frames,
        "peak_mb": peak_mb(),
        "compress": steps[0],
        "decompress": steps[1],
    }


def peak_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def count_frames(file: str | Path) -> int:
    return sum(1 for _ in VideoReader(file))


def write_start(file: str | Path, output: Path, num_frames: int | None) -> Path:
    """The first frames of a clip."""
    with VideoReader(file) as reader, VideoWriter(output, reader.info.fps, preset="ultrafast") as writer:
        for frame in islice(reader, num_frames):
            writer.write(frame.data)
    return output


CASES = {
    "imports": measure_imports,
    "float32": lambda arguments: measure_published_size(torch.float32),
    "bfloat16": lambda arguments: measure_published_size(torch.bfloat16),
    "demo": measure_demo,
}


if __name__ == "__main__":
    main()
