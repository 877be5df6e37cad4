r"""What a training may ask of latents beside reconstruction: all of it off by default.

* Noise on latents while the decoder trains, so that it bears with what a generator makes of them
  (l-DeTok, https://arxiv.org/abs/2507.15856).
* Scale equivariance: shrunken latents decode to the shrunken clip, which keeps noise out of the latents' high
  frequencies (https://arxiv.org/abs/2502.14831).
* Equivariance to scaling and quarter turns, by decoding transformed latents in a share of the steps
  (EQ-VAE, https://arxiv.org/abs/2502.09509).
* A price of the bits that latents take in a file: uniform noise in the place of rounding, and an entropy model that is
  trained along (https://arxiv.org/abs/1611.01704).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .config import check_range
from .draws import normal_noise, torch_generators, uniform_noise
from .losses import frame_mean, mse_loss


# Decodes latents `(B, C, t, h, w)` to pixels of the given frames, height and width.
Decode = Callable[[torch.Tensor, int, int, int], torch.Tensor]

STREAM = 4


@dataclass
class LatentTermsConfig:
    """What is asked of latents.

    Args:
        latent_noise: Standard deviation of noise that the decoder's latents are mixed with, in a share that is uniform
            in [0, 1]; the paper has 3. Train the decoder on without it at the end.
        scale_equivariance_weight: Of the error of decoding latents of half the height and width to the clip of that
            size; the paper has 0.25.
        equivariance_share: Share of the steps that reconstruct a scaled and turned clip from latents that were scaled
            and turned, in the place of the clip.
        rate_weight: Of the bits a pixel that latents take.
        rate_step: Step that a file rounds latents to, as a fraction of each channel's standard deviation.
    """

    latent_noise: float = 0.0
    scale_equivariance_weight: float = 0.0
    equivariance_share: float = 0.0
    rate_weight: float = 0.0
    rate_step: float = 0.25

    def check_latent_terms(self) -> None:
        """Refuses values outside of their ranges."""
        check_range("loss.latent_noise", self.latent_noise, 0)
        check_range("loss.scale_equivariance_weight", self.scale_equivariance_weight, 0)
        check_range("loss.equivariance_share", self.equivariance_share, 0, 1)
        check_range("loss.rate_weight", self.rate_weight, 0)
        check_range("loss.rate_step", self.rate_step, 1e-6)


class LatentTerms(nn.Module):
    """The terms of a configuration for latents of so many channels."""

    def __init__(self, config: LatentTermsConfig, channels: int, seed: int):
        super().__init__()
        self.config = config
        self.seed = seed
        self.rate = RateModel(channels) if config.rate_weight else None

    def decoder_pair(
        self, latents: torch.Tensor, sample: torch.Tensor, draws: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents that the decoder is given, and the pixels it is to make of them."""
        generators = torch_generators(self.seed, draws, STREAM)
        if self.config.equivariance_share:
            # One transform for a batch, which the first of its draws decides.
            numbers = torch.rand(3, generator=torch_generators(self.seed, draws[:1], STREAM + 1)[0]).tolist()
            if numbers[0] < self.config.equivariance_share:
                latents, sample = scaled_and_turned(latents, sample, numbers[1], int(4 * numbers[2]))
        if self.rate is not None:
            step = self.config.rate_step * channel_deviation(latents)
            latents = latents + step * (uniform_noise(tuple(latents.shape[1:]), generators, latents) - 0.5)
        if self.config.latent_noise:
            latents = mixed_with_noise(latents, self.config.latent_noise, generators)
        return latents, sample

    def losses(
        self, latents: torch.Tensor, sample: torch.Tensor, frame_mask: torch.Tensor | None, decode: Decode
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What the terms add to the loss of each clip, `(batch,)`, and metrics."""
        loss = latents.new_zeros(len(latents), dtype=torch.float32)
        metrics: dict[str, torch.Tensor] = {}
        if self.config.scale_equivariance_weight:
            small, target = resized(latents, sample, latents.shape[3] // 2, latents.shape[4] // 2)
            error = mse_loss(decode(small, *target.shape[2:]), target, frame_mask)
            loss = loss + self.config.scale_equivariance_weight * error
            metrics["scale_equivariance"] = error.mean()
        if self.rate is not None:
            ratio = sample.shape[2] // latents.shape[2]
            mask = None if frame_mask is None or ratio > 1 else frame_mask
            bits = self.rate(latents, self.config.rate_step * channel_deviation(latents), mask)
            bits_per_pixel = bits * latents.shape[2] / math.prod(sample.shape[2:])
            loss = loss + self.config.rate_weight * bits_per_pixel
            metrics["bits_per_pixel"] = bits_per_pixel.mean()
        return loss, metrics


class RateModel(nn.Module):
    r"""Bits of latents that are rounded to a step, under Laplace distributions that are learned with them.

    A frame is told by its difference to the one before, the first by that to the channel's mean, as files do it.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        # of the first frame and of differences, in units of the step
        self.log_scales = nn.Parameter(torch.ones(2, channels))

    def forward(
        self, latents: torch.Tensor, step: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Bits of a frame, averaged over the real frames of each clip, `(batch,)`, float32.

        Args:
            latents: `(batch, channels, frames, height, width)`.
            step: `(1, channels, 1, 1, 1)`.
            frame_mask: Bool `(batch, frames)`.
        """
        codes = (latents / step).float()
        first = codes[:, :, :1] - (self.mean[:, None, None, None] / step)
        residuals = torch.cat([first, codes.diff(dim=2)], dim=2)
        scales = self.log_scales.exp()[:, :, None, None]  # (2, C, 1, 1)
        first_bits = laplace_bits(residuals[:, :, :1], scales[0][None, :, None])
        bits = torch.cat([first_bits, laplace_bits(residuals[:, :, 1:], scales[1][None, :, None])], dim=2)
        return frame_mean(bits, frame_mask) * math.prod(bits.shape[3:]) * bits.shape[1]


def laplace_bits(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Bits of values that a file rounds to whole numbers, under a Laplace distribution about 0."""
    distance = values.abs()
    outer, inner = torch.exp(-(distance + 0.5) / scale), torch.exp(-(distance - 0.5).abs() / scale)
    # The mass within half a step: on both sides of 0, or on one.
    around_zero = (1 - 0.5 * (inner + outer)).clamp(min=1e-12).log()
    one_side = -(distance - 0.5) / scale + torch.log(-0.5 * torch.expm1(-1 / scale))
    return -torch.where(distance < 0.5, around_zero, one_side) / math.log(2)


def channel_deviation(latents: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each channel over a batch, without gradient, `(1, C, 1, 1, 1)`."""
    return latents.detach().float().std(dim=(0, 2, 3, 4), keepdim=True).clamp(min=1e-6)


def mixed_with_noise(latents: torch.Tensor, deviation: float, generators: list[torch.Generator]) -> torch.Tensor:
    """`(1 - t) * latents + t * deviation * noise` with t uniform in [0, 1] for each clip."""
    share = uniform_noise((1, 1, 1, 1), generators, latents)
    noise = normal_noise(tuple(latents.shape[1:]), generators, latents)
    return (1 - share) * latents + share * deviation * noise


def scaled_and_turned(
    latents: torch.Tensor, sample: torch.Tensor, scale: float, turns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Latents and pixels scaled to between a quarter and the whole of their size, then turned.

    Args:
        latents: `(batch, channels, frames, height, width)`.
        sample: Pixels, likewise.
        scale: 0 for a quarter of the size, 1 for all of it.
        turns: Quarter turns, 0 to 3.
    """
    height, width = (round(side * (0.25 + 0.75 * scale)) for side in latents.shape[3:])
    latents, sample = resized(latents, sample, height, width)
    return tuple(torch.rot90(values, turns, dims=(3, 4)) for values in (latents, sample))  # type: ignore[return-value]


def resized(latents: torch.Tensor, sample: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of another size (at least 1x1), and pixels of the size that belongs to it."""
    height, width = max(height, 1), max(width, 1)
    ratios = sample.shape[3] // latents.shape[3], sample.shape[4] // latents.shape[4]
    return _resize(latents, height, width), _resize(sample, height * ratios[0], width * ratios[1])


def _resize(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if values.shape[3:] == (height, width):
        return values
    frames = rearrange(values, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(values))
