r"""Seconds that imports and the command line take to start, CPU time and wall time, the least of some runs.

python tests/benchmarks/bench_startup.py [--runs 5]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


COMMAND = "from diffusers_vidvae.cli import main; main()"
IMPORTS = (
    "import torch",
    "import diffusers",
    "import diffusers_vidvae",
    "import diffusers, diffusers_vidvae",
    "from diffusers import DiffusionPipeline",
    "import diffusers_vidvae; from diffusers import DiffusionPipeline",
)


def measure(arguments: list[str], runs: int) -> tuple[float, float]:
    """Least CPU and wall time of a process."""
    cpu, wall = [], []
    for _ in range(runs):
        before, start = os.times(), time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = os.times()
        wall.append(time.perf_counter() - start)
        cpu.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(cpu), min(wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        subprocess.run([sys.executable, "-c", COMMAND, "demo-clip", clip], check=True, stdout=subprocess.DEVNULL)
        from diffusers_vidvae import demo_model

        commands = (["--help"], ["compress", "--help"], ["info", str(clip)], ["info", demo_model()])
        print(f"{'CPU':>7} {'wall':>7}   what")
        for code in IMPORTS:
            report(code, ["-c", code], runs)
        for command in commands:
            name = " ".join(["vidvae", *(Path(argument).name for argument in command)])
            report(name, ["-c", COMMAND, *command], runs)


def report(name: str, arguments: list[str], runs: int) -> None:
    cpu, wall = measure(arguments, runs)
    print(f"{cpu:6.2f}s {wall:6.2f}s   {name}", flush=True)


if __name__ == "__main__":
    main()
