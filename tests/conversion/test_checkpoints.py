from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from diffusers_vidvae.conversion.checkpoints import Checkpoint, CheckpointError


def test_damaged_and_absent_files_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="text.pt is not a readable state dict"):
        Checkpoint.open(tmp_path / "text.pt")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cut.safetensors is not a readable safetensors file"):
        Checkpoint.open(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        Checkpoint.open(tmp_path / "absent.pt")


def test_pickled_code_is_not_run(tmp_path):
    class Danger:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"fill_token": Danger()}, tmp_path / "danger.pt")
    with pytest.raises(CheckpointError, match="danger.pt is not a readable state dict"):
        Checkpoint.open(tmp_path / "danger.pt")
