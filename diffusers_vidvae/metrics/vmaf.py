"""VMAF of video files, by an ffmpeg that has it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


# Frames are paired by number, whatever the time stamps of the two files.
_FILTERS = (
    "[0:v:0]settb=AVTB,setpts=N/25/TB,format=yuv420p,split[distorted][counted];"
    "[1:v:0]settb=AVTB,setpts=N/25/TB,format=yuv420p,split[reference][recounted];"
    "[distorted][reference]libvmaf=log_fmt=json:log_path=vmaf.json:n_threads={threads}[compared]"
)


@dataclass(frozen=True)
class VmafScores:
    """VMAF of a clip, 0 to 100.

    Attributes:
        mean: Mean over frames.
        harmonic_mean: Harmonic mean over frames, which weighs bad frames more.
        worst: Lowest score of a frame.
        per_frame: Score of every frame.
    """

    mean: float
    harmonic_mean: float
    worst: float
    per_frame: tuple[float, ...]


def find_vmaf_ffmpeg() -> str | None:
    """An ffmpeg that has the libvmaf filter: the one on the path, else that of the imageio-ffmpeg package."""
    return next((binary for binary in _ffmpeg_binaries() if _has_vmaf(binary)), None)


def vmaf(reference: str | Path, reconstruction: str | Path, ffmpeg: str | None = None, threads: int = 2) -> VmafScores:
    """VMAF (Netflix's default model) of a reconstructed video file.

    Args:
        reference: The original's file.
        reconstruction: The reconstruction's file, of the same size and number of frames. Its own compression counts,
            so it is best a lossless one.
        ffmpeg: The binary to use; by default what `find_vmaf_ffmpeg` finds.
        threads: Threads that compute the score.

    Raises:
        ValueError: A file is missing, no ffmpeg with libvmaf is found, ffmpeg fails, or the files differ in length.
    """
    for path in (reference, reconstruction):
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file.")
    ffmpeg = ffmpeg or find_vmaf_ffmpeg()
    if ffmpeg is None:
        raise ValueError("VMAF needs an ffmpeg with the libvmaf filter: pip install imageio-ffmpeg brings one.")
    with tempfile.TemporaryDirectory(prefix="vidvae-vmaf-") as folder:
        _run_ffmpeg(ffmpeg, [reconstruction, reference], Path(folder), threads)
        lengths = [_count_frames(Path(folder, name)) for name in ("recounted.txt", "counted.txt")]
        if lengths[0] != lengths[1]:
            raise ValueError(f"{reference} has {lengths[0]} frames, {reconstruction} has {lengths[1]}.")
        return _read_scores(Path(folder, "vmaf.json"))


def _run_ffmpeg(ffmpeg: str, inputs: list[str | Path], folder: Path, threads: int) -> None:
    command = [ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "error"]
    for path in inputs:
        command += ["-i", str(Path(path).resolve())]
    command += ["-filter_complex", _FILTERS.format(threads=threads), "-map", "[compared]", "-f", "null", "-"]
    for name in ("counted", "recounted"):
        command += ["-map", f"[{name}]", "-f", "framecrc", f"{name}.txt"]
    # The log is written to the working folder, because its path would need escaping inside the filter.
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise ValueError(f"ffmpeg cannot compare {inputs[1]} and {inputs[0]}: {lines[0].rstrip('.')}.")


def _count_frames(listing: Path) -> int:
    with listing.open() as lines:
        return sum(not line.startswith("#") for line in lines)


def _read_scores(log: Path) -> VmafScores:
    content = json.loads(log.read_text())
    pooled = content["pooled_metrics"]["vmaf"]
    per_frame = tuple(frame["metrics"]["vmaf"] for frame in content["frames"])
    return VmafScores(pooled["mean"], pooled["harmonic_mean"], pooled["min"], per_frame)


def _ffmpeg_binaries() -> list[str]:
    binaries = [shutil.which("ffmpeg")]
    try:
        import imageio_ffmpeg

        binaries.append(imageio_ffmpeg.get_ffmpeg_exe())
    # The package is optional, and raises RuntimeError where it has no binary for the platform.
    except (ImportError, RuntimeError):
        pass
    return [binary for binary in binaries if binary]


def _has_vmaf(ffmpeg: str) -> bool:
    result = subprocess.run([ffmpeg, "-hide_banner", "-filters"], capture_output=True, text=True, errors="replace")
    return " libvmaf " in result.stdout
