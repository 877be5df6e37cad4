r"""Makes diffusers know the classes of this package, by entries in its registries.

With them `model_index.json` names a component `["diffusers_vidvae", "AutoencoderKL3D"]`, and these load it from a
folder, from the Hub and from the cache: `DiffusionPipeline.from_pretrained`, `AutoModel.from_pretrained`, the
pipelines and models themselves, and `from_single_file` for the checkpoints `diffusers_vidvae.conversion` knows.

Repositories that carry copies of this package's source load into the installed classes, without running the copies:
`DiffusionPipeline` and `AutoModel` read configurations by functions of this package, in the place of inherited ones.

A registry gets its entries when diffusers imports it, and a class is imported when it is first asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ._late_imports import when_imported
from .hub.loading import FORMAT_KEY, FORMAT_VERSION, LIBRARY, read_config


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


MODELS = {
    "AutoencoderKL3D": "models.autoencoder_kl_3d",
    "FrameSelectVAE": "models.frame_select_vae",
    "GapDiT": "models.gap_dit",
}
SCHEDULERS = {"FlowMatchGapScheduler": "schedulers.scheduling_flow_match_gap"}
PIPELINES = {
    "GapDiTPipeline": "pipelines.pipeline_gap_dit",
    "VideoCompressionPipeline": "pipelines.pipeline_video_compression",
    "VideoReconstructionPipeline": "pipelines.pipeline_video_reconstruction",
}
CLASSES = {**MODELS, **SCHEDULERS, **PIPELINES}

# Where models that load original checkpoints lie in a pipeline.
_SINGLE_FILES = {"AutoencoderKL3D": "vae", "FrameSelectVAE": "vae", "GapDiT": "transformer"}


def register() -> None:
    r"""Enters this package's classes in diffusers' registries. Doing it again changes nothing."""
    when_imported("diffusers", _register_names)
    when_imported("diffusers.pipelines.pipeline_loading_utils", _register_library)
    when_imported("diffusers.loaders.single_file_model", _register_single_files)
    when_imported("diffusers.pipelines.pipeline_utils", _read_pipelines)
    when_imported("diffusers.models.auto_model", _read_models)
    for name, module in CLASSES.items():
        when_imported(f"{LIBRARY}.{module}", _adopt(name))


def _register_names(diffusers: ModuleType) -> None:
    """Lets `diffusers.GapDiT` and the like import the class from here, where diffusers has nothing of that name."""
    # diffusers imports its classes lazily from modules inside of it, among which this package goes by its name.
    sys.modules[f"diffusers.{LIBRARY}"] = sys.modules[LIBRARY]
    for name in CLASSES:
        diffusers._class_to_module.setdefault(name, LIBRARY)


def _register_library(loading: ModuleType) -> None:
    """Lets `model_index.json` name this package as the library of a component."""
    bases = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")
    loading.LOADABLE_CLASSES[LIBRARY] = {base: ["save_pretrained", "from_pretrained"] for base in bases}


def _register_single_files(loading: ModuleType) -> None:
    for name, subfolder in _SINGLE_FILES.items():
        loading.SINGLE_FILE_LOADABLE_CLASSES[name] = {
            "checkpoint_mapping_fn": _of_conversion(name, "map_single_file_checkpoint"),
            "config_mapping_fn": _of_conversion(name, "map_single_file_config"),
            "default_subfolder": subfolder,
        }


def _read_pipelines(pipelines: ModuleType) -> None:
    """Lets pipelines read exported configurations as those of this package's classes."""
    pipelines.DiffusionPipeline._dict_from_json_file = classmethod(_read_config)


def _read_models(models: ModuleType) -> None:
    """The same for `AutoModel`, which takes `trust_remote_code=True` as a permission, not as a demand."""
    auto_model = models.AutoModel
    auto_model._dict_from_json_file = classmethod(_read_config)
    if getattr(auto_model.from_pretrained, "prefers_installed", False):
        return
    original = auto_model.from_pretrained.__func__

    @wraps(original)
    def from_pretrained(cls: type, pretrained_model_or_path: Any = None, **kwargs: Any) -> Any:
        trusted = kwargs.pop("trust_remote_code", False)
        try:
            return original(cls, pretrained_model_or_path, **kwargs)
        except ValueError as error:
            if not trusted or "trust_remote_code" not in str(error):
                raise
            return original(cls, pretrained_model_or_path, trust_remote_code=True, **kwargs)

    from_pretrained.prefers_installed = True  # type: ignore[attr-defined]
    auto_model.from_pretrained = classmethod(from_pretrained)


def _adopt(name: str) -> Callable[[ModuleType], None]:
    """Gives a class what its own file must not import: model and pipeline files also travel alone."""

    def adopt(module: ModuleType) -> None:
        from .hub.push import push_to_hub
        from .hub.travelling import signature_types

        adopted = getattr(module, name)
        adopted.push_to_hub = push_to_hub
        if name in PIPELINES:
            adopted._get_signature_types = classmethod(signature_types)
            adopted.save_config = _save_config

    return adopt


def _read_config(cls: type, json_file: str) -> dict[str, Any]:
    return read_config(json_file, CLASSES)


def _save_config(self: DiffusionPipeline, *args: Any, **kwargs: Any) -> None:
    from diffusers import DiffusionPipeline

    self.register_to_config(**{FORMAT_KEY: FORMAT_VERSION})
    DiffusionPipeline.save_config(self, *args, **kwargs)


def _of_conversion(model: str, method: str) -> Callable[..., Any]:
    """A method of a model's conversion, which is imported on the first call."""

    def call(checkpoint: dict[str, Any], **kwargs: Any) -> Any:
        from .conversion import CONVERSIONS

        return getattr(CONVERSIONS[model], method)(checkpoint=checkpoint, **kwargs)

    return call
