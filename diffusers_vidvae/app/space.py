r"""The page as a folder that Hugging Face runs as a Space."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import diffusers_vidvae
from diffusers_vidvae.files import atomic_path

from .settings import Limits


APP = '''\
"""The page of `vidvae app` as a Hugging Face Space."""

import sys
from pathlib import Path


HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from diffusers_vidvae.cli import main  # noqa: E402


OPTIONS = {options}
MODEL = {model}

if __name__ == "__main__":
    # Options on the command line come last, and count.
    main(["app", "--host", "0.0.0.0", *OPTIONS, *MODEL, *sys.argv[1:]])
'''

README = """\
---
title: vidvae
emoji: 🎞️
colorFrom: yellow
colorTo: red
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: apache-2.0
short_description: Video as few numbers, and back
---

# vidvae

Compress a video with sliders, see which frames are kept and what comes back, or generate one, with {model}.

The source of diffusers-vidvae lies in `diffusers_vidvae`. The page runs on any machine, too:
`pip install -r requirements.txt gradio=={gradio}`, then `python app.py`.
"""


def write_space(folder: Path, model: str | None, name: str, limits: Limits, source: dict[str, Any]) -> None:
    r"""Writes app.py, requirements.txt, README.md, the source of this package, and a model that lies on this machine.

    Args:
        folder: Where to; it must be absent or empty.
        model: What `vidvae app --model` takes.
        name: What the model is called.
        limits: What visitors may ask for.
        source: Further options of the command, of the model's source and its device, that are not the default.

    Raises:
        ValueError: The folder is not empty or cannot be written.
    """
    given = {**{f"max_{key}": getattr(limits, f"max_{key}") for key in ("megabytes", "frames", "side")}, **source}
    options = [f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}") for key, value in given.items()]
    with atomic_path(folder, folder=True, reason_to_keep=lambda path: "is not empty") as target:
        texts = {
            "app.py": APP.format(options=json.dumps(options), model=_place_model(model, target)),
            "README.md": README.format(gradio=version("gradio"), model=name),
            "requirements.txt": "\n".join(requirements()) + "\n",
        }
        for file, text in texts.items():
            (target / file).write_text(text, encoding="utf-8")
        package = Path(diffusers_vidvae.__file__).parent
        shutil.copytree(package, target / package.name, ignore=shutil.ignore_patterns("__pycache__"))


def requirements() -> list[str]:
    r"""What this package needs without extras; Spaces bring Gradio themselves."""
    return [line for line in requires("diffusers-vidvae") or [] if "extra ==" not in line]


def _place_model(model: str | None, target: Path) -> str:
    """Copies a model that lies here into the Space; returns how its source says where the model is."""
    if model is None:
        return "[]"
    path = Path(model)
    if not path.exists():
        return json.dumps([f"--model={model}"])
    place = f"models/{path.resolve().name}"
    (target / "models").mkdir()
    if path.is_dir():
        shutil.copytree(path, target / place, ignore=shutil.ignore_patterns(".*"))
    else:
        shutil.copy(path, target / place)
    return f'[f"--model={{HERE}}/{place}"]'
