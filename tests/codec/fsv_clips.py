from __future__ import annotations

from fractions import Fraction

import torch

from diffusers_vidvae.codec import FsvHeader, LatentWindow


def make_window(start: int, num_frames: int, positions: list[int], shape=(5, 3, 3)) -> LatentWindow:
    channels, height, width = shape
    gaps = torch.tensor(positions).diff(prepend=torch.zeros(1, dtype=torch.long))
    latents = torch.randn(channels, len(positions), height, width)
    return LatentWindow(start=start, num_frames=num_frames, gaps=gaps, latents=latents)


def make_header(**changes) -> FsvHeader:
    fields = {
        "num_frames": 11,
        "height": 45,
        "width": 40,
        "model_height": 48,
        "model_width": 48,
        "clip_num_frames": 8,
        "latent_channels": 5,
        "latent_height": 3,
        "latent_width": 3,
        "fps": Fraction(30000, 1001),
        "quantization": "fp32",
        "model_id": "someone/some-vae",
        "model_hash": "0123456789abcdef" * 4,
        "model_probe": (0.125, -2.5e-05),
    }
    return FsvHeader(**(fields | changes))
