r"""What is exported of an autoencoder: functions of tensors, with the weights that they need and no more."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D
from diffusers_vidvae.models.frame_fill import WienerFill, solve_by_elimination
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE
from diffusers_vidvae.models.pixel_range import from_pixel_range, to_pixel_range

from .sizes import SizeRange


Sizes = tuple[SizeRange, SizeRange, SizeRange]


@dataclass(frozen=True)
class Graph:
    r"""Half of an autoencoder.

    Args:
        module: The function.
        inputs: Names of its arguments.
        outputs: Names of what it returns, in a tuple.
        dynamic_shapes: For every argument the axes that vary, as `torch.export` wants them.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_shapes: tuple[dict[int, Any], ...]

    def export(self, arguments: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
        r"""Traces it at one size; it then runs at all sizes that it is for."""
        with torch.no_grad():
            return torch.export.export(self.module, arguments, dynamic_shapes=(*self.dynamic_shapes,))


class KL3DEncoderGraph(nn.Module):
    """Pixels `(1, C, T, H, W)` to mean and log variance of latents `(1, 2 * latent_channels, T', h, w)`."""

    def __init__(self, vae: AutoencoderKL3D):
        super().__init__()
        self.pixel_range = vae.config.pixel_range
        self.encoder = vae.encoder

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.encoder(to_pixel_range(pixels, self.pixel_range))[0],)


class KL3DDecoderGraph(nn.Module):
    """Latents to pixels, all that they hold."""

    def __init__(self, vae: AutoencoderKL3D):
        super().__init__()
        self.pixel_range = vae.config.pixel_range
        self.decoder = vae.decoder

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor]:
        return (from_pixel_range(self.decoder(latents)[0], self.pixel_range),)


class FrameSelectEncoderGraph(nn.Module):
    """Pixels to the parameters of the latents and the probability that each frame is worth keeping, `(1, T)`."""

    def __init__(self, vae: FrameSelectVAE):
        super().__init__()
        self.vae = with_children(vae, "temporal_rope", "spatial_rope", "encoder")

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parameters, keep_logits = self.vae._encode_window(pixels)
        return parameters, keep_logits.sigmoid()


class FrameSelectDecoderGraph(nn.Module):
    """Latents, and which frames they were kept of, bool `(1, T)`, to pixels."""

    def __init__(self, vae: FrameSelectVAE):
        super().__init__()
        self.vae = with_children(vae, "temporal_rope", "spatial_rope", "fill_token", "decoder")
        self.vae.encoder = with_children(vae.encoder, "cycle", "temporal_filter")

    def forward(self, latents: torch.Tensor, keep_mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.vae._decode_window(latents, keep_mask),)


def with_children(module: Any, *names: str) -> Any:
    """A module that shares some children with another one, and has no others."""
    part = copy.copy(module)
    part.__dict__["_modules"] = {name: module._modules[name] for name in names if name in module._modules}
    return part


def make_graph(vae: Any, part: str, sizes: Sizes) -> Graph:
    r"""The `"encoder"` or `"decoder"` of an autoencoder.

    Args:
        vae: An `AutoencoderKL3D` or `FrameSelectVAE`.
        part: Which half.
        sizes: Frames, heights and widths that it shall take.
    """
    dimensions = [size.dimension() for size in sizes]
    latent_axes = dict(zip((2, 3, 4), dimensions, strict=True))
    pixel_axes = {
        axis: size.pixel_dimension(dimension)
        for axis, size, dimension in zip((2, 3, 4), sizes, dimensions, strict=True)
    }
    is_kl_3d = isinstance(vae, AutoencoderKL3D)
    if part == "encoder":
        module = KL3DEncoderGraph(vae) if is_kl_3d else FrameSelectEncoderGraph(vae)
        outputs = ("parameters",) if is_kl_3d else ("parameters", "keep_probs")
        return Graph(module, ("pixels",), outputs, (pixel_axes,))
    if is_kl_3d:
        return Graph(KL3DDecoderGraph(vae), ("latents",), ("pixels",), (latent_axes,))
    shapes = (latent_axes, {1: dimensions[0]})
    return Graph(FrameSelectDecoderGraph(vae), ("latents", "keep_mask"), ("pixels",), shapes)


def random_arguments(vae: Any, part: str, sizes: tuple[SizeRange, ...], index: int) -> tuple[torch.Tensor, ...]:
    """Arguments of a graph, of the first or second example of each size."""
    generator = torch.Generator().manual_seed(index)
    pixel_shape = [size.examples()[index] for size in sizes]
    if part == "encoder":
        return (2 * torch.rand(1, vae.config.in_channels, *pixel_shape, generator=generator) - 1,)
    latent_shape = [size.num_latents(pixels) for size, pixels in zip(sizes, pixel_shape, strict=True)]
    latents = torch.randn(1, vae.config.latent_channels, *latent_shape, generator=generator)
    if isinstance(vae, AutoencoderKL3D):
        return (latents,)
    keep_mask = torch.rand(1, pixel_shape[0], generator=generator) < 0.5
    keep_mask[:, 0] = True
    return latents, keep_mask


@torch.no_grad()
def expected_outputs(vae: Any, part: str, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """What the autoencoder itself makes of the arguments of a graph."""
    if part == "decoder":
        return (vae.decode(*arguments).sample,)
    encoded = vae.encode(*arguments)
    parameters = encoded.latent_dist.parameters
    return (parameters,) if isinstance(vae, AutoencoderKL3D) else (parameters, encoded.keep_probs)


@contextmanager
def solving_by_elimination(vae: Any, num_frames: int) -> Iterator[None]:
    """Lets a decoder solve its linear equations, of up to `num_frames` unknowns, by operators that ONNX has."""
    fill = getattr(vae, "fill_token", None)
    if not isinstance(fill, WienerFill):
        yield
        return
    # One more, since what happens to be true of the longest clips alone, that nothing is added, is refused as a guard.
    fill.solve = partial(solve_by_elimination, size=num_frames + 1)
    try:
        yield
    finally:
        del fill.solve
