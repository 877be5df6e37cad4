r"""What this package's pipelines do differently from other diffusers pipelines when they are saved and loaded.

`diffusers_vidvae._registration` binds these functions to the pipeline classes, so that a pipeline's own source holds
nothing that a standalone copy of it would have to do without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from os import PathLike
from typing import Any


LIBRARY = "diffusers_vidvae"

# A change of saved pipelines that older versions of this package would misread raises it.
FORMAT_VERSION = 1

# diffusers passes over keys of model_index.json that start with an underscore.
FORMAT_KEY = "_vidvae_format_version"

# Module names that `export_standalone` gives its files, what diffusers writes when it saves classes of such files, or
# the full module paths that it writes unregistered.
_EXPORTED = re.compile(r"^((diffusers_modules\.[\w.-]+\.)?vidvae_\w+_v\d+|diffusers_vidvae\.[\w.]+)$")


class UnsupportedFormatError(ValueError):
    """A repository was written by a newer version of this package, in a layout that this version cannot read."""


def check_format(config: Mapping[str, Any], name: str = "model_index.json") -> None:
    r"""Checks that this version of the package can read a saved pipeline; without a version it is of the first.

    Raises:
        UnsupportedFormatError: The pipeline was saved in a later format.
    """
    version = config.get(FORMAT_KEY, 1)
    if not isinstance(version, int) or version < 1:
        raise UnsupportedFormatError(f"{name}: `{FORMAT_KEY}` must be a positive integer, got {version!r}.")
    if version > FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{name} has format version {version}, the installed diffusers-vidvae reads up to {FORMAT_VERSION}:"
            " pip install -U diffusers-vidvae."
        )


def read_config(json_file: str | PathLike[str], known_classes: Collection[str]) -> dict[str, Any]:
    r"""Reads `model_index.json` or `config.json` with the classes of this package in the place of copies of them.

    So repositories whose source files travel with the weights load into the installed classes, and none of their code
    runs.

    Args:
        json_file: Path of the file.
        known_classes: Names of the classes of this package.

    Raises:
        UnsupportedFormatError: The pipeline was saved in a later format.
    """
    with open(json_file, encoding="utf-8") as file:
        config = json.load(file)
    check_format(config, str(json_file))
    auto_map = config.get("auto_map")
    if isinstance(auto_map, dict) and _is_exported(str(auto_map.get("AutoModel")).split("."), known_classes):
        del config["auto_map"]
    return {key: _installed(value, known_classes, key) for key, value in config.items()}


def _is_exported(value: Any, known_classes: Collection[str]) -> bool:
    """Whether a module and a class are a copy of one of this package."""
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    return is_pair and value[1] in known_classes and _EXPORTED.match(value[0]) is not None


def _installed(value: Any, known_classes: Collection[str], key: str) -> Any:
    if not _is_exported(value, known_classes):
        return value
    return value[1] if key == "_class_name" else [LIBRARY, value[1]]
