r"""What is measured of latents, and how the probe is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GenerationSettings:
    r"""Windows of clips, and a probe that is trained on the latents of each model alike.

    Args:
        num_frames: Frames of a window.
        side: Height and width of a window in pixels. Models that take one size only make it larger for all.
        train_windows: Windows that the probe learns.
        held_out_windows: Windows that it is tested on, and clips that it makes; at least 8.
        steps: Optimiser steps of the probe.
        batch_size: Windows of a step.
        seeds: Seeds of the probe's weights, order and noise; one training each.
        sampling_steps: Euler steps of a sample.
        seed: Seed of windows.

    Raises:
        ValueError: A value is below what is needed.
    """

    num_frames: int = 16
    side: int = 64
    train_windows: int = 512
    held_out_windows: int = 128
    steps: int = 500
    batch_size: int = 16
    seeds: tuple[int, ...] = (0, 1, 2)
    sampling_steps: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"num_frames": 1, "side": 16, "train_windows": 8, "held_out_windows": 8, "steps": 1, "batch_size": 1}
        for name, number in (least | {"sampling_steps": 1}).items():
            if getattr(self, name) < number:
                raise ValueError(f"`{name}` must be at least {number}, got {getattr(self, name)}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must name at least one, none of them twice, got {self.seeds}.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"seeds": list(self.seeds)}
