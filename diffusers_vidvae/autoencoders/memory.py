r"""How many frames, and whether in tiles, an autoencoder runs at a time in the memory that is free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from .video_autoencoder import FRAMES_PER_BATCH, VideoAutoencoder


CHUNK_FRAMES = {"AutoencoderKL3D": 24}
FRAME_WISE_CHUNK = 16

# About how many feature maps of the first level's width are alive at full resolution at once.
_MAPS_ALIVE = 6
_USUAL_WIDTH = 128
_SHARE = 0.5
_CPU_BATCH_BYTES = 2**27


@dataclass(frozen=True)
class MemoryPlan:
    """How a clip runs.

    Args:
        chunk_frames: Frames at a time; None for the whole clip.
        frames_per_batch: Frames that image models take as one batch.
        tiled: Whether the model's tiling is on, which changes what it makes of a frame a little.
    """

    chunk_frames: int | None = None
    frames_per_batch: int = FRAMES_PER_BATCH
    tiled: bool = False

    def describe(self) -> str:
        frames = "the whole clip at once" if self.chunk_frames is None else f"{self.chunk_frames} frames at a time"
        return frames + (" in tiles" if self.tiled else "")


def plan_memory(model: VideoAutoencoder, height: int, width: int, chunk_frames: int | None = None) -> MemoryPlan:
    r"""Chooses chunks, and for lack of memory tiles, that change nothing in the result but what tiles do.

    Only models that lose nothing by chunks, image models and `AutoencoderKL3D`, get any, and `FrameSelectVAE` its
    windows. To other video models a chunk is a clip of its own, so they run whole, unless `chunk_frames` says so.

    Args:
        model: The autoencoder.
        height: Height of the frames, in pixels.
        width: Their width.
        chunk_frames: What the user asked for.
    """
    frame_bytes, free = bytes_per_frame(model, height, width), _SHARE * free_memory(model.vae.device)
    if model.is_frame_wise:
        # Batches save GPUs time; on CPUs large ones only take memory.
        room = min(free, _CPU_BATCH_BYTES) if model.vae.device.type == "cpu" else free
        batch = int(min(max(room // frame_bytes, 1), FRAMES_PER_BATCH))
        return MemoryPlan(chunk_frames or FRAME_WISE_CHUNK, batch, tiled=model.can_tile and frame_bytes > free)
    if model.is_a("AutoencoderKL3D"):
        ratio = model.vae.temporal_compression_ratio
        usual = model.vae.chunk_frames or CHUNK_FRAMES["AutoencoderKL3D"]
        fitting = int(free // frame_bytes) // ratio * ratio
        chunk_frames = chunk_frames or max(min(usual, fitting), ratio)
        return MemoryPlan(chunk_frames, tiled=model.can_tile and fitting < ratio)
    if model.is_a("FrameSelectVAE"):
        return MemoryPlan(model.vae.config.clip_num_frames)
    return MemoryPlan(chunk_frames)


def less_memory(model: VideoAutoencoder, plan: MemoryPlan) -> MemoryPlan | None:
    r"""What to try after memory ran out: half the chunk where that is exact, else tiles; None if nothing is left."""
    if model.is_frame_wise and plan.frames_per_batch > 1:
        return replace(plan, chunk_frames=max((plan.chunk_frames or 2) // 2, 1), frames_per_batch=1)
    if model.is_a("AutoencoderKL3D") and plan.chunk_frames:
        ratio = model.vae.temporal_compression_ratio
        if plan.chunk_frames > ratio:
            return replace(plan, chunk_frames=max(plan.chunk_frames // 2 // ratio, 1) * ratio)
    if not plan.tiled and model.can_tile:
        return replace(plan, tiled=True)
    return None


def bytes_per_frame(model: VideoAutoencoder, height: int, width: int) -> int:
    """About what the layers at full resolution take for a frame."""
    config: Any = model.vae.config
    names = (
        "block_out_channels",
        "encoder_block_out_channels",
        "decoder_block_out_channels",
        "down_block_out_channels",
    )
    widths = [config[name][0] for name in names if config.get(name)] or [_USUAL_WIDTH]
    return _MAPS_ALIVE * max(widths) * height * width * model.vae.dtype.itemsize


def free_memory(device: torch.device) -> int:
    """Bytes that a device can still give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
