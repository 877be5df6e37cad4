r"""Latents of any autoencoder, chunk by chunk, as compression stores them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from diffusers import ModelMixin

from diffusers_vidvae.autoencoders import open_autoencoder
from diffusers_vidvae.autoencoders.memory import plan_memory
from diffusers_vidvae.autoencoders.streams import CausalStream, ChunkStream, LatentPiece, open_stream
from diffusers_vidvae.media.clip import Clip


# Frames of a clip that has to run whole.
_MAX_CLIP_FRAMES = 1 << 16


@dataclass(frozen=True, eq=False)
class EncodedWindow:
    r"""Latents of consecutive frames.

    Args:
        latents: `(1, channels, latent_frames, height, width)`.
        num_frames: Frames of the clip that they stand for.
        keep_probs: Keep probability of every frame, `(1, frames)`, of models that select frames.
    """

    latents: torch.Tensor
    num_frames: int
    keep_probs: torch.Tensor | None = None

    def cpu(self) -> EncodedWindow:
        r"""The same in main memory."""
        probs = None if self.keep_probs is None else self.keep_probs.cpu()
        return replace(self, latents=self.latents.cpu(), keep_probs=probs)


def encode_any(vae: ModelMixin, clip: Clip, device: torch.device) -> tuple[dict[str, Any], Iterator[EncodedWindow]]:
    r"""Encodes a clip with an autoencoder that keeps all frames.

    Returns:
        What an `FsvHeader` says of sizes, and the latents.

    Raises:
        ValueError: The clip has no frame, or more latents than frames.
    """
    model = open_autoencoder(vae)
    plan = plan_memory(model, clip.height, clip.width)
    stream = open_stream(model, plan, clip.num_frames)
    pieces = (piece.to(device) for piece in clip.pieces(plan.chunk_frames or _MAX_CLIP_FRAMES))
    windows = (EncodedWindow(piece.posterior.mode(), piece.size[0]) for piece in stream.encode(pieces))
    first = next(windows, None)
    if first is None:
        raise ValueError(f"{clip.name}: has no frame.")
    channels, num_latents, height, width = first.latents.shape[1:]
    if num_latents > first.num_frames:
        raise ValueError(f"{clip.name}: {num_latents} latents of {first.num_frames} frames are too many to store.")
    # Some models pad frames by themselves, beyond the sizes that they take.
    _, *sides = model.geometry.padded_size(first.num_frames, clip.height, clip.width)
    ratio = max(-(-side // length) for side, length in zip(sides, (height, width), strict=True))
    # A stream holds back up to one latent's frames from one piece to the next.
    longest = (plan.chunk_frames or 0) + int(getattr(vae, "temporal_compression_ratio", 1) or 1)
    sizes = {
        "model_height": height * ratio,
        "model_width": width * ratio,
        "clip_num_frames": max(first.num_frames, longest),
        "latent_channels": channels,
        "latent_height": height,
        "latent_width": width,
    }
    return sizes, chain([first], windows)


def decode_any(
    vae: ModelMixin, windows: Iterable[tuple[torch.Tensor, torch.Tensor]], height: int, width: int
) -> Iterator[torch.Tensor]:
    r"""Decodes latents `(1, C, t, h, w)`, each with a mask `(1, frames)` of its frames, into frames in [-1, 1]."""
    model = open_autoencoder(vae)
    plan = plan_memory(model, height, width)
    model.frames_per_batch, model.tiled = plan.frames_per_batch, plan.tiled
    stream = CausalStream(model) if model.is_a("AutoencoderKL3D") else ChunkStream(model)
    pieces = (LatentPiece(latents, (mask.shape[1], height, width)) for latents, mask in windows)
    for decoded in stream.decode(pieces):
        yield decoded.sample
