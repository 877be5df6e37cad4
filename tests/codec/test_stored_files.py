"""Files that were written once are read for good, to the same whole numbers on every machine, Python and numpy."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_coded_file import STEP, make_basis, make_windows

from diffusers_vidvae.codec import QUANTIZATIONS, CodedFsvReader, CompressedVideo
from diffusers_vidvae.codec.entropy_coder import FrameEncoder
from diffusers_vidvae.codec.latent_coder import DEAD_ZONE


FOLDER = Path(__file__).resolve().parents[1] / "data" / "fsv"
DIGESTS = json.loads((FOLDER / "digests.json").read_text())


@pytest.mark.parametrize("name", ["coded-basis", "coded-channels"])
def test_stored_codes_are_the_same_whole_numbers(name):
    reader = CodedFsvReader(FOLDER / f"{name}.fsv")
    reader.basis = reader.basis or make_basis()
    codes = np.concatenate([reader.read_codes(index).ravel() for index in range(len(reader))])
    assert hashlib.sha256(codes.astype("<i4").tobytes()).hexdigest() == DIGESTS[name]
    for window, written in zip(reader, make_windows(), strict=True):
        axes = [reader.basis.to_axes(item.latents.double().numpy()) for item in (window, written)]
        assert np.abs(axes[0] - axes[1]).max() <= (0.5 + DEAD_ZONE) * STEP + 1e-4


def test_the_coder_makes_the_same_bytes():
    sys.path.insert(0, str(FOLDER))
    try:
        from make_files import walk
    finally:
        sys.path.remove(str(FOLDER))
    frames, scales = walk()
    encoder = FrameEncoder(frames.shape[1:], scales)
    data = b"".join(encoder.encode_frame(frame) for frame in frames) + encoder.finish()
    assert hashlib.sha256(data).hexdigest() == DIGESTS["coder-1"]


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_files_of_version_1_are_read_for_good(kind):
    video = CompressedVideo.load(FOLDER / f"version-1-{kind}.fsv")
    assert video.header.quantization == kind and video.header.model_id == "someone/some-vae"
    step = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2, "int8": 2e-2, "int4": 0.5}[kind]
    for window, written in zip(video.windows, make_windows(2), strict=True):
        assert torch.equal(window.gaps, written.gaps)
        assert torch.allclose(window.latents.float(), written.latents, atol=step, rtol=0)
