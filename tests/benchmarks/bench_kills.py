r"""Encodes one data set through many SIGKILLs, with another number of processes each time, and counts what is lost.

    python tests/benchmarks/bench_kills.py [--kills 30] [--seed 0]

Every attempt is killed, all of its processes at once, a random moment after a random number of new shards, or at a
random moment of its start. The last one may finish. What is there then is compared with what one process wrote
undisturbed: bytes of every file, and how often each clip is in it by the name that its column carries.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusers_vidvae import FrameSelectVAE  # noqa: E402
from diffusers_vidvae.media import VideoWriter  # noqa: E402
from diffusers_vidvae.training.config import DataConfig  # noqa: E402
from diffusers_vidvae.training.data import EveryWindow  # noqa: E402
from diffusers_vidvae.training.encoding import encode_dataset  # noqa: E402
from diffusers_vidvae.training.latent_shards import LatentDataset  # noqa: E402
from tests.training.conftest import TINY_VAE  # noqa: E402


PROCESSES = (1, 2, 4)
# Shards after which an attempt is killed at the latest, so that there is work for all of them.
MOST_SHARDS = 3


def write_clips(folder: Path, count: int) -> Path:
    """A list of so many one-window clips, each with a name of its own in a column."""
    for level in range(4):
        with VideoWriter(folder / f"{level}.mp4", 10) as writer:
            writer.write(np.full((4, 16, 16, 3), 60 * level + 20, np.uint8))
    lines = [json.dumps({"path": f"{number % 4}.mp4", "name": f"clip {number}"}) for number in range(count)]
    (folder / "list.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "list.jsonl"


def encode(source: Path, target: Path, rank: int, processes: int, port: int) -> None:
    """What one of several processes does."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.manual_seed(0)
    vae = FrameSelectVAE(**TINY_VAE).eval()
    data = DataConfig([str(source)], columns=["name"], procedural_share=0.0, num_frames=4, sample_size=16)
    windows = EveryWindow(data)
    encode_dataset(vae, windows, target, len(windows), 1, 1, Accelerator(cpu=True), webdataset=True)


def start(source: Path, target: Path, processes: int) -> list[BaseProcess]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Forks, so that an attempt does not begin with seconds of imports.
    context = multiprocessing.get_context("fork")
    started = [
        context.Process(target=encode, args=(source, target, rank, processes, port)) for rank in range(processes)
    ]
    for process in started:
        process.start()
    return started


def kill_at_random(running: list[BaseProcess], target: Path, rng: np.random.Generator) -> int:
    """Kills all processes of an attempt; returns how many shards it wrote."""
    before = len(list(target.glob("*.tar")))
    wanted = int(rng.integers(0, MOST_SHARDS + 1))
    deadline = time.monotonic() + (rng.uniform(0, 2) if wanted == 0 else 120)
    while time.monotonic() < deadline and any(process.is_alive() for process in running):
        if wanted and len(list(target.glob("*.tar"))) >= before + wanted:
            break
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.05))
    for process in running:
        os.kill(process.pid or 0, signal.SIGKILL)
    for process in running:
        process.join()
    return len(list(target.glob("*.tar"))) - before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".encoding"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    count = (options.kills + 1) * (MOST_SHARDS + max(PROCESSES))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target = write_clips(folder, count), folder / "killed"
        target.mkdir()
        for process in start(source, folder / "whole", 1):
            process.join()
        kills: Counter[int] = Counter()
        written = []
        for _ in range(options.kills):
            processes = int(rng.choice(PROCESSES))
            written.append(kill_at_random(start(source, target, processes), target, rng))
            kills[processes] += 1
        litter = sum(1 for path in target.iterdir() if ".tmp." in path.name)
        for process in start(source, target, int(rng.choice(PROCESSES[1:]))):
            process.join()
        latents = LatentDataset(target)
        found = Counter(latents.columns(index)["name"] for index in range(len(latents)))
        lost = sum(1 for number in range(count) if not found[f"clip {number}"])
        doubled = sum(times - 1 for times in found.values())
        same = contents(target) == contents(folder / "whole")
        shutil.rmtree(target)
    print(f"{sum(kills.values())} kills of " + ", ".join(f"{n} processes: {kills[n]}" for n in PROCESSES))
    print(
        f"{sum(written)} of {count} shards written by killed attempts, 0 to {max(written)} each; {litter} half files"
    )
    print(f"{lost} lost, {doubled} doubled; {'the same' if same else 'other'} bytes as one process undisturbed")
    return int(bool(lost or doubled or not same))


if __name__ == "__main__":
    sys.exit(main())
