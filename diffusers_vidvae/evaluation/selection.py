r"""Which frames are kept: random masks, what fills the others without a model, and what keep probabilities are worth.

The figures of keep probabilities are those that floatingtrees/dynamic-frame-compression reports of its models
(`evaluate.py`, `bernoulli_compression_demos.py`, `mask_identity_prob.py`).
"""

from __future__ import annotations

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
    masks = np.random.default_rng(seed).random((num_draws, len(probs))) < probs
    rates = masks.mean(axis=1)
    agreement = probs**2 + (1 - probs) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.stack([-p * np.log2(p) for p in (probs, 1 - probs)])
    entropy = np.nan_to_num(terms).sum(axis=0)
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
        **{name: float(getattr(np, name)(probs)) for name in ("mean", "median", "std", "min", "max")},
        "histogram": np.histogram(probs, bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist(),
    }
