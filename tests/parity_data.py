r"""Tiny models of floatingtrees/dynamic-frame-compression and their inputs, drawn rather than stored.

`tests/data/parity` holds the keys and shapes of the original's state dicts and what the original puts out; weights
and inputs come from NumPy's `RandomState`, whose streams never change, seeded by their names.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file


DATA = Path(__file__).resolve().parent / "data" / "parity"

INPUTS = {
    "vae.input": (2, 12, 32, 32, 3),  # pixels in [0, 1]: (B, T, H, W, C)
    "dit.noise": (2, 6, 16, 24),  # (B, T, tokens, C)
}


def draw_state_dict(model: str) -> dict[str, torch.Tensor]:
    r"""State dict of the original's tiny `"vae"` or `"dit"`; no parameter is zero."""
    stored = load_file(DATA / "tensors.safetensors")
    state_dict = {}
    for key, shape in json.loads((DATA / "tiny_keys.json").read_text())[model].items():
        kind = key.rsplit(".", 1)[-1]
        # Rotary tables are no parameters; all layers of the tiny models have the same.
        state_dict[key] = stored[f"rope.{kind}"].clone() if "ROPE" in key else _draw_parameter(f"{model}.{key}", shape)
    return state_dict


def draw_inputs() -> dict[str, torch.Tensor]:
    r"""Pixels and noise that the original was given."""
    noise = torch.from_numpy(_stream("dit.noise").standard_normal(INPUTS["dit.noise"]))
    pixels = torch.from_numpy(_stream("vae.input").random_sample(INPUTS["vae.input"]))
    return {"vae.input": pixels.float(), "dit.noise": noise.float()}


def _draw_parameter(name: str, shape: list[int]) -> torch.Tensor:
    values = _stream(name).standard_normal(shape)
    if len(shape) > 1:
        values *= 1.25 / math.sqrt(math.prod(shape[1:]))
    else:
        values = 0.3 * values + ("norm" in name.split(".")[-2] and name.endswith("weight"))
    if "spacing_pred2" in name:
        # Gaps of one to a few frames, so that rounding them has something to do.
        values = values + 2 if name.endswith("bias") else values / 6
    return torch.from_numpy(values).float()


def _stream(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))
