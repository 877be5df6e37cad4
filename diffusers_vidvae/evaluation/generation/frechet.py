r"""How far the clips that a generator makes are from real ones, by features that need no download.

The distance is that of Fréchet between two Gaussians, as in https://arxiv.org/abs/1706.08500. The features are those
of a convolutional network with fixed random weights, averaged over space and time: such features tell textures,
colours and motion apart, and say little about what a clip shows (https://arxiv.org/abs/2002.09797). They are not those
of Inception or I3D, and their distances compare with no published ones; one's own network may take their place.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


FEATURE_SEED = 2024
# Output channels and (frames, rows, columns) strides of the layers.
LAYERS = ((16, (1, 2, 2)), (24, (2, 2, 2)), (32, (2, 2, 2)))


class RandomFeatures:
    """Means over space and time of every layer of a network of fixed random 3D convolutions, 72 numbers a clip."""

    name = "fixed random 3D convolutions, 72 features"

    def __init__(self, device: torch.device | str = "cpu"):
        rng = np.random.default_rng(FEATURE_SEED)
        channels = [3, *(width for width, _ in LAYERS)]
        self.weights = []
        for inputs, outputs in zip(channels[:-1], channels[1:], strict=True):
            weight = rng.standard_normal((outputs, inputs, 3, 3, 3)) / np.sqrt(27 * inputs)
            self.weights.append(torch.tensor(weight, dtype=torch.float32, device=device))

    @torch.no_grad()
    def __call__(self, sample: torch.Tensor) -> torch.Tensor:
        """Features `(N, 72)`, float64, of pixels `(N, 3, T, H, W)` in [-1, 1]."""
        states, features = sample.to(self.weights[0].device), []
        for weight, (_, stride) in zip(self.weights, LAYERS, strict=True):
            padded = F.pad(states, (1, 1) * 3, mode="replicate")
            states = F.leaky_relu(F.conv3d(padded, weight, stride=stride), 0.2)
            features.append(states.mean(dim=(2, 3, 4)))
        return torch.cat(features, dim=1).double().cpu()


class FileFeatures:
    r"""A TorchScript network from a file, such as an Inception or I3D network.

    It takes pixels `(N, 3, T, H, W)` in [-1, 1] and gives `(N, features)`.

    Raises:
        ValueError: The file is none.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu"):
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{path}: is no TorchScript network.") from error
        self.path, self.device = path, device
        self.name = path.name

    @torch.no_grad()
    def __call__(self, sample: torch.Tensor) -> torch.Tensor:
        try:
            features = self.network(sample.to(self.device))
        except RuntimeError as error:
            raise ValueError(
                f"{self.path}: does not take pixels (batch, 3, frames, height, width) = {tuple(sample.shape)}."
            ) from error
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(sample):
            shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(f"{self.path}: must give features (batch, features), gave {shape}.")
        return features.double().cpu()


Features = RandomFeatures | FileFeatures


class FeatureMoments(NamedTuple):
    """Mean `(D,)` and covariance `(D, D)` of features."""

    mean: torch.Tensor
    covariance: torch.Tensor


def feature_moments(features: Features, batches: Iterable[torch.Tensor]) -> FeatureMoments:
    """Moments over batches of clips `(N, 3, T, H, W)` in [-1, 1], rounded to 256 levels as files of them are."""
    found = torch.cat([features(((batch + 1) * 127.5).round() / 127.5 - 1) for batch in batches])
    return FeatureMoments(found.mean(dim=0), found.T.cov())


def frechet_distance(one: FeatureMoments, other: FeatureMoments) -> float:
    """Squared distance between Gaussians with these moments; 0 for equal ones."""
    root = _square_root(one.covariance)
    mixed = torch.linalg.eigvalsh(root @ other.covariance @ root).clamp(min=0).sqrt().sum()
    spread = one.covariance.trace() + other.covariance.trace() - 2 * mixed
    return float((one.mean - other.mean).square().sum() + spread)


def _square_root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
