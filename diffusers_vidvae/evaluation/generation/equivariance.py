r"""Whether latents move with the picture: what is lost by transforming them in the place of its pixels.

A clip that is scaled or turned should have the scaled and turned latents; where it has not, a generator learns one
thing in many guises (EQ-VAE, https://arxiv.org/abs/2502.09509).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffusers_vidvae.training.latent_terms import resized

from .latents import LatentSpace, psnrs


Pair = tuple[torch.Tensor, torch.Tensor]


def halved(latents: torch.Tensor, sample: torch.Tensor) -> Pair:
    """Latents and pixels at half the height and width."""
    return resized(latents, sample, latents.shape[3] // 2, latents.shape[4] // 2)


def shifted_by_half(latents: torch.Tensor, sample: torch.Tensor) -> Pair:
    """What lies between two latents of a row, and the pixels there: a shift by half a latent, without the borders."""
    half = sample.shape[4] // latents.shape[4] // 2
    return (latents[..., :-1] + latents[..., 1:]) / 2, sample[..., half : sample.shape[4] - half]


def turned(latents: torch.Tensor, sample: torch.Tensor) -> Pair:
    """Latents and pixels a quarter turn on."""
    return torch.rot90(latents, dims=(3, 4)), torch.rot90(sample, dims=(3, 4))


TRANSFORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], Pair]] = {
    "scale": halved,
    "shift": shifted_by_half,
    "turn": turned,
}


def equivariance_gaps(space: LatentSpace, latents: torch.Tensor, sample: torch.Tensor) -> dict[str, list[float]]:
    r"""PSNR in dB that each clip loses when its latents are transformed rather than its pixels.

    Args:
        space: The model.
        latents: Of the clips, `(N, C, t, h, w)`.
        sample: The clips, `(N, 3, T, H, W)` in [-1, 1].

    Returns:
        By the name of the transform; those whose results the model does not take as they are have no entry.
    """
    gaps = {}
    for name, transform in TRANSFORMS.items():
        moved, target = transform(latents, sample)
        if space.takes(*target.shape[2:]) and min(moved.shape[3:]) > 0:
            theirs = space.decode(space.encode(target), target.shape[2:])
            ours = space.decode(moved, target.shape[2:])
            pairs = zip(psnrs(target, theirs), psnrs(target, ours), strict=True)
            gaps[name] = [one - other for one, other in pairs]
    return gaps
