"""Principal components of patches, gathered clip by clip."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange


class PrincipalComponents(NamedTuple):
    r"""Mean and principal components of vectors, the largest variance first.

    Args:
        mean: `(dim,)`.
        components: Orthonormal columns, `(dim, dim)`.
        variances: Variance along each of them, `(dim,)`.
    """

    mean: torch.Tensor
    components: torch.Tensor
    variances: torch.Tensor


class ComponentsEstimator:
    r"""Sums what principal components need, in float64, so that no vector has to be kept.

    Args:
        dim: Length of the vectors.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.products = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, vectors: torch.Tensor) -> None:
        """Takes in vectors `(..., dim)`."""
        vectors = vectors.flatten(0, -2).cpu()
        self.count += len(vectors)
        self.total += vectors.sum(dim=0, dtype=torch.float64)
        self.products += (vectors.T @ vectors).double()

    def components(self) -> PrincipalComponents:
        """The components of all vectors so far.

        Raises:
            ValueError: There were not more vectors than components.
        """
        if self.count <= len(self.total):
            raise ValueError(f"{len(self.total)} principal components need more than {self.count} patches.")
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        variances, components = torch.linalg.eigh(covariance)
        return PrincipalComponents(
            mean.float(), components.flip(1).float().contiguous(), variances.flip(0).clamp(min=0).float()
        )


def frame_patches(sample: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cuts pixels `(B, C, T, H, W)` into patches `(B, T, h, w, p * p * C)`, laid out `(row, column, channel)`."""
    return rearrange(sample, "b c t (h p) (w q) -> b t h w (p q c)", p=patch_size, q=patch_size)


def frames_of_patches(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Inverse of `frame_patches`."""
    return rearrange(patches, "b t h w (p q c) -> b c t (h p) (w q)", p=patch_size, q=patch_size)


def clip_blocks(sample: torch.Tensor, block_size: tuple[int, int, int], first_frame_alone: bool) -> torch.Tensor:
    r"""Cuts pixels `(B, C, T, H, W)` into blocks `(B, t, h, w, C * frames * rows * columns)`.

    Args:
        sample: Pixels; height and width are multiples of the block's. Missing frames at the end repeat the last one.
        block_size: Frames, rows and columns of a block.
        first_frame_alone: Whether the first block is the first frame over and over.
    """
    length, height, width = block_size
    first = sample[:, :, :1].expand(-1, -1, length - 1 if first_frame_alone else 0, -1, -1)
    last = sample[:, :, -1:].expand(-1, -1, -(sample.shape[2] + first.shape[2]) % length, -1, -1)
    frames = torch.cat([first, sample, last], dim=2)
    return rearrange(frames, "b c (t l) (h r) (w q) -> b t h w (c l r q)", l=length, r=height, q=width)


def clip_of_blocks(
    blocks: torch.Tensor, block_size: tuple[int, int, int], first_frame_alone: bool, num_frames: int
) -> torch.Tensor:
    """Inverse of `clip_blocks` for a clip of so many frames."""
    length, height, width = block_size
    frames = rearrange(blocks, "b t h w (c l r q) -> b c (t l) (h r) (w q)", l=length, r=height, q=width)
    start = length - 1 if first_frame_alone else 0
    return frames[:, :, start : start + num_frames]
