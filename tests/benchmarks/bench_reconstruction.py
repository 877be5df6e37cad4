"""Peak memory of reconstruction, evaluation and statistics of latents against the length of the clip.

Every case runs in a process of its own, with small autoencoders and frames of 64x64: what counts is the growth.

    python tests/benchmarks/bench_reconstruction.py [--frames 96 288] [--size 64 64] [--case AutoencoderKL3D]

What frames take beside the model, on 203 frames of 640x360 through small image autoencoders, and what chunks save of
one at its usual size:

    python tests/benchmarks/bench_reconstruction.py --frames 203 --size 640 360 --case small --task evaluate
    python tests/benchmarks/bench_reconstruction.py --frames 203 --size 640 360 --case AutoencoderTiny
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path


sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

CASES = {
    "AutoencoderKL3D, streamed": ("kl_3d", None),
    "FrameSelectVAE, windows": ("frame_select", None),
    "AutoencoderKLWan, chunks of 17": ("wan", 17),
    "AutoencoderKLWan, whole clip": ("wan", None),
    "AutoencoderTiny, chunks it picks": ("tiny_default", None),
    "AutoencoderTiny, whole clip": ("tiny_default", 1_000_000),
    "small AutoencoderTiny": ("tiny", None),
    "small AutoencoderKL": ("kl", None),
}


def write_clip(path: Path, num_frames: int, width: int, height: int) -> None:
    import numpy as np

    from diffusers_vidvae.media import VideoWriter

    rows, columns = np.mgrid[:height, :width]
    with VideoWriter(path, 24) as writer:
        for t in range(num_frames):
            frame = 128 + 100 * np.sin((columns + 2 * t) / 9)[..., None] * np.cos(rows / 11)[..., None]
            writer.write(frame.repeat(3, axis=2).astype(np.uint8))


def run_task(task: str, vae, chunk_frames: int | None, clip: Path) -> int:
    """Runs what the command of that name does, and returns the number of frames."""
    from diffusers_vidvae import VideoReconstructionPipeline
    from diffusers_vidvae.autoencoders.latent_statistics import latent_statistics
    from diffusers_vidvae.cli.evaluation import evaluate_reconstruction

    if task == "stats":
        return latent_statistics(vae, [clip]).num_frames
    if task == "evaluate":
        return evaluate_reconstruction(vae, clip, None, None, chunk_frames)["num_frames"]
    pipe = VideoReconstructionPipeline(vae)
    pipe.set_progress_bar_config(disable=True)
    output = clip.with_name("out.mp4")
    return pipe.reconstruct_file(
        clip, output, chunk_frames=chunk_frames, compute_metrics=True, overwrite=True
    ).num_frames


def measure(task: str, model: str, chunk_frames: int | None, clip: Path, connection) -> None:
    """Sends the number of frames, the growth of the peak memory in MB, the peak, and the seconds that it took."""
    import torch
    from diffusers import AutoencoderTiny
    from tiny_autoencoders import make_autoencoder

    torch.set_num_threads(1)
    vae = AutoencoderTiny().eval() if model == "tiny_default" else make_autoencoder(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    num_frames = run_task(task, vae, chunk_frames, clip)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection.send((num_frames, (peak - before) / 1024, peak / 1024, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=(96, 288), help="lengths of clips")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), help="width and height")
    parser.add_argument("--case", default="", help="beginning of the names of the cases to run")
    parser.add_argument("--task", default="reconstruct", choices=("reconstruct", "evaluate", "stats"))
    arguments = parser.parse_args()

    # Blocks that are freed go back to the system at once, so that the peak is that of what is in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("spawn")
    print(
        f"{'':32}"
        + "".join(f"{f'{n} frames, MB':>18}" for n in arguments.frames)
        + f"{'ratio':>8}{'whole MB':>10}{'frames/s':>10}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, chunk_frames) in CASES.items():
            if not name.startswith(arguments.case):
                continue
            results = []
            for num_frames in arguments.frames:
                clip = Path(folder) / f"{num_frames}.mp4"
                if not clip.exists():
                    write_clip(clip, num_frames, *arguments.size)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=measure, args=(arguments.task, model, chunk_frames, clip, sender))
                process.start()
                results.append(receiver.recv())
                process.join()
            peaks = "".join(f"{peak:18.0f}" for _, peak, _, _ in results)
            frames, last, whole, seconds = results[-1]
            print(f"{name:32}{peaks}{last / results[0][1]:8.2f}{whole:10.0f}{frames / seconds:10.1f}", flush=True)


if __name__ == "__main__":
    main()
