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
from itertools import islice
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusers_vidvae import FrameSelectVAE, VideoCompressionPipeline, demo_model  # noqa: E402
from diffusers_vidvae.media import VideoReader, VideoWriter  # noqa: E402


NUM_FRAMES, SIDE = 32, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="video to compress with the demo model")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(CASES[arguments.case](arguments.file)))
        return

    base = run("imports", None)
    print(f"imports alone: {base['peak_mb']:.0f} MB; {torch.get_num_threads()} threads")
    for dtype in ("float32", "bfloat16"):
        print(f"published size, {SIDE}x{SIDE}, {dtype}: {describe(run(dtype, None))}")
    if arguments.file:
        with tempfile.TemporaryDirectory() as folder:
            quarter = write_quarter(arguments.file, Path(folder) / "quarter.mp4")
            short, whole = run("demo", quarter), run("demo", arguments.file)
        print(f"demo model, first quarter: {describe(short)}")
        print(f"demo model, whole clip:    {describe(whole)}")
        print(f"peak memory, whole to quarter: {whole['peak_mb'] / short['peak_mb']:.3f}")


def run(case: str, file: str | Path | None) -> dict:
    """Runs a case in a process of its own."""
    command = [sys.executable, __file__, "--case", case, *([str(file)] if file else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def describe(figures: dict) -> str:
    text = f"{figures['num_frames']} frames"
    for step in ("compress", "decompress"):
        text += f", {step} {figures[step]:.1f} s ({figures['num_frames'] / figures[step]:.1f} frames/s)"
    return f"{text}, peak {figures['peak_mb']:.0f} MB"


def measure_imports(file: None) -> dict:
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


def measure_demo(file: str) -> dict:
    pipeline = VideoCompressionPipeline(FrameSelectVAE.from_pretrained(demo_model(), subfolder="vae"))
    with tempfile.TemporaryDirectory() as folder:
        return measure(pipeline, file, Path(folder))


def measure(pipeline: VideoCompressionPipeline, clip: torch.Tensor | str, folder: Path) -> dict:
    pipeline.set_progress_bar_config(disable=True)
    begin = time.perf_counter()
    compressed = pipeline.compress(clip, rate=0.25, output=folder / "clip.fsv")
    middle = time.perf_counter()
    pipeline.decompress_file(compressed, folder / "clip.mp4")
    end = time.perf_counter()
    figures = {"num_frames": compressed.header.num_frames, "peak_mb": peak_mb()}
    return figures | {"compress": middle - begin, "decompress": end - middle}


def peak_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def write_quarter(file: str, output: Path) -> Path:
    """The first quarter of a clip's frames."""
    with VideoReader(file) as reader:
        num_frames = reader.info.num_frames or sum(1 for _ in reader)
        with VideoWriter(output, reader.info.fps) as writer:
            for frame in islice(reader, max(num_frames // 4, 1)):
                writer.write(frame.data)
    return output


CASES = {
    "imports": measure_imports,
    "float32": lambda file: measure_published_size(torch.float32),
    "bfloat16": lambda file: measure_published_size(torch.bfloat16),
    "demo": measure_demo,
}


if __name__ == "__main__":
    main()
