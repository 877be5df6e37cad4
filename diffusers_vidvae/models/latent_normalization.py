r"""Latents brought to one scale, as models that generate them want them."""

from __future__ import annotations

from typing import Any

import torch


class LatentNormalizationMixin:
    r"""For models whose config has `latents_mean`, `latents_std` and perhaps `scaling_factor`."""

    config: Any

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        r"""Brings latents `(B, C, T, h, w)` to zero mean and a deviation of `scaling_factor`, or 1, per channel.

        Without statistics in the configuration it is the identity, but for `scaling_factor`.
        """
        mean, scale = self._latent_statistics(latents)
        return (latents - mean) * scale

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        r"""Inverse of `normalize_latents`."""
        mean, scale = self._latent_statistics(latents)
        return latents / scale + mean

    def _latent_statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean of every channel and what makes its deviation `scaling_factor`, `(C, 1, 1, 1)` or one for all."""
        mean = latents.new_tensor(self.config.latents_mean or [0.0])
        std = latents.new_tensor(self.config.latents_std or [1.0])
        scale = self.config.get("scaling_factor", 1.0) / std
        return mean[:, None, None, None], scale[:, None, None, None]
