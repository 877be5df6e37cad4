r"""What pipelines do differently from others of diffusers, written so that it can travel in their exported source.

The package binds these functions to its pipeline classes; `export_standalone` writes them behind a pipeline's source.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline


class AcceptedTypes(tuple):
    """Classes that a component may have; their subclasses and namesakes, which remote code brings, are among them."""

    def __contains__(self, cls: object) -> bool:
        names = {getattr(accepted, "__name__", None) for accepted in self}
        return any(base.__name__ in names for base in getattr(cls, "__mro__", ()))


def signature_types(cls: type[DiffusionPipeline]) -> dict[str, AcceptedTypes]:
    r"""Classes of a pipeline's components, which `from_pipe` compares with those of another pipeline."""
    found = DiffusionPipeline._get_signature_types.__func__(cls)
    return {name: AcceptedTypes(types) for name, types in found.items()}


def save_config_with_source(
    self: DiffusionPipeline, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
) -> None:
    r"""Writes `model_index.json`, and beside it the source files that this pipeline was loaded from."""
    DiffusionPipeline.save_config(self, save_directory, push_to_hub=push_to_hub, **kwargs)
    folder = Path(save_directory)
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    for name, component in [*self.components.items(), ("_class_name", self)]:
        if type(component).__module__.startswith("diffusers_modules."):
            source = Path(inspect.getfile(type(component)))
            target = folder if component is self else folder / name
            shutil.copy(source, target / source.name)
            index[name] = [source.stem, type(component).__name__]
    index_file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
