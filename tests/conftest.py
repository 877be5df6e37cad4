from __future__ import annotations

from pathlib import Path

import pytest
import torch


SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(
            f"needs the shared {name} files, which lie beside the repository (../shared/{name}) and are absent"
        )
    return folder


@pytest.fixture(scope="session")
def shared_media() -> Path:
    """Folder with `clips/`, `photos/` and `bad/`: real media and broken files."""
    return _shared_folder("media")


@pytest.fixture(scope="session")
def shared_parity() -> Path:
    """Folder with tiny checkpoints of the original architecture and their inputs and outputs."""
    return _shared_folder("parity")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
