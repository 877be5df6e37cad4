r"""What a report measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from diffusers_vidvae.models.frame_selection import SELECTION_MODES

from .codecs import CODECS


RANDOM_MODE = "random"
MODES = (*SELECTION_MODES, RANDOM_MODE)
QUANTIZATIONS = ("bf16", "fp16", "fp32", "int8", "int4")

# Modes that choose the number of frames themselves.
UNCOUNTED_MODES = ("threshold", "bernoulli")


@dataclass(frozen=True)
class EvaluationSettings:
    r"""A sweep over frame budgets, selection modes and quantisations, and what it is compared with.

    Args:
        rates: Shares of the frames to keep, each in (0, 1], for models that select frames.
        modes: How they are chosen: those of `FrameSelectVAE.select_frames`, and `"random"`, any frames with equal
            probability. The first is the one that codecs and other models are compared with.
        quantizations: How latents are stored; the first is that of comparisons.
        qualities: Qualities of coded `.fsv` files of all frames, from 0 to 100, see
            `VideoCompressionPipeline.compress`; the first is the one that is shown.
        top_k: Frames of every window to keep by probability, shown beside each other.
        codecs: Video codecs that compress the same clips to as many bytes.
        size_mode: How frames fit the model, see `VideoCompressionPipeline.compress`.
        side: Shorter side that clips are scaled to before anything sees them; None keeps their size.
        fps: Frame rate that videos are resampled to; None keeps theirs.
        max_frames: Frames of every clip, from its start.
        num_draws: Masks that are drawn of every clip's keep probabilities, to measure their spread.
        chunk_frames: Frames that other autoencoders run at a time.
        seed: Seed of random selection and draws.

    Raises:
        ValueError: A value is not as described.
    """

    rates: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    modes: tuple[str, ...] = ("systematic", "uniform", "random")
    quantizations: tuple[str, ...] = ("bf16", "int8")
    qualities: tuple[float, ...] = (20.0, 5.0, 35.0, 50.0)
    top_k: tuple[int, ...] = (16, 8, 4, 1)
    codecs: tuple[str, ...] = tuple(CODECS)
    size_mode: str = "auto"
    side: int | None = None
    fps: Fraction | None = None
    max_frames: int = 96
    num_draws: int = 64
    chunk_frames: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("modes", MODES), ("quantizations", QUANTIZATIONS), ("codecs", tuple(CODECS))):
            unknown = [value for value in getattr(self, name) if value not in allowed]
            if unknown:
                raise ValueError(f"`{name}` must be among {allowed}, got {unknown}.")
        if not self.modes or self.modes[0] in UNCOUNTED_MODES:
            raise ValueError(f"`modes` must begin with one that keeps a given share of frames, got {self.modes}.")
        if not self.quantizations:
            raise ValueError("`quantizations` must name at least one, got none.")
        if not self.rates or not all(0 < rate <= 1 for rate in self.rates):
            raise ValueError(f"`rates` must be in (0, 1], at least one, got {self.rates}.")
        if not all(0 <= quality <= 100 for quality in self.qualities):
            raise ValueError(f"`qualities` must be in [0, 100], got {self.qualities}.")
        for name in ("max_frames", "num_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.side is not None and self.side < 16:
            raise ValueError(f"`side` must be at least 16 pixels, got {self.side}.")

    def to_json(self) -> dict[str, Any]:
        values = asdict(self) | {"fps": None if self.fps is None else str(self.fps)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
