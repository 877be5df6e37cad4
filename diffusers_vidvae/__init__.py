r"""Video autoencoders for Hugging Face diffusers.

Importing the package registers its classes with diffusers, which may be imported before or after it, so that
`DiffusionPipeline.from_pretrained`, `AutoModel.from_pretrained` and the classes themselves load its checkpoints from
folders and from the Hub. Classes are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._registration import CLASSES, register


__version__ = "0.1.0"

_EXPORTS = {
    **CLASSES,
    "CompressedVideo": "codec",
    "FsvError": "codec",
    "demo_model": "assets",
}

# diffusers looks these base classes up by name in the library that `model_index.json` mentions.
_BASES = ("DiffusionPipeline", "ModelMixin", "SchedulerMixin")

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as DiffusionPipeline
    from diffusers import ModelMixin as ModelMixin
    from diffusers import SchedulerMixin as SchedulerMixin

    from .assets import demo_model as demo_model
    from .codec import CompressedVideo as CompressedVideo
    from .codec import FsvError as FsvError
    from .models.autoencoder_kl_3d import AutoencoderKL3D as AutoencoderKL3D
    from .models.frame_select_vae import FrameSelectVAE as FrameSelectVAE
    from .models.gap_dit import GapDiT as GapDiT
    from .pipelines.pipeline_gap_dit import GapDiTPipeline as GapDiTPipeline
    from .pipelines.pipeline_video_compression import VideoCompressionPipeline as VideoCompressionPipeline
    from .pipelines.pipeline_video_reconstruction import VideoReconstructionPipeline as VideoReconstructionPipeline
    from .schedulers.scheduling_flow_match_gap import FlowMatchGapScheduler as FlowMatchGapScheduler

register()

__all__ = [*_BASES, "__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _BASES:
        module = "diffusers"
    elif name in _EXPORTS:
        module = f"{__name__}.{_EXPORTS[name]}"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
