"""What importing the package does, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(script: str, tmp_path: Path) -> str:
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert not result.returncode, result.stderr[-3000:]
    return result.stdout


def test_import_loads_nothing_that_diffusers_does_not(tmp_path):
    heavy = ["av", "imageio", "matplotlib", "typer", "rich", "torchmetrics", "orbax", "tensorboard"]
    script = f"""
import sys
from diffusers import DiffusionPipeline
before = set(sys.modules)
import diffusers_vidvae
added = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(added & set({heavy!r})))
"""
    assert run(script, tmp_path).split() == ["[]"]


def test_every_export_exists_and_registration_can_be_repeated(tmp_path):
    script = """
import diffusers, diffusers_vidvae
from diffusers_vidvae._registration import MODELS, PIPELINES, SCHEDULERS, register
register()
for name in diffusers_vidvae.__all__:
    getattr(diffusers_vidvae, name)
for registered in (*MODELS, *SCHEDULERS, *PIPELINES):
    assert getattr(diffusers, registered.__name__) is getattr(diffusers_vidvae, registered.__name__)
assert diffusers.FluxPipeline.__module__.startswith("diffusers.")
print("done")
"""
    assert "done" in run(script, tmp_path)
