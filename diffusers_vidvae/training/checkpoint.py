"""Checkpoints of a training: written whole or not at all, the newest few kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers_vidvae.errors import CheckpointError
from diffusers_vidvae.files import sync

from .config import differing_fields


STATE_FILE = "training_state.json"


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = []
    for folder in output_dir.glob("checkpoint-*"):
        if re.fullmatch(r"checkpoint-\d{8}", folder.name) and (folder / STATE_FILE).is_file():
            found.append(folder)
    return sorted(found)


def write_checkpoint(
    output_dir: Path,
    step: int,
    write_files: Callable[[Path], None],
    state: dict[str, Any],
    keep: int,
    is_main: bool,
    wait: Callable[[], None],
) -> Path:
    r"""Writes a checkpoint beside the others, gives it its name when it is complete and removes the oldest.

    Args:
        output_dir: Folder of the checkpoints.
        step: Optimiser steps so far; names the checkpoint.
        write_files: Writes everything but the state into the folder it is given; runs in every process.
        state: JSON values of the training.
        keep: Number of checkpoints to keep.
        is_main: Whether this is the process that renames and removes.
        wait: Barrier of all processes.

    Raises:
        CheckpointError: Writing failed, for example on a full disk. Earlier checkpoints are untouched.
    """
    final = output_dir / f"checkpoint-{step:08d}"
    temporary = output_dir / f".unfinished-{step:08d}"
    try:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        wait()
        write_files(temporary)
        wait()
        if is_main:
            (temporary / STATE_FILE).write_text(json.dumps(state, indent=2))
            sync(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            for old in checkpoint_folders(output_dir)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        # torch, safetensors and the system each report a full disk in their own way.
        shutil.rmtree(temporary, ignore_errors=True)
        last = [folder.name for folder in checkpoint_folders(output_dir)[-1:]]
        raise CheckpointError(
            f"{final}: cannot be written ({str(error).splitlines()[0] if str(error) else type(error).__name__});"
            f" the last complete checkpoint is {last[0] if last else 'none'}."
        ) from error
    wait()
    return final


def read_state(folder: Path, config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """State of a checkpoint, refused if it was written under another configuration.

    Args:
        folder: The checkpoint.
        config: Flattened configuration of this training.
        defaults: Flattened configuration of a training without any settings, for those that the checkpoint does not
            know yet.
    """
    state = json.loads((folder / STATE_FILE).read_text())
    before = json.loads(json.dumps(defaults)) | state["config"]
    differences = differing_fields(before, json.loads(json.dumps(config)))
    if differences:
        raise CheckpointError(
            f"{folder}: was written under another configuration ({'; '.join(differences)}). Use the same one, or"
            " another `run.output_dir`."
        )
    return state
