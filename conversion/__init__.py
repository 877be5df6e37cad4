r"""Conversion of published checkpoints to models of this package."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from .checkpoints import Checkpoint, CheckpointError, describe_plan
from .orbax import is_orbax, open_orbax


__all__ = ["Checkpoint", "CheckpointError", "describe_plan", "detect_source", "open_checkpoint"]

SOURCES = ("convert_frame_select_vae", "convert_gap_dit", "convert_autoencoder_kl_3d")


def open_checkpoint(path: str | Path) -> Checkpoint:
    r"""Opens a safetensors file, a state dict of `torch.save`, or the folder of an Orbax checkpoint."""
    return open_orbax(path) if is_orbax(path) else Checkpoint.open(path)


def detect_source(checkpoint: Checkpoint) -> ModuleType:
    r"""Finds the conversion module of a checkpoint by its keys; it has `infer_config`, `key_plan` and `convert`.

    Raises:
        CheckpointError: No module knows these keys.
    """
    modules = [import_module(f"{__name__}.{name}") for name in SOURCES]
    for module in modules:
        if module.is_source(checkpoint.shapes):
            return module
    sample = ", ".join(sorted(checkpoint.shapes)[:3])
    raise CheckpointError(
        f"{checkpoint.name} is none of the known checkpoints {SOURCES}: it has {len(checkpoint.shapes)} tensors such"
        f" as {sample}."
    )
