r"""Lets this package's pipelines load repositories that carry their own source, without running it."""

from __future__ import annotations

import json
import os
import re
from typing import Any


LIBRARY = "diffusers_vidvae"

# Module names that `export_standalone` gives its files, or the full module paths that diffusers writes unregistered.
_EXPORTED = re.compile(r"^(vidvae_\w+_v\d+|diffusers_vidvae\.[\w.]+)$")


def read_pipeline_config(json_file: str | os.PathLike[str], known_classes: set[str]) -> dict[str, Any]:
    r"""Reads `model_index.json` with the classes of this package in the place of exported copies of them.

    Args:
        json_file: Path of the file.
        known_classes: Names of the classes of this package.
    """
    with open(json_file, encoding="utf-8") as file:
        config = json.load(file)
    return {key: _installed(value, known_classes, key) for key, value in config.items()}


def _installed(value: Any, known_classes: set[str], key: str) -> Any:
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    if not is_pair or value[1] not in known_classes or not _EXPORTED.match(value[0]):
        return value
    return value[1] if key == "_class_name" else [LIBRARY, value[1]]
