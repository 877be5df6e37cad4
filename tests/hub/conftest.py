from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .clients import run_client, save_pipelines
from .server import LocalHub, local_hub


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """Tiny pipelines, one folder each, and what they put out."""
    folder = tmp_path_factory.mktemp("saved")
    save_pipelines(folder)
    return folder


@pytest.fixture
def hub():
    with local_hub() as hub:
        yield hub


Client = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def client(hub: LocalHub, saved: Path, tmp_path: Path) -> Client:
    """Runs a script in a process of its own, whose Hub is the local one and whose cache is its own."""

    def run(script: str, home: str = "home", check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        result = run_client(hub, saved, tmp_path / home, script, **environment)
        if check and result.returncode:
            pytest.fail(f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
        return result

    return run
