from __future__ import annotations

import os
import shutil
from pathlib import Path

import parity_data
import pytest
import torch
from media_data import MediaFolder, make_media
from safetensors.torch import load_file, save_file


if "PYTEST_XDIST_WORKER" in os.environ:
    # Each process, and what it starts, has one core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes of `-n auto`: as many as processors, but not more than memory is there for, 1.5 GB each."""
    return min(os.cpu_count() or 1, 4)


@pytest.fixture(scope="session")
def shared_media(tmp_path_factory) -> MediaFolder:
    """Folder with `clips/`, `photos/` and `bad/`: real media and broken files."""
    return make_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="session")
def shared_parity(tmp_path_factory) -> Path:
    """Folder with tiny checkpoints of the original architecture and their inputs and outputs."""
    folder = tmp_path_factory.mktemp("parity")
    for model in ("vae", "dit"):
        torch.save(parity_data.draw_state_dict(model), folder / f"{model}_pytorch_tiny.pt")
    save_file(
        load_file(parity_data.DATA / "tensors.safetensors") | parity_data.draw_inputs(), folder / "tensors.safetensors"
    )
    shutil.copy(parity_data.DATA / "full_size_keys.json", folder)
    return folder


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
