"""Fingerprints of a model: of its configuration, of its weights, and a short sketch of these that survives rounding.

A fingerprint is the SHA-256 of everything that decides what a model's latents mean, for caches and records that must
not outlive the model they were made with. A file that is decoded with the same weights in another precision needs
something softer: `weights_sketch` moves by as much as the weights did, relative to their size.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


# What a configuration says about latents, rather than what makes them.
STATISTICS = ("latents_mean", "latents_std")

SKETCH_LENGTH = 8
SKETCH_TOLERANCE = 0.01
_SKETCH_SAMPLES = 256

# Projections that `fuse_qkv_projections` replaces, and adapters, which are no part of the model.
_CHANGEABLE = re.compile(r"\.(to|add)_(q|k|v|qkv|kv|added_qkv|[qkv]_proj)\.|lora_")


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a model's configuration, 64 hexadecimal digits.

    Keys beginning with `_` (class name, library version, where it was loaded from) do not count, nor do the order of
    the keys and the difference between tuples and lists.

    Raises:
        ValueError: A value cannot be written as JSON.
    """
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        text = json.dumps(public, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"The config cannot be written as JSON: {error}.") from error
    return hashlib.sha256(text.encode()).hexdigest()


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers that a model saves, whatever their device; float types count as float32."""
    digest = hashlib.sha256()
    _update_with_weights(digest, model)
    return digest.hexdigest()


def model_fingerprint(model: Any) -> str:
    """SHA-256 of a diffusers model: its configuration but for statistics of latents, and its weights."""
    public = {name: value for name, value in model.config.items() if not name.startswith("_")}
    text = json.dumps({name: value for name, value in public.items() if name not in STATISTICS}, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    _update_with_weights(digest, model)
    return digest.hexdigest()


def _update_with_weights(digest: Any, model: nn.Module) -> None:
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())


def weights_sketch(model: nn.Module) -> tuple[float, ...] | None:
    """Sums of the weights under fixed signs, divided by the weights' norm, about normally distributed.

    A random projection keeps distances (Johnson and Lindenstrauss, 1984; with signs for a matrix: Achlioptas, 2003),
    so sketches differ as the weights do: by about .003 for weights rounded to bfloat16, by 1.4 for unrelated ones.
    Up to 256 numbers are taken of every parameter, evenly spread.

    Returns:
        `SKETCH_LENGTH` numbers; None where weights are not at hand as floats of 16 bits or more: offloaded, quantised.
    """
    parts = []
    for name, weight in sorted(model.named_parameters()):
        if _CHANGEABLE.search(f".{name}"):
            continue
        # Quantised weights are of types of their own.
        plain = type(weight) is nn.Parameter and type(weight.data) is torch.Tensor and weight.is_floating_point()
        if weight.is_meta or not plain or weight.element_size() < 2:
            return None
        values = weight.detach().flatten()
        parts.append(values[:: -(-len(values) // _SKETCH_SAMPLES)].double().cpu())
    values = torch.cat(parts) if parts else torch.zeros(1, dtype=torch.float64)
    return tuple((_signs(len(values)) @ values / values.norm().clamp(min=1e-30)).tolist())


def same_sketch(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two sketches are of the same weights, rounded to 16 bits or not."""
    return len(one) == len(other) and all(abs(a - b) <= SKETCH_TOLERANCE for a, b in zip(one, other, strict=True))


def _signs(length: int) -> torch.Tensor:
    """Float64 `(SKETCH_LENGTH, length)` of -1 and 1, the same on every machine."""
    # The multiplier and increment of PCG (O'Neill, 2014), taken at every index at once: bits of a hash of the index.
    index = torch.arange(SKETCH_LENGTH * length, dtype=torch.int64).view(SKETCH_LENGTH, length)
    mixed = index * 6364136223846793005 + 1442695040888963407
    mixed = (mixed ^ (mixed >> 29)) * 6364136223846793005
    return ((mixed >> 40) & 1).double() * 2 - 1
