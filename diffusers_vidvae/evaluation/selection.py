r"""Which frames are kept: random masks, what fills the others without a model, and what keep probabilities are worth.

The figures of keep probabilities are those that floatingtrees/dynamic-frame-compression reports of its models
(`evaluate.py`, `bernoulli_compression_demos.py`, `mask_identity_prob.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


FILLS = ("repeat", "blend")
HISTOGRAM_BINS = 10


def random_mask(keep_mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A mask `(1, frames)` that keeps as many frames as another one, any of them with equal probability."""
    order = torch.randperm(keep_mask.shape[1], generator=generator)
    return keep_mask[:, order]


def fill_frames(frames: NDArray[np.uint8], keep_mask: NDArray[np.bool_], fill: str) -> NDArray[np.uint8]:
    """Replaces the frames `(T, H, W, 3)` that were not kept.

    Args:
        frames: All frames.
        keep_mask: `(T,)`, at least one True.
        fill: `"repeat"` shows the kept frame before, `"blend"` mixes those before and after by their distances. Before
            the first and behind the last kept frame both repeat it.
    """
    kept = np.flatnonzero(keep_mask)
    places = np.arange(len(frames))
    after = np.searchsorted(kept, places).clip(max=len(kept) - 1)
    before = (np.searchsorted(kept, places, side="right") - 1).clip(min=0)
    if fill == "repeat":
        return frames[kept[before]]
    distance = np.maximum(kept[after] - kept[before], 1)
    weight = ((places - kept[before]) / distance).clip(0, 1)[:, None, None, None]
    mixed = frames[kept[before]] * (1 - weight) + frames[kept[after]] * weight
    return mixed.round().astype(np.uint8)


def describe_probabilities(probs: NDArray[np.float64], num_draws: int, seed: int) -> dict[str, Any]:
    """What a clip's keep probabilities `(T,)` say about masks that are drawn from them, frame by frame.

    Returns:
        keep_rate_mean, keep_rate_std: Share of kept frames over `num_draws` masks, and its deviation.
        compression: Frames for each kept frame, of the mean rate.
        agreement_mean, agreement_median, agreement_min: Probability that two masks agree in a frame, over frames.
        log10_identical: Logarithm to base 10 of the probability that two masks agree in all frames.
        entropy: Bits of a frame's choice, mean over frames.
        mask_entropy: Bits of the mask; there are about 2 to the power of this many different masks.
        mean, median, std, min, max: Of the probabilities.
        histogram: Frames with a probability in each tenth of [0, 1].
    """
    probs = np.asarray(probs, dtype=np.float64)
    agreement, entropy = agreement_of(probs), entropy_of(probs)
    masks = np.random.default_rng(seed).random((num_draws, len(probs))) < probs
    rates = masks.mean(axis=1)
    return {
        "keep_rate_mean": float(rates.mean()),
        "keep_rate_std": float(rates.std()),
        "compression": float(1 / max(rates.mean(), 1 / len(probs))),
        "agreement_mean": float(agreement.mean()),
        "agreement_median": float(np.median(agreement)),
        "agreement_min": float(agreement.min()),
        "log10_identical": float(np.log10(agreement).sum()),
        "entropy": float(entropy.mean()),
        "mask_entropy": float(entropy.sum()),
        **_spread(probs),
        "histogram": _histogram(probs),
    }


def describe_folder(
    probs: Sequence[NDArray[np.float64]], described: Sequence[Mapping[str, Any]]
) -> dict[str, float | list[int]]:
    """What keep probabilities say about masks over all clips.

    Args:
        probs: Those of every clip, `(T,)`.
        described: What `describe_probabilities` says of each.

    Returns:
        num_clips, num_frames: What it is over.
        keep_rate_mean, keep_rate_std: Share of kept frames, and its deviation over clips and their masks.
        compression: Frames for each kept frame, of the mean rate.
        agreement_mean, agreement_median, agreement_min: Probability that two masks agree in a frame, over all frames.
        identical_mean, identical_median, identical_std, identical_min, identical_max: Probability that two masks of a
            clip agree in all frames, over clips.
        entropy: Bits of a frame's choice, mean over all frames.
        mask_entropy: Bits of a clip's mask, mean over clips.
        mean, median, std, min, max: Of all probabilities.
        histogram: Frames with a probability in each tenth of [0, 1].
    """
    frames = np.concatenate([np.asarray(clip, dtype=np.float64) for clip in probs])
    rates = np.array([clip["keep_rate_mean"] for clip in described])
    variances = np.array([clip["keep_rate_std"] for clip in described]) ** 2
    agreement = agreement_of(frames)
    identical = _spread(10 ** np.array([clip["log10_identical"] for clip in described]))
    return {
        "num_clips": len(described),
        "num_frames": len(frames),
        "keep_rate_mean": float(rates.mean()),
        "keep_rate_std": float(np.sqrt(variances.mean() + rates.var())),
        "compression": float(1 / max(rates.mean(), 1 / len(frames))),
        "agreement_mean": float(agreement.mean()),
        "agreement_median": float(np.median(agreement)),
        "agreement_min": float(agreement.min()),
        **{f"identical_{name}": value for name, value in identical.items()},
        "entropy": float(entropy_of(frames).mean()),
        "mask_entropy": float(np.mean([clip["mask_entropy"] for clip in described])),
        **_spread(frames),
        "histogram": _histogram(frames),
    }


def agreement_of(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that two masks agree in a frame, of every frame."""
    return probs**2 + (1 - probs) ** 2


def entropy_of(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits of the choice whether to keep a frame, of every frame."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.stack([-p * np.log2(p) for p in (probs, 1 - probs)])
    return np.nan_to_num(terms).sum(axis=0)


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(getattr(np, name)(values)) for name in ("mean", "median", "std", "min", "max")}


def _histogram(probs: NDArray[np.float64]) -> list[int]:
    return np.histogram(probs, bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist()
