r"""What can be said of latents without training anything on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from diffusers_vidvae.training.draws import normal_noise, torch_generators

from .equivariance import TRANSFORMS, equivariance_gaps
from .latents import LatentSpace, channel_moments, psnrs, windows_to_pixels
from .spectrum import block_side, cosine_energies, energies_by_frequency, high_share
from .windows import Windows


# Windows that are looked at, from the first one held out.
MOST_WINDOWS = 48
# Noise, in deviations of each channel.
NOISE_SIZES = (0.05, 0.1, 0.2, 0.4, 0.8)
NOISE_STREAM = 11


def describe_latents(space: LatentSpace, windows: Windows, latents: torch.Tensor) -> dict[str, Any]:
    r"""Spectrum, effective dimension, equivariance and response to noise of a model's latents.

    Args:
        space: The model.
        windows: Windows of clips.
        latents: Theirs, `(N, C, t, h, w)`.

    Returns:
        values_per_pixel: Latent values for each pixel of a frame.
        dimension: See `effective_dimension`.
        spectrum: Energies by frequency of latents and of pixels, and the share of each in the upper half.
        clips: Figures of each clip by its name: "psnr", "gap_..." for every transform, "noise_..." for every size.
        notes: What could not be measured, and why.
    """
    latents = latents[:MOST_WINDOWS]
    sample = windows_to_pixels(windows.frames[:MOST_WINDOWS])
    size = sample.shape[2:]
    restored = space.decode(latents, size)
    figures = {"psnr": psnrs(sample, restored)}
    gaps = equivariance_gaps(space, latents, sample)
    figures |= {f"gap_{name}": values for name, values in gaps.items()}
    figures |= {f"noise_{noise:g}": psnrs(sample, space.decode(_noisy(latents, noise), size)) for noise in NOISE_SIZES}
    missing = [name for name in TRANSFORMS if name not in gaps]
    unfit = f"{space.model.name} does not take frames of that size as they are."
    notes = [f"Equivariance to a {name}: {unfit}" for name in missing]
    return {
        "values_per_pixel": latents[0].numel() / size.numel(),
        "latent_shape": list(latents.shape[1:]),
        "dimension": effective_dimension(latents),
        "spectrum": _spectra(latents, sample),
        "clips": _by_clip(figures, windows.clips),
        "notes": notes,
    }


def effective_dimension(latents: torch.Tensor) -> dict[str, float]:
    r"""How many channels latents `(N, C, t, h, w)` fill, by the eigenvalues of the channels' covariance.

    Returns:
        entropy: Exponential of the entropy of the eigenvalues as shares of their sum (Roy and Vetterli, 2007).
        participation: Their participation ratio, square of the sum over sum of squares.
        channels: The most that either can be.
    """
    values = latents.double().transpose(0, 1).flatten(1)  # (C, positions)
    centred = values - values.mean(dim=1, keepdim=True)
    shares = torch.linalg.eigvalsh(centred @ centred.T).clamp(min=0)
    shares = shares / shares.sum()
    return {
        "entropy": float(torch.special.entr(shares).sum().exp()),
        "participation": float(1 / shares.square().sum()),
        "channels": float(len(shares)),
    }


def _noisy(latents: torch.Tensor, size: float) -> torch.Tensor:
    """Latents with noise of so many deviations of their channels."""
    _, deviation = channel_moments(latents)
    generators = torch_generators(0, torch.arange(len(latents)), NOISE_STREAM)
    return latents + size * deviation * normal_noise(tuple(latents.shape[1:]), generators, latents)


def _spectra(latents: torch.Tensor, sample: torch.Tensor) -> dict[str, Any]:
    side = block_side(*latents.shape[3:])
    energies = {"latents": cosine_energies(latents, side), "pixels": cosine_energies(sample, side)}
    curves = {name: energies_by_frequency(values) for name, values in energies.items()}
    shares = {f"{name}_high_share": high_share(values) for name, values in energies.items()}
    return {"side": side, **curves, **shares}


def _by_clip(figures: dict[str, list[float]], clips: Sequence[str]) -> dict[str, dict[str, float]]:
    """Means over the windows of each clip."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, values in figures.items():
        for clip, value in zip(clips, values, strict=False):
            found[clip][name].append(value)
    return {clip: {name: sum(values) / len(values) for name, values in named.items()} for clip, named in found.items()}
