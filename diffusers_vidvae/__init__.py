r"""Video autoencoders for Hugging Face diffusers.

Importing the package registers its classes with diffusers, so that `DiffusionPipeline.from_pretrained`,
`AutoModel.from_pretrained` and the classes themselves load its checkpoints from folders and from the Hub.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

# diffusers looks these base classes up by name in the library that `model_index.json` mentions.
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from ._registration import register


__version__ = "0.1.0"

_EXPORTS = {
    "AutoencoderKL3D": "models.autoencoder_kl_3d",
    "FrameSelectVAE": "models.frame_select_vae",
    "GapDiT": "models.gap_dit",
    "FlowMatchGapScheduler": "schedulers.scheduling_flow_match_gap",
    "GapDiTPipeline": "pipelines.pipeline_gap_dit",
    "VideoCompressionPipeline": "pipelines.pipeline_video_compression",
    "VideoReconstructionPipeline": "pipelines.pipeline_video_reconstruction",
    "CompressedVideo": "codec",
    "FsvError": "codec",
    "demo_model": "assets",
}

if TYPE_CHECKING:
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

__all__ = ["DiffusionPipeline", "ModelMixin", "SchedulerMixin", "__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
