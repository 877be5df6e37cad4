r"""Latents of windows by any autoencoder, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from diffusers import ModelMixin
from numpy.typing import NDArray

from diffusers_vidvae.autoencoders import VideoGeometry, crop_clip, open_autoencoder, pad_clip
from diffusers_vidvae.media.clips import to_pixels
from diffusers_vidvae.metrics import clip_psnr


BATCH_SIZE = 8


class LatentSpace:
    r"""Encodes and decodes windows of any size in small batches; latents are posterior modes, as the model gives them.

    Of models that select frames these are the latents of all frames.
    """

    def __init__(self, vae: ModelMixin):
        self.model = open_autoencoder(vae)
        self.device = vae.device

    @property
    def geometry(self) -> VideoGeometry:
        return self.model.geometry

    def takes(self, num_frames: int, height: int, width: int) -> bool:
        """Whether a clip of this size runs as it is, without padding or tiles."""
        geometry = self.geometry
        fits = height in geometry.height and width in geometry.width and geometry.accepts_frames(num_frames)
        return fits and not geometry.needs_tiling(height, width)

    @torch.no_grad()
    def encode(self, sample: torch.Tensor) -> torch.Tensor:
        """Latents `(N, C, t, h, w)`, float32 on the CPU, of pixels `(N, 3, T, H, W)` in [-1, 1]."""
        size = self.geometry.padded_size(*sample.shape[2:])
        parts = []
        with self.model.tiling(*size[1:]):
            for batch in sample.split(BATCH_SIZE):
                posterior = self.model.encode(pad_clip(batch.to(self.device), size)).posterior
                parts.append(posterior.mode().float().cpu())
        return torch.cat(parts)

    def encode_frames(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """Latents of windows `(N, T, H, W, 3)` of uint8."""
        return torch.cat([self.encode(batch) for batch in pixel_batches(frames)])

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, size: Iterable[int]) -> torch.Tensor:
        """Pixels `(N, 3, *size)` in [-1, 1], float32 on the CPU."""
        num_frames, height, width = size
        padded = self.geometry.padded_size(num_frames, height, width)
        parts = []
        with self.model.tiling(*padded[1:]):
            for batch in latents.split(BATCH_SIZE):
                pixels = crop_clip(self.model.decode(batch.to(self.device), padded), (num_frames, height, width))
                parts.append(pixels.clamp(-1, 1).cpu())
        return torch.cat(parts)


def pixel_batches(frames: NDArray[np.uint8]) -> Iterator[torch.Tensor]:
    """Windows as `windows_to_pixels` gives them, few at a time, since floats take four times the memory."""
    for start in range(0, len(frames), BATCH_SIZE):
        yield windows_to_pixels(frames[start : start + BATCH_SIZE])


def windows_to_pixels(frames: NDArray[np.uint8]) -> torch.Tensor:
    """Windows `(N, T, H, W, 3)` of uint8 as pixels `(N, 3, T, H, W)` in [-1, 1]."""
    return torch.cat([to_pixels(window) for window in frames])


def psnrs(sample: torch.Tensor, restored: torch.Tensor) -> list[float]:
    """PSNR of every clip of a batch."""
    return [clip_psnr(one[None], other[None]) for one, other in zip(sample, restored, strict=True)]


def channel_moments(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel over everything else, `(C, 1, 1, 1)` each."""
    mean = latents.mean(dim=(0, 2, 3, 4))
    deviation = latents.std(dim=(0, 2, 3, 4)).clamp(min=1e-6)
    return mean[:, None, None, None], deviation[:, None, None, None]
