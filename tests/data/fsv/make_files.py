"""Writes the stored `.fsv` files of this folder, and the digests of the whole numbers in them.

    python tests/data/fsv/make_files.py

Files of a version that was released are never written again: they prove that it is still read.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np


FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parents[1] / "codec"), str(FOLDER.parents[2])]

from fsv_clips import make_header  # noqa: E402
from test_coded_file import make_basis, make_cycle_basis, make_windows, write  # noqa: E402

from diffusers_vidvae.codec import QUANTIZATIONS, AxesCycle, CodedFsvReader, CompressedVideo, LatentsBasis  # noqa: E402
from diffusers_vidvae.codec.entropy_coder import FrameEncoder  # noqa: E402


def walk() -> tuple[np.ndarray, np.ndarray]:
    """Frames of whole numbers and their scales, of integers only, so that every machine makes the same ones."""
    state, frames = 1, np.zeros((12, 5, 13, 18), np.int32)
    for index in np.ndindex(frames.shape):
        state = (state * 1103515245 + 12345) % (1 << 31)
        busy = 40 if index[3] > 12 and index[2] < 6 else 3
        frames[index] = (state >> 16) % busy * (1 if state >> 12 & 1 else -1) // (1 + index[1])
    return np.cumsum(frames, axis=0, dtype=np.int32), np.array([2000, 900, 500, 300, 200])


BASES = {
    "coded-basis": make_basis(),
    "coded-channels": LatentsBasis.of_channels([0.5, 0, -1, 2, 0], [1, 2, 0.5, 1, 1]),
    "coded-cycle": make_cycle_basis(),
    "coded-cycle-channels": LatentsBasis.of_channels([0.5, 0, -1, 2, 0], [1, 2, 0.5, 1, 1], AxesCycle(5, 2, 3)),
}


def read_codes(name: str) -> np.ndarray:
    """Whole numbers of all windows of a stored file, one behind the other."""
    reader = CodedFsvReader(FOLDER / f"{name}.fsv")
    reader.basis = BASES[name]
    return np.concatenate([reader.read_codes(index).ravel() for index in range(len(reader))])


def coder_bytes(coder: int) -> bytes:
    """What a coder makes of the frames of `walk`."""
    frames, scales = walk()
    cycle = AxesCycle(5, 2, 3) if coder == 2 else AxesCycle(5)
    encoder = FrameEncoder(frames.shape[1:], scales[cycle.channel_of_axis], cycle)
    return b"".join(encoder.encode_frame(frame, i) for i, frame in enumerate(frames)) + encoder.finish()


def main() -> None:
    digests = {}
    for name, basis in BASES.items():
        if not (FOLDER / f"{name}.fsv").exists():
            write(FOLDER / f"{name}.fsv", make_windows(), basis)
        digests[name] = hashlib.sha256(read_codes(name).astype("<i4").tobytes()).hexdigest()
    for coder in (1, 2):
        digests[f"coder-{coder}"] = hashlib.sha256(coder_bytes(coder)).hexdigest()
    for kind in QUANTIZATIONS:
        if not (FOLDER / f"version-1-{kind}.fsv").exists():
            header = make_header(num_frames=16, latent_height=3, latent_width=7, model_width=112, quantization=kind)
            CompressedVideo(header, make_windows(2)).save(FOLDER / f"version-1-{kind}.fsv")
    (FOLDER / "digests.json").write_text(json.dumps(digests, indent=2) + "\n")


if __name__ == "__main__":
    main()
