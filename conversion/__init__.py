r"""Conversion of published checkpoints to models of this package.

`CONVERSIONS` holds what is known, each with `is_source`, `plan` and `convert`; `detect_source` finds the one of a
checkpoint that `open_checkpoint` opened.
"""

from __future__ import annotations

from pathlib import Path

from diffusers_vidvae.errors import CheckpointError

from . import convert_autoencoder_kl_3d, convert_frame_select_vae, convert_gap_dit
from .checkpoints import Checkpoint, describe_plan
from .conversions import Conversion, Plan
from .orbax import is_orbax, open_orbax


__all__ = [
    "CONVERSIONS",
    "Checkpoint",
    "CheckpointError",
    "Conversion",
    "Plan",
    "describe_plan",
    "detect_source",
    "open_checkpoint",
]

CONVERSIONS: dict[str, Conversion] = {
    conversion.model: conversion
    for conversion in (
        convert_frame_select_vae.CONVERSION,
        convert_gap_dit.CONVERSION,
        convert_autoencoder_kl_3d.CONVERSION,
    )
}


def open_checkpoint(path: str | Path) -> Checkpoint:
    r"""Opens a safetensors file, a state dict of `torch.save`, or the folder of an Orbax checkpoint."""
    return open_orbax(path) if is_orbax(path) else Checkpoint.open(path)


def detect_source(checkpoint: Checkpoint) -> Conversion:
    r"""Finds the conversion of a checkpoint by its keys.

    Raises:
        CheckpointError: No conversion knows these keys.
    """
    for conversion in CONVERSIONS.values():
        if conversion.is_source(checkpoint.shapes):
            return conversion
    names = ", ".join(conversion.name for conversion in CONVERSIONS.values())
    sample = ", ".join(sorted(checkpoint.shapes)[:3])
    raise CheckpointError(
        f"{checkpoint.name} is none of the known checkpoints ({names}): it has {len(checkpoint.shapes)} tensors such"
        f" as {sample}."
    )
