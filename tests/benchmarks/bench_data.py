r"""What reading, encoding and finding data costs, and what a hundred million clips would take.

    python tests/benchmarks/bench_data.py [--clips FOLDER] [--count 64] [--workers 0 1 2] [--processes 1 2]
        [--entries 1000000]

Clips a second: decoding alone, encoding alone (clips in memory), both with so many loading workers and with so many
processes that share the shards, and reading latents back; then the time and memory of starting with an index of so
many entries, and the time of a checkpoint. Workers and processes show something where there are cores for them, one
each. The plan at the end scales the measured bytes and rates; a rate of a GPU has to be assumed, and is
(`--gpu-clips`, clips a second).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


# As `torchrun` sets it for several processes: loading threads would otherwise wait for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from accelerate import Accelerator

from diffusers_vidvae import FrameSelectVAE, demo_model
from diffusers_vidvae.media import VideoWriter
from diffusers_vidvae.training.config import DataConfig, RunConfig
from diffusers_vidvae.training.data import ClipDataset, EveryWindow
from diffusers_vidvae.training.encoding import encode_dataset
from diffusers_vidvae.training.latent_shards import LatentDataset
from diffusers_vidvae.training.media_index import HEADER, read_index
from diffusers_vidvae.training.procedural import ProceduralClips
from diffusers_vidvae.training.train_frame_select_vae import FrameSelectObjective, TrainFrameSelectVAEConfig
from diffusers_vidvae.training.trainer import Trainer


PLAN = 100_000_000
SHARD = 512


def write_clips(folder: Path, count: int) -> None:
    """Procedural films of 32 frames."""
    films = ProceduralClips(count, num_frames=32, height=160, width=240)
    for number in range(count):
        with VideoWriter(folder / f"{number:05d}.mp4", 24) as writer:
            writer.write(films[number])


def clips_per_second(count: int, run) -> float:
    start = time.perf_counter()
    run()
    return count / (time.perf_counter() - start)


def measure_rates(windows: EveryWindow, workers: list[int], folder: Path) -> dict[str, float]:
    """Clips a second of every stage, and bytes of a clip's latents."""
    vae = FrameSelectVAE.from_pretrained(demo_model(), subfolder="vae").eval()
    count = len(windows)
    rates = {"decode": clips_per_second(count, lambda: [windows[number] for number in range(count)])}
    clip = windows[0]["sample"][None].repeat(8, 1, 1, 1, 1)
    with torch.no_grad():
        rates["encode"] = clips_per_second(32, lambda: [vae.encode(clip) for _ in range(4)])
    accelerator = Accelerator(cpu=True)
    for number in workers:
        target, start = folder / f"latents-{number}", time.perf_counter()
        report = encode_dataset(vae, windows, target, count, SHARD, 8, accelerator, num_workers=number)
        rates[f"decode and encode, {number} workers"] = count / (time.perf_counter() - start)
        print(f"{number} workers: the autoencoder waited {report.waited:.0%} of its time")
    latents = LatentDataset(folder / f"latents-{workers[0]}")
    rates["read back"] = clips_per_second(count, lambda: [latents.clip(number) for number in range(count)])
    size = sum(path.stat().st_size for path in (folder / f"latents-{workers[0]}").glob("*.safetensors"))
    return rates | {"bytes": size / count}


def encode_with(windows: EveryWindow, target: Path, rank: int, processes: int, port: int) -> None:
    """What one of several processes encodes, decoding included, on a core of its own where there are as many."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    vae = FrameSelectVAE.from_pretrained(demo_model(), subfolder="vae").eval()
    encode_dataset(vae, windows, target, len(windows), 8, 8, Accelerator(cpu=True))


def measure_processes(windows: EveryWindow, counts: list[int], folder: Path) -> dict[str, float]:
    """Clips a second of so many processes, their start included, and how efficient they are against the first."""
    rates: dict[str, float] = {}
    cores = len(os.sched_getaffinity(0))
    for count in counts:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        context, target = multiprocessing.get_context("fork"), folder / f"processes-{count}"
        started = time.perf_counter()
        running = [
            context.Process(target=encode_with, args=(windows, target, rank, count, port)) for rank in range(count)
        ]
        for process in running:
            process.start()
        for process in running:
            process.join()
        rates[f"{count} processes"] = rate = len(windows) / (time.perf_counter() - started)
        efficiency = rate / rates[f"{counts[0]} processes"] * counts[0] / count
        if cores < count:
            print(f"{count} processes share {cores} of the cores, which says nothing of how they scale")
        elif count != counts[0]:
            print(f"{count} processes: efficiency {efficiency:.2f} against {counts[0]}")
    return rates


def measure_saving(folder: Path) -> None:
    """Time of a checkpoint beside that of a training step, for the demo model."""
    run = RunConfig(
        output_dir=str(folder), max_steps=8, batch_size=8, cpu=True, mixed_precision="fp32", validate_every=0
    )
    config = TrainFrameSelectVAEConfig(data=DataConfig(num_procedural_clips=100), run=run)
    vae = FrameSelectVAE.from_pretrained(demo_model(), subfolder="vae")
    trainer = Trainer(FrameSelectObjective(vae, config), ClipDataset(config.data), config)
    batches, folder_of = trainer._batches(), folder / "checkpoint-00000004"
    trainer._optimize(batches)
    start = time.perf_counter()
    for _ in range(3):
        trainer._optimize(batches)
    step, start, trainer.step = (time.perf_counter() - start) / 3, time.perf_counter(), 4
    trainer._save_checkpoint()
    saving = time.perf_counter() - start
    size = sum(path.stat().st_size for path in folder_of.rglob("*") if path.is_file())
    print(
        f"a checkpoint of {size / 1e6:.0f} MB takes {saving:.2f} s, a step of 8 clips {step:.2f} s on this core:"
        f" {saving / (saving + 500 * step):.2%} of a training that saves every 500; {size / saving / 1e6:.0f} MB/s"
    )


def measure_index(path: Path, entries: int) -> dict[str, float]:
    """Time and memory of reading an index, in a process of its own; bytes of an entry."""
    entry = (
        '{{"path": "shard/{0:08d}.mp4", "size": 81920, "modified": 1700000000000000000, "fingerprint": "{0:016x}",'
        ' "kind": "video", "width": 640, "height": 360, "num_frames": 250, "fps": 25, "seconds": 10, "start": 0}}'
    )
    with open(path, "w") as file:
        file.write(str(HEADER).replace("'", '"') + "\n")
        file.writelines(entry.format(number) + "\n" for number in range(entries))
    script = [sys.executable, __file__, "--read-index", str(path)]
    said = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    print(said[0])
    return {"index bytes": path.stat().st_size / entries, "index memory": float(said[1]) / entries}


def peak_bytes() -> int:
    """Most memory that this program had; `getrusage` counts what started it, too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def read_index_alone(path: Path) -> None:
    before, start = peak_bytes(), time.process_time()
    index = read_index(path)
    seconds, memory = time.process_time() - start, peak_bytes() - before
    print(
        f"index of {len(index)} entries ({path.stat().st_size / 1e6:.0f} MB on disk): {seconds:.1f} s of a core,"
        f" {memory / 1e6:.0f} MB beside the {before / 1e6:.0f} MB of the libraries"
    )
    print(memory)


def plan(rates: dict[str, float], gpu_clips: float) -> None:
    core_hours, gpu_hours = PLAN / rates["encode"] / 3600, PLAN / gpu_clips / 3600
    print(f"\n{PLAN:,} clips:")
    print(f"  {PLAN * rates['bytes'] / 1e12:.2f} TB of latents in {-(-PLAN // SHARD):,} shards of {SHARD} clips")
    on_disk, in_memory = (PLAN * rates[f"index {name}"] / 1e9 for name in ("bytes", "memory"))
    print(f"  {on_disk:.0f} GB of index on disk, {in_memory:.0f} GB in memory")
    print(f"  {core_hours:,.0f} hours of this core to encode")
    print(f"  {gpu_hours:,.0f} GPU hours to encode at {gpu_clips:.0f} clips a second")
    print(f"  {gpu_clips / rates['decode']:.1f} cores like this one to decode for such a GPU")
    print(
        "  first to break: decoding, for which a GPU needs that many cores; then the index, all of which every machine"
        " holds (split it, one for each machine); then the files in one folder (larger shards)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of videos; by default procedural ones")
    parser.add_argument("--count", type=int, default=32, help="procedural films")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--gpu-clips", type=float, default=500.0)
    parser.add_argument("--read-index", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read_index:
        read_index_alone(options.read_index)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = options.clips or folder / "clips"
        if options.clips is None:
            clips.mkdir()
            write_clips(clips, options.count)
        windows = EveryWindow(DataConfig([str(clips)], procedural_share=0.0, num_frames=16, sample_size=64))
        rates = measure_processes(windows, options.processes, folder)  # forks, before this process has threads
        rates |= measure_rates(windows, options.workers, folder)
        print(f"\n{len(windows)} clips of 16 frames of 64x64 pixels, one thread:")
        for stage, rate in rates.items():
            print(f"  {stage:32} {rate:10.1f} {'bytes a clip' if stage == 'bytes' else 'clips a second'}")
        measure_saving(folder / "run")
        rates |= measure_index(folder / "index.jsonl", options.entries)
        plan(rates, options.gpu_clips)


if __name__ == "__main__":
    main()
