r"""The best linear codec whose blocks overlap: latents are linear in a block of pixels and those around it, and back.

H. Malvar and D. Staelin, "The LOT: transform coding without blocking effects", IEEE Trans. ASSP 37(4), 1989, have the
idea. Here both directions are free. The error of such a codec depends on second moments only, and is a sum over
spatial frequencies; its minimum is found with gradients, and the way back is then fitted to clips as they are, borders
included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D

from .block_codec import block_layout
from .linear_codec import MIN_DEVIATION
from .principal_components import PrincipalComponents, clip_blocks


# Components of a block that latents may depend on, for each latent channel.
COMPONENTS_PER_CHANNEL = 6
# How much the error of a clip's first frame as an image counts beside the clip's.
IMAGE_WEIGHT = 0.5
FIT_STEPS = 700


class BlockSpectrum(NamedTuple):
    r"""Second moments of the coefficients of blocks at the spatial frequencies of a square of blocks.

    Args:
        moments: `(F, M, M)`, complex, of the `M` first principal components.
        weights: How often each of the `F` frequencies counts, `(F,)`: those that are left out are complex conjugates.
        frequencies: Vertical and horizontal, in cycles per block, `(F, 2)`.
    """

    moments: torch.Tensor
    weights: torch.Tensor
    frequencies: torch.Tensor


class OverlappingCodec(NamedTuple):
    r"""A linear codec of coefficients of blocks.

    Args:
        analysis: Latents from coefficients, `(K, M, k, k)`, a kernel of a convolution.
        synthesis: Coefficients from latents, `(M, K, k, k)`, likewise.
    """

    analysis: torch.Tensor
    synthesis: torch.Tensor


@torch.no_grad()
def overlap_blocks(
    model: AutoencoderKL3D, components: PrincipalComponents, clips: Sequence[torch.Tensor], steps: int = FIT_STEPS
) -> None:
    r"""Makes a model that is the linear codec of single blocks that of overlapping ones.

    Args:
        model: As `start_blocks_as_linear_codec` leaves it, with a `linear_path_context` above 0.
        components: Of blocks of such clips.
        clips: Clips `(C, T, H, W)` in [-1, 1], of one size.
        steps: Evaluations of the error in the search for the analysis.

    Raises:
        ValueError: The model has another pixel range than [-1, 1], or its blocks do not overlap.
    """
    context, channels = model.config.linear_path_context, model.config.latent_channels
    if not context or tuple(model.config.pixel_range) != (-1.0, 1.0):
        raise ValueError(
            "Blocks overlap in models with a `linear_path_context` of at least 1 and `pixel_range` [-1, 1], got"
            f" {context} and {list(model.config.pixel_range)}."
        )
    basis = components.components[:, : COMPONENTS_PER_CHANNEL * channels]  # (dim, M)
    spectrum = block_spectrum(components.mean, basis, model, clips)
    analysis = fit_codec(spectrum, components.variances[: basis.shape[1]], channels, context, steps).analysis
    analysis = torch.einsum("kmyx,dm->kdyx", analysis, basis)  # (K, dim, k, k)
    bias = -torch.einsum("kdyx,d->k", analysis, components.mean)
    set_weights(model.linear_projections()[0].conv, analysis, bias)
    fit_synthesis(model, clips)


def fit_synthesis(model: AutoencoderKL3D, clips: Sequence[torch.Tensor]) -> None:
    r"""Fits the linear path of the decoder to that of the encoder by least squares, with latents of unit variance."""
    into, out = model.linear_projections()
    context, channels = out.context, model.config.latent_channels
    side = 2 * context + 1
    gram = moment = torch.zeros(())
    squares, count = torch.zeros(channels), 0
    for sample, weight in with_images(clips):
        blocks = clip_blocks(sample, *block_layout(model))  # (1, t, h, w, dim)
        latents = into(blocks.movedim(-1, 1))[0].transpose(0, 1)  # (t, K, h, w)
        squares, count = squares + latents.square().sum(dim=(0, 2, 3)), count + latents[:, 0].numel()
        features = F.unfold(F.pad(latents, (context,) * 4, mode="replicate"), side).mT.flatten(0, 1)
        features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)  # (t h w, K k k + 1)
        gram = gram + weight * (features.T @ features).double()
        moment = moment + weight * (features.T @ blocks.flatten(0, 3)).double()
    solution = torch.linalg.solve(gram + 1e-6 * gram.diagonal().diag(), moment).float()  # (K k k + 1, dim)
    deviation = (squares / count).sqrt().clamp(min=MIN_DEVIATION)
    bias = into.conv.get_parameter("bias")
    set_weights(into.conv, into.conv.weight / deviation[:, None, None, None], bias / deviation)
    kernel = solution[:-1].T.unflatten(1, (channels, side, side))
    set_weights(out.conv, kernel * deviation[:, None, None], solution[-1])


def set_weights(layer: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.weight.copy_(weight)
    layer.get_parameter("bias").copy_(bias)


def with_images(clips: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, float]]:
    """Clips and their first frames alone as `(1, C, T, H, W)`, with their weights."""
    return chain.from_iterable(((clip[None], 1.0), (clip[None, :, :1], IMAGE_WEIGHT)) for clip in clips)


def block_spectrum(
    mean: torch.Tensor, basis: torch.Tensor, model: AutoencoderKL3D, clips: Sequence[torch.Tensor]
) -> BlockSpectrum:
    r"""Gathers second moments of coefficients of blocks, of clips faded out towards their borders."""
    context, channels = model.config.linear_path_context, model.config.latent_channels
    ratio = model.spatial_compression_ratio
    fades = [torch.hann_window(side // ratio + 2, periodic=False)[1:-1].sqrt() for side in clips[0].shape[2:]]
    fade = (fades[0][:, None] * fades[1])[:, :, None]  # (h, w, 1)
    # Zeros around, so that blocks at opposite borders are no neighbours.
    sides = [2 * math.ceil((len(fade) + 4 * context) / 2) for fade in fades]
    moments = torch.zeros(())
    for sample, weight in with_images(clips):
        coefficients = (clip_blocks(sample, *block_layout(model))[0] - mean) @ basis  # (t, h, w, M)
        values = torch.fft.rfft2(fade * coefficients, s=sides, dim=(1, 2)).flatten(1, 2).transpose(0, 1)  # (F, t, M)
        moments = moments + weight / values.shape[1] * (values.mT @ values.conj())
    vertical, horizontal = torch.fft.fftfreq(sides[0]), torch.fft.rfftfreq(sides[1])
    weights = torch.where((horizontal == 0) | (horizontal == 0.5), 1.0, 2.0).repeat(sides[0])
    lost = (moments.diagonal(dim1=1, dim2=2).real[:, channels:].sum(dim=1) * weights).sum()
    frequencies = torch.cartesian_prod(vertical, horizontal)
    return BlockSpectrum(moments / lost, weights, frequencies)


@torch.enable_grad()
def fit_codec(
    spectrum: BlockSpectrum, variances: torch.Tensor, channels: int, context: int, steps: int
) -> OverlappingCodec:
    r"""Finds the kernels of least error, from those of single blocks on.

    Args:
        spectrum: Of coefficients of blocks.
        variances: Of the coefficients, `(M,)`.
        channels: Number of latents for a block.
        context: Blocks to each side that a kernel reaches.
        steps: Evaluations of the error.
    """
    num_components, side = len(variances), 2 * context + 1
    deviation = variances.sqrt().clamp(min=MIN_DEVIATION)
    # Searched in units in which all coefficients vary alike, so that none is learned slower.
    unit = (deviation[:channels, None] / deviation)[:, :, None, None]
    kernels = [torch.zeros(channels, num_components, side, side), torch.zeros(num_components, channels, side, side)]
    for kernel in kernels:
        torch.diagonal(kernel[:, :, context, context]).fill_(1)
        kernel.requires_grad_()
    optimizer = torch.optim.LBFGS(
        kernels, max_iter=steps, max_eval=steps, history_size=30, line_search_fn="strong_wolfe", tolerance_change=0.0
    )

    def natural() -> OverlappingCodec:
        return OverlappingCodec(kernels[0] * unit, kernels[1] / unit.transpose(0, 1))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        error = lost_share(natural(), spectrum)
        error.backward()
        return error

    optimizer.step(closure)
    return OverlappingCodec(*(kernel.detach() for kernel in natural()))


def lost_share(codec: OverlappingCodec, spectrum: BlockSpectrum) -> torch.Tensor:
    r"""Mean squared error of a codec in units of that of single blocks, a scalar."""
    moments = spectrum.moments  # (F, M, M)
    analysis, synthesis = (transfer(kernel, spectrum.frequencies) for kernel in codec)  # (F, K, M), (F, M, K)
    latents = analysis @ moments  # of latents with coefficients
    kept = (synthesis * latents.mT).sum(dim=(1, 2)).real
    energy = ((synthesis @ (latents @ analysis.mH)) * synthesis.conj()).sum(dim=(1, 2)).real
    total = moments.diagonal(dim1=1, dim2=2).real.sum(dim=1)
    return ((total - 2 * kept + energy) * spectrum.weights).sum()


def transfer(kernel: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    r"""What a kernel `(out, in, k, k)` of a convolution does at spatial frequencies `(F, 2)`: `(F, out, in)`."""
    context = kernel.shape[-1] // 2
    steps = torch.arange(-context, context + 1, dtype=frequencies.dtype)
    shifts = torch.cartesian_prod(steps, steps)  # (k k, 2)
    phases = torch.exp(2j * math.pi * (shifts @ frequencies.T))  # (k k, F)
    return (kernel.flatten(2).to(phases.dtype) @ phases).permute(2, 0, 1)
