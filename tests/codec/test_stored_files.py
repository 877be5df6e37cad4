"""Files that were written once are read for good, to the same whole numbers on every machine, Python and numpy."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_coded_file import STEP, errors_of, make_windows

from diffusers_vidvae.codec import QUANTIZATIONS, CodedFsvReader, CompressedVideo
from diffusers_vidvae.codec.latent_coder import DEAD_ZONE


FOLDER = Path(__file__).resolve().parents[1] / "data" / "fsv"
DIGESTS = json.loads((FOLDER / "digests.json").read_text())


sys.path.insert(0, str(FOLDER))
from make_files import BASES, coder_bytes, read_codes  # noqa: E402


sys.path.remove(str(FOLDER))


@pytest.mark.parametrize("name", BASES)
def test_stored_codes_are_the_same_whole_numbers(name):
    assert hashlib.sha256(read_codes(name).astype("<i4").tobytes()).hexdigest() == DIGESTS[name]
    reader = CodedFsvReader(FOLDER / f"{name}.fsv")
    reader.basis = BASES[name]
    largest = (0.5 + DEAD_ZONE) * STEP * (1 + np.abs(BASES[name].shaping).sum(axis=1).max())
    for window, written in zip(reader, make_windows(), strict=True):
        assert max(np.abs(error).max() for error in errors_of(written, window, BASES[name])) <= largest + 1e-4


@pytest.mark.parametrize("coder", [1, 2])
def test_the_coder_makes_the_same_bytes(coder):
    assert hashlib.sha256(coder_bytes(coder)).hexdigest() == DIGESTS[f"coder-{coder}"]


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_files_of_version_1_are_read_for_good(kind):
    video = CompressedVideo.load(FOLDER / f"version-1-{kind}.fsv")
    assert video.header.quantization == kind and video.header.model_id == "someone/some-vae"
    step = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2, "int8": 2e-2, "int4": 0.5}[kind]
    for window, written in zip(video.windows, make_windows(2), strict=True):
        assert torch.equal(window.gaps, written.gaps)
        assert torch.allclose(window.latents.float(), written.latents, atol=step, rtol=0)
