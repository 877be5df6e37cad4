"""Speed and memory of measuring a clip: `python tests/benchmarks/bench_metrics.py [--frames 300]`."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusers_vidvae.metrics import ClipMetrics  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--piece", type=int, default=8, help="frames per update")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    metrics = ClipMetrics(boundaries=[arguments.frames // 2], seam_columns=[256], seam_rows=[256])
    seconds = 0.0
    for start in range(0, arguments.frames, arguments.piece):
        count = min(arguments.piece, arguments.frames - start)
        reference = torch.randint(0, 256, (count, arguments.height, arguments.width, 3), dtype=torch.uint8)
        reconstruction = (reference // 2 + 60).clone()
        begin = time.perf_counter()
        metrics.update(reference, reconstruction)
        seconds += time.perf_counter() - begin
        if start == 0 or start + count == arguments.frames:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{start + count} frames: {(start + count) / seconds:.1f} frames/s, peak memory {peak:.0f} MiB")
    print({name: value for name, value in metrics.compute().items() if value is not None})


if __name__ == "__main__":
    main()
