"""Axes of latents of which some take turns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .errors import FsvError


MAX_CYCLE_LENGTH = 16


@dataclass(frozen=True)
class AxesCycle:
    """What the channels of a frame's latents show: always the same, or, the last ones, one of several groups in turn.

    `FrameSelectVAE` has such models: frame t of a clip shows group `t % length` in its last channels. Every channel of
    every group is an axis of its own; the axes that all frames show come first, then group after group.

    Attributes:
        channels: Channels of a frame's latents.
        shared: Last channels, which the groups share; 0 for none.
        length: Number of groups, in frames; 1 without shared channels.

    Raises:
        FsvError: The numbers contradict each other.
    """

    channels: int
    shared: int = 0
    length: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.shared <= self.channels or (self.shared > 0) != (self.length > 1):
            raise FsvError(f"cycle: {self.length} groups of {self.shared} in {self.channels} channels.")
        if not 1 <= self.length <= MAX_CYCLE_LENGTH:
            raise FsvError(f"cycle: {self.length} groups, of 1 to {MAX_CYCLE_LENGTH}.")

    @property
    def num_axes(self) -> int:
        return self.channels + (self.length - 1) * self.shared

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """Axes that every frame shows, and then those of every group."""
        constant = self.channels - self.shared
        turns: Iterable[np.ndarray] = ()
        if self.shared:
            turns = np.arange(constant, self.num_axes).reshape(self.length, -1)
        return [np.arange(constant), *turns]

    def shown(self, frame: int) -> np.ndarray | slice:
        """The axes that a frame of a clip shows, one for each of its channels."""
        if self.length == 1:
            return slice(None)
        return np.concatenate([self.groups[0], self.groups[1 + frame % self.length]])

    @cached_property
    def channel_of_axis(self) -> np.ndarray:
        """The channel that shows each axis, `(axes,)`."""
        constant = self.channels - self.shared
        axes = np.arange(self.num_axes)
        return np.where(axes < constant, axes, constant + (axes - constant) % max(self.shared, 1))

    @cached_property
    def periods(self) -> np.ndarray:
        """Frames from one that shows an axis to the next, `(axes,)`."""
        periods = np.ones(self.num_axes, dtype=np.int64)
        periods[self.channels - self.shared :] = self.length
        return periods
