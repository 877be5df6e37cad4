"""Axes in which latents are quantised: a model's own, in the metric of its decoder, or its channels as they are.

The pixels that a change `dz` of latents at one place makes have the squared norm `dz' G dz`, with `G = E[J' J]` of the
decoder's Jacobian `J`. In `y = U' G^(1/2) (z - mean)`, with `U` the principal axes of `G^(1/2) z`, equal errors make
equal errors of pixels, and the values of different axes are uncorrelated: so one step serves all axes, and axes that
matter little become zeros. That is the Karhunen-Loeve transform for a weighted error. Where channels take turns in
what they show (`AxesCycle`), every group has axes of its own.

A decoder that looks at several frames does not see all errors alike: those that change from frame to frame may weigh
more than those that stay. So errors are shaped, as in noise-shaping converters (Gerzon and Craven, 1989): what earlier
frames were off by is added, `shaping` times, to what a frame is rounded from.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .axes_cycle import AxesCycle
from .errors import FsvError


# Private keys of a diffusers config are kept by `from_pretrained` and `save_pretrained`, whatever the class.
CONFIG_KEY = "_latents_basis"

# The step at quality 50, of channels scaled to a deviation of one.
_PLAIN_UNIT = 0.3

# Frames after which shaped errors have faded.
_RESPONSE_FRAMES = 64

# Mean magnitude of a normal distribution with a deviation of one.
_MEAN_MAGNITUDE = 0.8


@dataclass(frozen=True, eq=False)
class LatentsBasis:
    """Axes of latents, `y = forward @ (z - mean)`.

    Attributes:
        mean: float64 `(axes,)`.
        forward: float64 `(axes, axes)`, zeros between axes of different groups of the cycle.
        deviations: float64 `(axes,)`: deviation of every axis over many clips.
        unit: The step of quality 50.
        cycle: The axes that each frame shows.
        shaping: float64 `(axes, frames)`: what errors of the last frames that showed an axis weigh; for encoders only.
        name: Fingerprint of what decoding depends on, 16 hexadecimal digits; empty for channels as they are.

    Raises:
        FsvError: Sizes disagree, or a value is not finite.
    """

    mean: np.ndarray
    forward: np.ndarray
    deviations: np.ndarray
    unit: float
    cycle: AxesCycle
    shaping: np.ndarray
    name: str = ""

    def __post_init__(self) -> None:
        axes = len(self.mean)
        if self.forward.shape != (axes, axes) or self.deviations.shape != (axes,):
            raise FsvError(f"latents_basis: {self.forward.shape} and {self.deviations.shape} do not fit {axes} axes.")
        if self.cycle.num_axes != axes or len(self.shaping) != axes:
            raise FsvError(f"latents_basis: {axes} axes, {self.cycle.num_axes} in turns, {len(self.shaping)} shaped.")
        values = (self.mean, self.forward, self.deviations, np.array(self.unit), self.shaping)
        if not all(np.isfinite(value).all() for value in values) or (self.deviations <= 0).any() or self.unit <= 0:
            raise FsvError("latents_basis: a value is not finite, or a deviation not positive.")

    @cached_property
    def inverse(self) -> np.ndarray:
        """float64 `(axes, axes)`."""
        return np.linalg.inv(self.forward)

    def to_axes(self, latents: np.ndarray, frame: int = 0) -> np.ndarray:
        """float64 `(axes shown, ...)` of latents `(channels, ...)` of a frame of a clip."""
        shown = self.cycle.shown(frame)
        centred = latents - self.mean[shown].reshape(-1, *[1] * (latents.ndim - 1))
        return np.tensordot(self.forward[shown][:, shown], centred, axes=1)

    def to_latents(self, values: np.ndarray, frame: int = 0) -> np.ndarray:
        """Inverse of `to_axes`."""
        shown = self.cycle.shown(frame)
        latents = np.tensordot(self.inverse[shown][:, shown], values, axes=1)
        return latents + self.mean[shown].reshape(-1, *[1] * (values.ndim - 1))

    @cached_property
    def error_gains(self) -> np.ndarray:
        """Squared error of pixels for each of axes, of errors that were shaped; `(axes,)`, 1 without shaping."""
        response = np.ones((len(self.mean), 1))
        for _ in range(_RESPONSE_FRAMES):
            last = response[:, ::-1][:, : self.shaping.shape[1]]
            new = -(self.shaping[:, : last.shape[1]] * last).sum(axis=1, keepdims=True)
            response = np.concatenate([response, new], axis=1)
        return 1 / np.square(response).sum(axis=1)

    def axes_that_show(self, share: float) -> int:
        """The fewest axes that show so much of the variance that pixels have by the latents, for a share in [0, 1]."""
        variances = np.sort(np.square(self.deviations) / self.cycle.periods)[::-1]
        return int(np.searchsorted(variances.cumsum(), share * variances.sum())) + 1

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
    def of_channels(cls, mean: Any, deviations: Any, cycle: AxesCycle | None = None) -> LatentsBasis:
        """Channels as they are, each with a step in proportion to its deviation.

        Args:
            mean: Of every channel.
            deviations: Of every channel.
            cycle: What the channels show; every group has the statistics of its channels.
        """
        cycle = cycle or AxesCycle(len(mean))
        mean, deviations = (
            np.asarray(values, dtype=np.float64)[cycle.channel_of_axis] for values in (mean, deviations)
        )
        axes = cycle.num_axes
        return cls(mean, np.diag(1 / deviations), np.ones(axes), _PLAIN_UNIT, cycle, np.zeros((axes, 0)))

    @classmethod
    def of_latents(cls, latents: np.ndarray, cycle: AxesCycle | None = None) -> LatentsBasis:
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
        return cls.of_channels(values.mean(axis=1).astype(np.float32), deviations.astype(np.float32), cycle)

    @property
    def channel_statistics(self) -> tuple[tuple[float, float], ...]:
        """Mean and deviation of every channel, of channels as they are; nothing of a model's axes."""
        if self.name:
            return ()
        channels = self.cycle.channels
        deviations = (1 / self.forward.diagonal()[:channels]).astype(np.float32)
        return tuple(zip(self.mean[:channels].tolist(), deviations.tolist(), strict=True))

    @classmethod
    def from_arrays(
        cls,
        mean: Any,
        forward: Any,
        deviations: Any,
        unit: float,
        cycle: AxesCycle | None = None,
        shaping: Any = None,
    ) -> LatentsBasis:
        """A basis of values rounded to float32, named by their fingerprint; no cycle or shaping by default."""
        cycle = cycle or AxesCycle(len(mean))
        arrays = [np.asarray(values, dtype="<f4") for values in (mean, forward, deviations, [unit])]
        digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays))
        if cycle.shared:
            digest.update(f"{cycle.shared} {cycle.length}".encode())
        mean, forward, deviations, units = (array.astype(np.float64) for array in arrays)
        shaping = np.zeros((len(mean), 0)) if shaping is None else np.asarray(shaping, dtype="<f4").astype(np.float64)
        return cls(mean, forward, deviations, float(units[0]), cycle, shaping, digest.hexdigest()[:16])

    def to_config(self) -> dict[str, Any]:
        """Plain values for a model's config, the arrays as base64 of little-endian float32."""
        blocks = [self.forward[np.ix_(group, group)].ravel() for group in self.cycle.groups]
        parts = {"mean": self.mean, "forward": np.concatenate(blocks), "deviations": self.deviations}
        if self.shaping.size:
            parts["shaping"] = self.shaping
        texts = {name: base64.b64encode(value.astype("<f4").tobytes()).decode() for name, value in parts.items()}
        turns = {"shared": self.cycle.shared, "length": self.cycle.length} if self.cycle.shared else {}
        return {"channels": self.cycle.channels, **turns, "unit": self.unit, **texts}

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
            arrays = {
                name: np.frombuffer(base64.b64decode(values.get(name, "")), "<f4")
                for name in ("mean", "forward", "deviations", "shaping")
            }
            cycle = AxesCycle(int(values["channels"]), int(values.get("shared", 0)), int(values.get("length", 1)))
            forward = _block_diagonal(arrays["forward"], cycle)
            shaping = arrays["shaping"].reshape(cycle.num_axes, -1)
            return cls.from_arrays(
                arrays["mean"], forward, arrays["deviations"], float(values["unit"]), cycle, shaping
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FsvError(f"{CONFIG_KEY}: the model's config holds no readable basis ({error}).") from error


def _block_diagonal(values: np.ndarray, cycle: AxesCycle) -> np.ndarray:
    """A matrix with a block for each group of axes, of the blocks' values one behind the other."""
    sizes = [len(group) ** 2 for group in cycle.groups]
    if len(values) != sum(sizes):
        raise ValueError(f"{len(values)} values for blocks of {sum(sizes)}")
    matrix = np.zeros((cycle.num_axes, cycle.num_axes))
    for group, block in zip(cycle.groups, np.split(values, np.cumsum(sizes)[:-1]), strict=True):
        matrix[np.ix_(group, group)] = block.reshape(len(group), -1)
    return matrix
