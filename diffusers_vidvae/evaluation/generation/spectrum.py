r"""Where latents have their energy: in what is smooth, or in detail that a generator has to make out of noise.

Latents of many autoencoders have far more of it at high frequencies than pixels have, and are harder to generate for
it (https://arxiv.org/abs/2502.14831). As there, energies are those of a discrete cosine transform of blocks.
"""

from __future__ import annotations

import math

import torch


BLOCK = 8


def block_side(*sides: int) -> int:
    """Side of the blocks that the transform takes of frames with these sides: 8, or less for smaller frames."""
    return min(BLOCK, *sides)


def cosine_energies(values: torch.Tensor, side: int) -> torch.Tensor:
    r"""Mean energy of each coefficient, `(side, side)`, float64, from the mean of a block to its finest detail.

    Args:
        values: `(N, C, T, H, W)`; every channel counts as much as the others, whatever its deviation.
        side: Side of the blocks that frames are cut into; what is left at their ends is not seen.
    """
    centred = values - values.mean(dim=(0, 2, 3, 4), keepdim=True)
    scaled = centred / centred.std(dim=(0, 2, 3, 4), keepdim=True).clamp(min=1e-6)
    height, width = (length // side * side for length in scaled.shape[3:])
    blocks = scaled[..., :height, :width].unfold(3, side, side).unfold(4, side, side)  # (N, C, T, h, w, side, side)
    transform = cosine_transform(side).to(blocks)
    return (transform @ blocks @ transform.T).square().double().mean(dim=(0, 1, 2, 3, 4))


def energies_by_frequency(energies: torch.Tensor) -> list[float]:
    """Mean energy of the coefficients (i, j) with `max(i, j) == k`, for every k, as a share of that at 0."""
    frequency = _frequencies(len(energies))
    means = [float(energies[frequency == k].mean()) for k in range(len(energies))]
    return [mean / means[0] for mean in means]


def high_share(energies: torch.Tensor) -> float:
    """Share of the energy in the upper half of the frequencies."""
    return float(energies[2 * _frequencies(len(energies)) >= len(energies)].sum() / energies.sum())


def _frequencies(side: int) -> torch.Tensor:
    order = torch.arange(side)
    return torch.maximum(order[:, None], order[None])


def cosine_transform(side: int) -> torch.Tensor:
    """The orthonormal discrete cosine transform of type II, `(side, side)`."""
    order = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi / side * (order[None] + 0.5) * order[:, None]) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    return waves
