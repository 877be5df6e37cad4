"""Axes in which latents are quantised: a model's own, in the metric of its decoder, or its channels as they are.

The pixels that a change `dz` of latents at one place makes have the squared norm `dz' G dz`, with `G = E[J' J]` of the
decoder's Jacobian `J`. In `y = U' G^(1/2) (z - mean)`, with `U` the principal axes of `G^(1/2) z`, equal errors make
equal errors of pixels, and the values of different axes are uncorrelated: so one step serves all axes, and axes that
matter little become zeros. That is the Karhunen-Loeve transform for a weighted error.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .errors import FsvError


# Private keys of a diffusers config are kept by `from_pretrained` and `save_pretrained`, whatever the class.
CONFIG_KEY = "_latents_basis"

# The step at quality 50, of channels scaled to a deviation of one.
_PLAIN_UNIT = 0.3

# Noise of quality 50 for each part of the model's own error.
_NOISE_SHARE = 0.15

# Mean magnitude of a normal distribution with a deviation of one.
_MEAN_MAGNITUDE = 0.8


@dataclass(frozen=True, eq=False)
class LatentsBasis:
    """Axes of latents, `y = forward @ (z - mean)`.

    Attributes:
        mean: float64 `(channels,)`.
        forward: float64 `(axes, channels)`.
        deviations: float64 `(axes,)`: deviation of every axis over many clips.
        unit: The step of quality 50.
        name: Fingerprint of the values, 16 hexadecimal digits; empty for channels as they are.

    Raises:
        FsvError: Sizes disagree, or a value is not finite.
    """

    mean: np.ndarray
    forward: np.ndarray
    deviations: np.ndarray
    unit: float
    name: str = ""

    def __post_init__(self) -> None:
        channels = len(self.mean)
        if self.forward.shape != (channels, channels) or self.deviations.shape != (channels,):
            raise FsvError(
                f"latents_basis: {self.forward.shape} and {self.deviations.shape} do not fit {channels} channels."
            )
        values = (self.mean, self.forward, self.deviations, np.array(self.unit))
        if not all(np.isfinite(value).all() for value in values) or (self.deviations <= 0).any() or self.unit <= 0:
            raise FsvError("latents_basis: a value is not finite, or a deviation not positive.")

    @cached_property
    def inverse(self) -> np.ndarray:
        """float64 `(channels, axes)`."""
        return np.linalg.inv(self.forward)

    def to_axes(self, latents: np.ndarray) -> np.ndarray:
        """float64 `(axes, ...)` of latents `(channels, ...)`."""
        centred = latents - self.mean.reshape(-1, *[1] * (latents.ndim - 1))
        return np.tensordot(self.forward, centred, axes=1)

    def to_latents(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `to_axes`."""
        return np.tensordot(self.inverse, values, axes=1) + self.mean.reshape(-1, *[1] * (values.ndim - 1))

    def step(self, quality: float) -> float:
        """The quantiser's step at a quality from 0 to 100, as a float32 holds it: ten times finer for every 40."""
        return float(np.float32(self.unit * 10 ** ((50 - quality) / 40)))

    def quality(self, step: float) -> float:
        """Inverse of `step`."""
        return float(50 - 40 * np.log10(step / self.unit))

    def scales(self, step: float) -> np.ndarray:
        """Expected magnitudes of codes of every axis, times 256, for the entropy coder."""
        return np.clip(np.rint(self.deviations * (_MEAN_MAGNITUDE * 256 / step)), 1, 1 << 24).astype(np.int64)

    @classmethod
    def of_channels(cls, mean: Any, deviations: Any) -> LatentsBasis:
        """Channels as they are, each with a step in proportion to its deviation."""
        mean, deviations = (np.asarray(values, dtype=np.float64) for values in (mean, deviations))
        return cls(mean, np.diag(1 / deviations), np.ones(len(mean)), _PLAIN_UNIT)

    @classmethod
    def of_latents(cls, latents: np.ndarray) -> LatentsBasis:
        """Channels as they are, with the mean and deviation of `(channels, ...)`, as float32 holds them.

        Raises:
            FsvError: A latent is not finite.
        """
        values = latents.reshape(len(latents), -1)
        if not np.isfinite(values).all():
            raise FsvError(f"latents: {int((~np.isfinite(values)).sum())} values are not finite.")
        deviations = values.std(axis=1)
        # Channels that hardly vary here may do so later.
        deviations = np.maximum(deviations, max(1e-3 * deviations.max(), 1e-6))
        return cls.of_channels(values.mean(axis=1).astype(np.float32), deviations.astype(np.float32))

    @property
    def channel_deviations(self) -> list[float]:
        """Deviation of every channel, of channels as they are."""
        return [float(np.float32(1 / scale)) for scale in self.forward.diagonal()]

    @classmethod
    def of_covariances(
        cls, mean: np.ndarray, covariance: np.ndarray, metric: np.ndarray, error: float, values_per_position: int
    ) -> LatentsBasis:
        """Principal axes of latents in the metric of a decoder.

        Args:
            mean: `(channels,)`.
            covariance: `(channels, channels)` of the latents.
            metric: `E[J' J]` at one place, `(channels, channels)`.
            error: The autoencoder's own mean squared error of a pixel value.
            values_per_position: Pixel values for each place of latents.
        """
        # Directions that the decoder does not see must stay invertible.
        strengths, directions = np.linalg.eigh(metric)
        root = (directions * np.sqrt(np.maximum(strengths, 1e-4 * strengths[-1]))) @ directions.T
        variances, axes = np.linalg.eigh(root @ covariance @ root)
        deviations = np.sqrt(np.maximum(variances[::-1], 1e-8 * variances[-1]))
        channels = len(mean)
        unit = np.sqrt(12 * _NOISE_SHARE * error * values_per_position / channels)
        return cls.from_arrays(mean, axes[:, ::-1].T @ root, deviations, unit)

    @classmethod
    def from_arrays(cls, mean: Any, forward: Any, deviations: Any, unit: float) -> LatentsBasis:
        """A basis of values rounded to float32, named by their fingerprint."""
        arrays = [np.asarray(values, dtype="<f4") for values in (mean, forward, deviations, [unit])]
        digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
        mean, forward, deviations, units = (array.astype(np.float64) for array in arrays)
        return cls(mean, forward, deviations, float(units[0]), digest[:16])

    def to_config(self) -> dict[str, Any]:
        """Plain values for a model's config, the arrays as base64 of little-endian float32."""
        parts = {"mean": self.mean, "forward": self.forward, "deviations": self.deviations}
        texts = {name: base64.b64encode(value.astype("<f4").tobytes()).decode() for name, value in parts.items()}
        return {"channels": len(self.mean), "unit": self.unit, **texts}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LatentsBasis | None:
        """The basis that a model's config holds, None without one.

        Raises:
            FsvError: It is malformed.
        """
        values = config.get(CONFIG_KEY)
        if values is None:
            return None
        try:
            arrays = [
                np.frombuffer(base64.b64decode(values[name]), "<f4") for name in ("mean", "forward", "deviations")
            ]
            channels = int(values["channels"])
            return cls.from_arrays(arrays[0], arrays[1].reshape(channels, channels), arrays[2], float(values["unit"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FsvError(f"{CONFIG_KEY}: the model's config holds no readable basis ({error}).") from error
