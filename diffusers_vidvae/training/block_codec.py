"""The linear codec of AutoencoderKL3D: principal components of blocks of pixels, and a model that starts from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffusers_vidvae.files import atomic_path
from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D

from .linear_codec import MIN_DEVIATION, POSTERIOR_LOGIT
from .principal_components import ComponentsEstimator, PrincipalComponents, clip_blocks, clip_of_blocks


# Where a training keeps the principal components of its data.
COMPONENTS_FILE = "principal_components.safetensors"


class BlockCodec:
    r"""Principal components of blocks of pixels, several frames long, as a codec.

    Args:
        components: Of blocks as `clip_blocks` cuts them.
        block_size: Frames, rows and columns of a block.
        num_components: Numbers kept of every block.
        first_frame_alone: Whether the first block is the first frame over and over.
    """

    def __init__(
        self,
        components: PrincipalComponents,
        block_size: tuple[int, int, int],
        num_components: int,
        first_frame_alone: bool,
    ):
        self.mean = components.mean
        self.basis = components.components[:, :num_components]
        self.layout = block_size, first_frame_alone

    def reconstruct(self, sample: torch.Tensor) -> torch.Tensor:
        """Pixels `(B, C, T, H, W)` in [-1, 1] after coding."""
        latents = (clip_blocks(sample, *self.layout) - self.mean) @ self.basis
        return clip_of_blocks(latents @ self.basis.T + self.mean, *self.layout, sample.shape[2])


def block_components(
    clips: Iterable[torch.Tensor], block_size: tuple[int, int, int], first_frame_alone: bool
) -> PrincipalComponents:
    """Principal components of the blocks of clips `(C, T, H, W)` in [-1, 1]."""
    estimator = ComponentsEstimator(3 * math.prod(block_size))
    for clip in clips:
        estimator.update(clip_blocks(clip[None], block_size, first_frame_alone))
    return estimator.components()


def remembered(path: Path, compute: Callable[[], PrincipalComponents]) -> PrincipalComponents:
    """Principal components from a file, or computed and kept there."""
    if not path.is_file():
        components = compute()
        with atomic_path(path) as temporary:
            save_file(components._asdict(), temporary)
        return components
    return PrincipalComponents(**load_file(path))


def block_layout(model: AutoencoderKL3D) -> tuple[tuple[int, int, int], bool]:
    """Size of the blocks of pixels that the model has a latent for, and whether its first frame stands alone."""
    side = model.spatial_compression_ratio
    return (model.temporal_compression_ratio, side, side), bool(model.config.first_frame_alone)


@torch.no_grad()
def start_blocks_as_linear_codec(model: AutoencoderKL3D, components: PrincipalComponents) -> None:
    r"""Gives a new model with a linear path the weights with which it computes what the linear codec does.

    The latents are the first components of blocks, scaled to unit variance, and hardly any noise.

    Raises:
        ValueError: The model has no linear path.
    """
    block_size, _ = block_layout(model)
    channels = model.config.latent_channels
    shape = (model.config.in_channels, *block_size)
    basis = components.components[:, :channels].T.unflatten(1, shape)  # (K, C, 4, 8, 8)
    scales = components.variances[:channels].sqrt().clamp(min=MIN_DEVIATION)
    model.set_linear_path(basis.contiguous(), components.mean.unflatten(0, shape).mean(dim=(1, 2, 3)), scales)
    nn.init.constant_(model.encoder.conv_out.conv.get_parameter("bias")[channels:], POSTERIOR_LOGIT)
