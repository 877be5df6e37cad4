"""Reading and writing video: frames per second, memory against length, and how exact the colours are.

    python tests/benchmarks/bench_media.py [CLIP]
    python tests/benchmarks/bench_media.py CLIP --copy

Without a clip, one is made from a photograph of scikit-image.
"""

from __future__ import annotations

import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

from diffusers_vidvae.media import VideoReader, VideoWriter
from diffusers_vidvae.media.background import read_ahead, waiting_frames


@contextmanager
def measured(label: str, num_frames: int) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds = time.perf_counter() - begin
    print(f"{label:<44} {num_frames / seconds:8.1f} frames/s")


def made_clip(path: Path, num_frames: int, height: int = 360, width: int = 480) -> Path:
    from skimage import data

    photo = data.coffee()
    with VideoWriter(path, 30, preset="ultrafast") as writer:
        for t in range(num_frames):
            left, top = t % (600 - width), t % (400 - height)
            writer.write(photo[top : top + height, left : left + width])
    return path


def bench_reading(path: Path) -> None:
    reader = VideoReader(path)
    num_frames = sum(1 for _ in reader)
    print(f"{reader!r}, {num_frames} frames")
    with measured("read, FFmpeg's own conversion (inexact)", num_frames), av.open(path) as container:
        for frame in container.decode(video=0):
            frame.to_ndarray(format="rgb24")
    with measured("read, VideoReader", num_frames):
        for _ in reader:
            pass
    begin = time.perf_counter()
    reader.read(num_frames - 1)
    print(f"{'last frame by index, first time':<44} {1000 * (time.perf_counter() - begin):8.1f} ms")
    begin = time.perf_counter()
    last = reader.read(num_frames - 1)
    print(f"{'last frame by index, again':<44} {1000 * (time.perf_counter() - begin):8.1f} ms")
    begin = time.perf_counter()
    reader.read_seconds(float(last.pts_seconds[0]), float(last.pts_seconds[0]) + 1)
    print(f"{'last frame by time':<44} {1000 * (time.perf_counter() - begin):8.1f} ms")


def bench_colours(path: Path) -> None:
    with av.open(path) as container:
        usual = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(float)
    exact = VideoReader(path, square_pixels=False, tone_map=False).read(0, 1).data[0].astype(float)
    if usual.shape == exact.shape:
        difference = usual - exact
        psnr = 10 * np.log10(255**2 / max(np.mean(difference**2), 1e-12))
        print(f"FFmpeg's own conversion against ours: {psnr:.1f} dB, {difference.mean():+.2f} levels on average")


def bench_memory(folder: Path) -> None:
    peaks = []
    for num_frames in (32, 320):
        path = made_clip(folder / f"{num_frames}.mp4", num_frames)
        tracemalloc.start()
        for chunk in VideoReader(path).iter_chunks(16):
            del chunk
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    print(f"peak memory in chunks of 16: {peaks[0]:.1f} MiB for 32 frames, {peaks[1]:.1f} MiB for 320")


def bench_writing(path: Path, folder: Path) -> None:
    reader = VideoReader(path)
    frames = reader.read(0, 60).data
    for name, options in (("h264.mp4", {}), ("ffv1.mkv", {"lossless": True}), ("vp9.webm", {}), ("out.gif", {})):
        with measured(f"write {name}", len(frames)), VideoWriter(folder / name, 30, **options) as writer:
            writer.write(frames)
        read = VideoReader(folder / name).read().data
        error = np.mean((read.astype(float) - frames) ** 2)
        quality = "identical" if error == 0 else f"{10 * np.log10(255**2 / error):.1f} dB"
        print(f"{'':<44} {(folder / name).stat().st_size / 2**20:8.2f} MiB, {quality}")


def bench_copying(path: Path, folder: Path, rounds: int = 3) -> None:
    """Reads a clip and writes it again, without a model between: ours and bare PyAV with threads, by turns."""

    def ours() -> None:
        reader = VideoReader(path)
        frames = read_ahead(iter(reader), waiting_frames(reader.info.height, reader.info.width))
        with VideoWriter(folder / "ours.mp4", reader.info.fps, overwrite=True) as writer:
            for frame in frames:
                writer.write(frame.data)

    def bare() -> None:
        with av.open(path) as source, av.open(folder / "bare.mp4", "w") as target:
            read, written = source.streams.video[0], None
            read.thread_type = "AUTO"
            for frame in source.decode(read):
                image = frame.to_ndarray(format="rgb24")
                if written is None:
                    written = target.add_stream("libx264", rate=read.average_rate, options={"crf": "18"})
                    written.width, written.height, written.pix_fmt = frame.width, frame.height, "yuv420p"
                target.mux(written.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            if written is not None:
                target.mux(written.encode(None))

    seconds: dict[str, list[float]] = {"ours": [], "bare PyAV": []}
    for _ in range(rounds):
        for name, run in (("ours", ours), ("bare PyAV", bare)):
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: sorted(times)[rounds // 2] for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{'read and write, ' + name:<44} {median:8.2f} s")
    print(f"{'speed of ours over bare PyAV':<44} {medians['bare PyAV'] / medians['ours']:8.2f}")


def main() -> None:
    if "--copy" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            bench_copying(Path(sys.argv[1]), Path(folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else made_clip(Path(folder) / "clip.mp4", 300)
        bench_reading(path)
        bench_colours(path)
        bench_memory(Path(folder))
        bench_writing(path, Path(folder))


if __name__ == "__main__":
    main()
