"""Random numbers and data order as functions of the seed and of a clip's place in the training.

Every clip that a training ever sees has a number, its draw. Which clip of the data set it is, how it is cropped and
the noise it gets depend on the seed and that number alone. So a training is the same for one process and for eight,
for any number of loading workers, and after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


def numpy_generator(*key: int) -> np.random.Generator:
    """A generator that depends on nothing but `key`."""
    return np.random.default_rng(key)


def torch_generators(seed: int, draws: torch.Tensor, stream: int = 0) -> list[torch.Generator]:
    """One CPU generator for every draw; streams of one draw are independent."""
    states = [np.random.SeedSequence((seed, int(draw), stream)).generate_state(1, np.uint64) for draw in draws]
    # torch takes seeds below 2**63
    return [torch.Generator().manual_seed(int(state[0] >> 1)) for state in states]


def normal_noise(shape: tuple[int, ...], generators: list[torch.Generator], like: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers `(len(generators), *shape)`, a generator for each row, on the device of `like`."""
    rows = [torch.randn(shape, generator=generator) for generator in generators]
    return torch.stack(rows).to(device=like.device, dtype=like.dtype)


def draw_latents(mean: torch.Tensor, std: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
    """Latents of Gaussian posteriors `(batch, channels, frames, height, width)`, a generator for each clip."""
    return mean + std * normal_noise(tuple(mean.shape[1:]), generators, mean)


def uniform_noise(shape: tuple[int, ...], generators: list[torch.Generator], like: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1), otherwise as `normal_noise`."""
    rows = [torch.rand(shape, generator=generator) for generator in generators]
    return torch.stack(rows).to(device=like.device, dtype=like.dtype)


class ShuffledOrder:
    """An endless order over `length` items: a new permutation for every epoch."""

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def __getitem__(self, draw: int) -> int:
        epoch, position = divmod(draw, self.length)
        if epoch != self._epoch:
            self._permutation = numpy_generator(self.seed, epoch, self.length).permutation(self.length)
            self._epoch = epoch
        return int(self._permutation[position])


class DrawSampler(Sampler[int]):
    """The draws of one process, from `first_batch` on, without end.

    Global batch n holds the draws n * batch_size * num_processes and following, each process taking its share in turn.
    """

    def __init__(self, batch_size: int, rank: int = 0, num_processes: int = 1, first_batch: int = 0):
        self.batch_size = batch_size
        self.rank = rank
        self.num_processes = num_processes
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[int]:
        batch = self.first_batch
        while True:
            start = (batch * self.num_processes + self.rank) * self.batch_size
            yield from range(start, start + self.batch_size)
            batch += 1


class BucketSampler(Sampler[int]):
    r"""Draws in batches of clips of like size, so that little of a batch is padding.

    So many global batches in a row are sorted together by size, cut anew and shuffled; which draws they hold stays the
    same, whatever the number of processes. Gradients of sorted batches have the same mean as others, and more noise.

    Args:
        sizes: Size of a draw.
        window: Global batches that are sorted together.
        seed: Seed of the order of batches.
        batch_size, rank, num_processes, first_batch: See `DrawSampler`.
    """

    def __init__(
        self,
        sizes: Callable[[int], int],
        window: int,
        seed: int,
        batch_size: int,
        rank: int = 0,
        num_processes: int = 1,
        first_batch: int = 0,
    ):
        self.sizes = sizes
        self.window = window
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.num_processes = num_processes
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[int]:
        number, skipped = divmod(self.first_batch, self.window)
        while True:
            for batch in self._batches(number)[skipped:]:
                yield from batch[self.rank :: self.num_processes].tolist()
            number, skipped = number + 1, 0

    def _batches(self, number: int) -> np.ndarray:
        """Global batches of a window, `(window, draws)`."""
        length = self.batch_size * self.num_processes
        draws = np.arange(number * self.window * length, (number + 1) * self.window * length)
        ordered = draws[np.argsort([self.sizes(int(draw)) for draw in draws], kind="stable")]
        order = numpy_generator(self.seed, number, self.window).permutation(self.window)
        return ordered.reshape(self.window, length)[order]
