r"""Moments of latents, channel by channel, that add up over clips whatever their order."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from .video_autoencoder import Posterior


@dataclass
class LatentMoments:
    """Moments of posterior modes over positions, and sums over positions of the posteriors' own, by channel.

    Args:
        num_frames: Frames that were encoded.
        num_positions: Latent positions `(frame, row, column)`.
        mean: Mean of the modes, float64 `(channels,)`, like the next.
        deviations: Sum of the modes' squared deviations from it.
        variances: Sum of the posteriors' variances.
        divergences: Sum of their KL divergences from a standard normal, in nats; None without posteriors.
    """

    num_frames: int
    num_positions: int
    mean: torch.Tensor
    deviations: torch.Tensor
    variances: torch.Tensor
    divergences: torch.Tensor | None

    @classmethod
    def of(cls, posterior: Posterior, num_frames: int) -> LatentMoments:
        modes = posterior.mode().double().cpu().transpose(0, 1).flatten(1)  # (C, positions)
        mean = modes.mean(dim=1)
        deviations = (modes - mean[:, None]).square().sum(dim=1)
        if not isinstance(posterior, DiagonalGaussianDistribution):
            return cls(num_frames, modes.shape[1], mean, deviations, torch.zeros_like(mean), None)
        variances = posterior.var.double().cpu().transpose(0, 1).flatten(1)
        divergences = 0.5 * (modes.square() + variances - 1 - variances.log()).sum(dim=1)
        return cls(num_frames, modes.shape[1], mean, deviations, variances.sum(dim=1), divergences)

    def __add__(self, other: LatentMoments) -> LatentMoments:
        """Moments of both sets of positions (Chan, Golub and LeVeque, 1983)."""
        total = self.num_positions + other.num_positions
        shift = other.mean - self.mean
        divergences = None
        if self.divergences is not None and other.divergences is not None:
            divergences = self.divergences + other.divergences
        return LatentMoments(
            self.num_frames + other.num_frames,
            total,
            self.mean + shift * (other.num_positions / total),
            self.deviations + other.deviations + shift.square() * (self.num_positions * other.num_positions / total),
            self.variances + other.variances,
            divergences,
        )

    def to_json(self) -> dict[str, Any]:
        return {name: value.tolist() if torch.is_tensor(value) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LatentMoments:
        tensors = {n: torch.tensor(v, dtype=torch.float64) for n, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **tensors})
