r"""Makes diffusers know the classes of this package, by entries in its registries; no function is patched.

With them `model_index.json` names a component `["diffusers_vidvae", "AutoencoderKL3D"]`, and these load it from a
folder, from the Hub and from the cache: `DiffusionPipeline.from_pretrained`, `AutoModel.from_pretrained`, the
pipelines and models themselves, and `from_single_file` for the checkpoints `diffusers_vidvae.conversion` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from .hub.loading import FORMAT_KEY, FORMAT_VERSION, LIBRARY, check_format, read_pipeline_config
from .hub.push import push_to_hub
from .models.autoencoder_kl_3d import AutoencoderKL3D
from .models.frame_select_vae import FrameSelectVAE
from .models.gap_dit import GapDiT
from .pipelines.pipeline_gap_dit import GapDiTPipeline
from .pipelines.pipeline_video_compression import VideoCompressionPipeline
from .pipelines.pipeline_video_reconstruction import VideoReconstructionPipeline
from .schedulers.scheduling_flow_match_gap import FlowMatchGapScheduler


MODELS = (AutoencoderKL3D, FrameSelectVAE, GapDiT)
SCHEDULERS = (FlowMatchGapScheduler,)
PIPELINES = (GapDiTPipeline, VideoCompressionPipeline, VideoReconstructionPipeline)

# Conversion module and subfolder of each model that loads original checkpoints.
_SINGLE_FILES = {
    "AutoencoderKL3D": ("convert_autoencoder_kl_3d", "vae"),
    "FrameSelectVAE": ("convert_frame_select_vae", "vae"),
    "GapDiT": ("convert_gap_dit", "transformer"),
}


def register():
    r"""Enters this package's classes in diffusers' registries. Doing it again changes nothing."""
    bases = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")
    LOADABLE_CLASSES[LIBRARY] = {base: ["save_pretrained", "from_pretrained"] for base in bases}
    for registered in (*MODELS, *SCHEDULERS, *PIPELINES):
        if not hasattr(diffusers, registered.__name__):
            setattr(diffusers, registered.__name__, registered)
        # Model files travel alone and so cannot import this package's publishing themselves.
        registered.push_to_hub = push_to_hub
    for pipeline in PIPELINES:
        pipeline._dict_from_json_file = classmethod(_read_pipeline_config)
        pipeline.extract_init_dict = classmethod(_extract_init_dict)
        pipeline.save_config = _save_config
    for name, (module, subfolder) in _SINGLE_FILES.items():
        SINGLE_FILE_LOADABLE_CLASSES[name] = {
            "checkpoint_mapping_fn": _deferred(module, "map_single_file_checkpoint"),
            "config_mapping_fn": _deferred(module, "map_single_file_config"),
            "default_subfolder": subfolder,
        }


def _read_pipeline_config(cls: type, json_file: str) -> dict[str, Any]:
    return read_pipeline_config(json_file, {known.__name__ for known in (*MODELS, *SCHEDULERS, *PIPELINES)})


def _extract_init_dict(cls: type, config_dict: dict[str, Any], **kwargs: Any) -> Any:
    # The only hook that `DiffusionPipeline.from_pretrained` passes through on its way to a registered class.
    check_format(config_dict)
    return super(DiffusionPipeline, cls).extract_init_dict(config_dict, **kwargs)


def _save_config(self: DiffusionPipeline, *args: Any, **kwargs: Any):
    self.register_to_config(**{FORMAT_KEY: FORMAT_VERSION})
    DiffusionPipeline.save_config(self, *args, **kwargs)


def _deferred(module: str, function: str) -> Callable[..., Any]:
    """A conversion function whose module is imported on the first call: importing the package converts nothing."""

    def call(checkpoint: dict, **kwargs: Any) -> Any:
        return getattr(import_module(f"{LIBRARY}.conversion.{module}"), function)(checkpoint=checkpoint, **kwargs)

    return call
