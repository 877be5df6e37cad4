r"""Latents of clips in shards, as the entropy coder of `.fsv` files makes them.

Every clip stands for itself. Its codes are in the axes of the model's `LatentsBasis`, or of its channels as they are
in the first clip of the shard, which the shard describes.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusers_vidvae.codec import AxesCycle, LatentsBasis
from diffusers_vidvae.codec.latent_coder import GroupDecoder, GroupEncoder
from diffusers_vidvae.codec.latents_basis import CONFIG_KEY


DEFAULT_QUALITY = 50.0


def coded_quality(latent_type: str) -> float | None:
    """Quality of latents of type `"coded"` or `"coded:QUALITY"`, None of another type.

    Raises:
        ValueError: The quality is not a number from 0 to 100.
    """
    kind, _, text = latent_type.partition(":")
    if kind != "coded":
        return None
    try:
        quality = DEFAULT_QUALITY if latent_type == "coded" else float(text)
    except ValueError:
        quality = -1.0
    if not 0 <= quality <= 100:
        raise ValueError(f"The quality of `latent_type` 'coded:QUALITY' must be from 0 to 100, got {text!r}.")
    return quality


def code_clips(
    values: torch.Tensor, quality: float, basis: LatentsBasis | None, cycle: AxesCycle | None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Codes clips `(clips, channels, frames, height, width)`.

    Args:
        values: The latents.
        quality: From 0 to 100.
        basis: The model's, if it has one.
        cycle: The turns that the model's channels take, for models without a basis.

    Returns:
        The bytes of all clips and where each ends; and what they are read with, as plain values.

    Raises:
        FsvError: A latent is not finite, or too large for the quality.
    """
    clips = values.double().cpu().numpy()
    # A basis is rounded when it is stored.
    config = (basis or LatentsBasis.of_latents(clips[0], cycle)).to_config()
    basis = _read_basis(config)
    step, streams = basis.step(quality), []
    for clip in clips:
        encoder = GroupEncoder((clip.shape[0], *clip.shape[2:]), basis, step)
        streams.append(encoder.encode(clip, range(clip.shape[1])) + encoder.finish())
    ends = torch.tensor([len(stream) for stream in streams], dtype=torch.int64).cumsum(0)
    data = torch.from_numpy(np.frombuffer(b"".join(streams), np.uint8).copy())
    return {"coded": data, "coded_ends": ends}, {"basis": config, "step": step, "shape": list(clips.shape[1:])}


class Coding(NamedTuple):
    """What coded latents of a shard are read with: axes, step, and `(channels, frames, height, width)` of a clip."""

    basis: LatentsBasis
    step: float
    shape: tuple[int, int, int, int]


@lru_cache(maxsize=16)
def read_coding(about: str) -> Coding:
    """That of a shard, from what it says of itself, once for all clips that are read in turn."""
    coding = json.loads(about)["coding"]
    return Coding(_read_basis(coding["basis"]), coding["step"], tuple(coding["shape"]))


def decode_clip(shard: Any, row: int, coding: Coding) -> torch.Tensor:
    """Latents float32 `(channels, frames, height, width)` of a clip of a shard.

    Raises:
        FsvError: The bytes are damaged.
    """
    ends = shard.get_slice("coded_ends")
    start, stop = (int(ends[row - 1]) if row else 0), int(ends[row])
    channels, num_frames, height, width = coding.shape
    data = shard.get_slice("coded")[start:stop].numpy().tobytes()
    decoder = GroupDecoder((channels, height, width), coding.basis, coding.step, data, num_frames)
    return torch.from_numpy(decoder.decode(range(num_frames)))


def _read_basis(config: dict[str, Any]) -> LatentsBasis:
    basis = LatentsBasis.from_config({CONFIG_KEY: config})
    assert basis is not None
    return basis
