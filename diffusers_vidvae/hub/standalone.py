r"""Repositories whose source files travel with the weights, so that they run on diffusers alone.

A model or scheduler stands as one file beside its weights, the pipeline as one file at the root; each imports only
torch, diffusers and what else the pipeline needs, see `bundle`. Files carry a version in their name, because the
remote code of a machine shares one folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from . import travelling
from .bundle import PACKAGE, bundle
from .cards import build_model_card


EXPORT_VERSION = 1

# In a pipeline's file its components' classes are only annotations: the components bring files of their own.
STAND_INS = {
    "AutoencoderKL3D": "from diffusers import ModelMixin as AutoencoderKL3D",
    "FrameSelectVAE": "from diffusers import ModelMixin as FrameSelectVAE",
    "GapDiT": "from diffusers import ModelMixin as GapDiT",
}


def export_standalone(
    saveable: DiffusionPipeline | ModelMixin | SchedulerMixin, folder: str | os.PathLike[str]
) -> None:
    r"""Saves a pipeline, model or scheduler together with its source.

    A pipeline then loads with `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` and a model with
    `AutoModel.from_pretrained(folder, trust_remote_code=True)`, with diffusers and without this package; the classes
    of this package load the folder too, and do not run the files in it. A pipeline that was loaded by remote code
    saves its source files along.

    Args:
        saveable: What to save; classes of other libraries may be among a pipeline's components.
        folder: Where to; made if absent, must not hold anything yet.

    Raises:
        ValueError: The folder is not empty, or the class is not one of this package.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: a standalone repository is written to a folder of its own.")
    _require_own_class(type(saveable))
    saveable.save_pretrained(folder)
    if isinstance(saveable, DiffusionPipeline):
        _export_pipeline(saveable, folder)
    else:
        _export_component(type(saveable), folder)
        if isinstance(saveable, ModelMixin):
            _add_auto_map(type(saveable), folder / "config.json")
    build_model_card(folder, standalone=True).save(folder / "README.md")


def _require_own_class(cls: type) -> None:
    if cls.__module__.split(".")[0] != PACKAGE:
        raise ValueError(f"{cls.__name__} of {cls.__module__} is not a class of {PACKAGE}, whose source could travel.")


def _export_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    for name, component in pipeline.components.items():
        if type(component).__module__.split(".")[0] == PACKAGE:
            module = _export_component(type(component), folder / name)
            index[name] = [module, type(component).__name__]
    index["_class_name"] = [exported_name(type(pipeline).__module__), type(pipeline).__name__]
    module = type(pipeline).__module__
    (folder / f"{exported_name(module)}.py").write_text(bundle_pipeline(type(pipeline)), encoding="utf-8")
    index_file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def bundle_pipeline(pipeline: type[DiffusionPipeline]) -> str:
    r"""Source of a pipeline's class in one file, with what the package gives it besides."""
    bound = f"""

{pipeline.__name__}._get_signature_types = classmethod(signature_types)
{pipeline.__name__}.save_config = save_config_with_source
"""
    return bundle(pipeline.__module__, STAND_INS, also=[travelling.__name__]) + bound


def _export_component(cls: type, folder: Path) -> str:
    name = exported_name(cls.__module__)
    (folder / f"{name}.py").write_text(bundle(cls.__module__), encoding="utf-8")
    return name


def _add_auto_map(cls: type, config_file: Path) -> None:
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModel": f"{exported_name(cls.__module__)}.{cls.__name__}"}
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def exported_name(module: str) -> str:
    r"""Name of a module once exported: `diffusers_vidvae.models.gap_dit` becomes `vidvae_gap_dit_v1`."""
    return f"vidvae_{module.rsplit('.', 1)[-1]}_v{EXPORT_VERSION}"
