r"""How many frames, and whether in tiles, an autoencoder runs at a time in the memory that is free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE

from .video_autoencoder import FRAMES_PER_BATCH, VideoAutoencoder


CHUNK_FRAMES = {"AutoencoderKL3D": 24}
FRAME_WISE_CHUNK = 16

# About how many feature maps of the first level's width are alive at full resolution at once.
_MAPS_ALIVE = 6
_USUAL_WIDTH = 128
_SHARE = 0.5
_CPU_BATCH_BYTES = 2**27

# About how many copies of a window's levels and latents, and of the tokens of tiles at work, are alive at once.
_LEVELS_ALIVE, _LATENTS_ALIVE, _TOKENS_ALIVE = 3, 6, 8
# On CPUs, what a window may take although more is free: with libraries and model, frames of 4K stay near 2 GB.
_CPU_WINDOW_BYTES = 5 * 2**27
_CGROUP_1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes")


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
    windows, and tiles where frames are larger than its usual ones, to which attention costs more the larger frames
    are. To other video models a chunk is a clip of its own, so they run whole, unless `chunk_frames` says so.

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
        is_large = model.vae.takes_any_size and max(height, width) > model.vae.usual_tile[0]
        return MemoryPlan(model.vae.config.clip_num_frames, tiled=model.can_tile and is_large)
    return MemoryPlan(chunk_frames)


def plan_windows(vae: FrameSelectVAE, height: int, width: int, tile_size: int, name: str) -> tuple[int, int]:
    r"""Chooses how `FrameSelectVAE` runs on frames of some size in the memory that is free.

    Args:
        vae: The autoencoder.
        height: Height of the frames, in pixels.
        width: Their width.
        tile_size: Side of the tiles that they are cut into; of frames that are not, their longer side.
        name: What messages call the clip.

    Returns:
        Frames of a window, at most the model's `clip_num_frames`, and tiles to run at once, at most its
        `tiles_per_batch`.

    Raises:
        ValueError: One frame and one tile of it need more than is free.
    """
    config, free = vae.config, int(_SHARE * free_memory(vae.device))
    tokens_of_pixel = 1 / config.patch_size**2
    hidden_size = config.hidden_size or config.in_channels * config.patch_size**2
    token_bytes = _TOKENS_ALIVE * max(hidden_size, config.ff_inner_dim) * vae.dtype.itemsize
    tile_bytes = int(min(height, tile_size) * min(width, tile_size) * tokens_of_pixel * token_bytes)
    pixel_bytes = _LEVELS_ALIVE * config.in_channels + _LATENTS_ALIVE * 4 * config.latent_channels * tokens_of_pixel
    frame_bytes = int(height * width * pixel_bytes)
    if frame_bytes + tile_bytes > free:
        raise ValueError(
            f"{name}: a frame of {width}x{height} in tiles of {tile_size}x{tile_size} needs about"
            f" {(frame_bytes + tile_bytes) / 1e6:.0f} MB, {free / 1e6:.0f} MB may be used of what is free."
        )
    room = min(free, _CPU_WINDOW_BYTES) if vae.device.type == "cpu" else free
    window = min(config.clip_num_frames, max(room // (frame_bytes + tile_bytes), 1))
    return window, min(vae.tiles_per_batch, max((free - window * frame_bytes) // (window * tile_bytes), 1))


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
    return min([psutil.virtual_memory().available, *control_group_rooms()])


def control_group_rooms(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that Linux' control groups, as of containers, still let this process have."""
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = ("memory.max", "memory.current") if not controllers else _CGROUP_1_FILES
        group = root / controllers / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = (folder / name for name in names)
            if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
                yield max(int(limit.read_text()) - int(used.read_text()) + _reclaimable(folder), 0)
            if folder == root:
                break


def _reclaimable(group: Path) -> int:
    """Bytes of a control group that only cache files."""
    lines = (group / "memory.stat").read_text().splitlines() if (group / "memory.stat").is_file() else ()
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
