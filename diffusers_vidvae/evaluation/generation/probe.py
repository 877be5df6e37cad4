r"""The probe: a small fixed transformer that learns the flow from noise to the latents of one model.

A noisy latent is `(1 - sigma) * data + sigma * noise`, of data with mean 0 and deviation 1 in every channel, and the
velocity is `noise - data` (https://arxiv.org/abs/2210.02747). Of white noise in the place of data the best estimate of
the velocity is known; the network gives what is missing to it, in units of its error (the preconditioning of
https://arxiv.org/abs/2206.00364). So an error of 1 says that latents are as hard as noise, at every level, and a probe
starts there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

from diffusers_vidvae.training.draws import ShuffledOrder, normal_noise, torch_generators

from .settings import GenerationSettings


WIDTH, BLOCKS, HEADS = 128, 4, 4
# Pixels that a token stands for, in frames, rows and columns, so that all models have as many tokens.
TOKEN_PIXELS = (4, 8, 8)
LEARNING_RATE, WARMUP_STEPS = 1e-3, 50
NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
NOISE_STREAM, LEVEL_STREAM, SAMPLE_STREAM = 21, 22, 23


def token_patch(latent_shape: Sequence[int], size: Sequence[int]) -> tuple[int, int, int]:
    r"""Latents `(frames, rows, columns)` of a token: the most that stand for `TOKEN_PIXELS` and divide the latents."""
    frames, rows, columns = (
        _largest_divisor(length, max(1, pixels * length // whole))
        for length, pixels, whole in zip(latent_shape, TOKEN_PIXELS, size, strict=True)
    )
    return frames, rows, columns


def _largest_divisor(length: int, most: int) -> int:
    return next(number for number in range(min(most, length), 0, -1) if length % number == 0)


class ProbeBlock(nn.Module):
    """Attention over all tokens and an MLP, both modulated by the noise level (https://arxiv.org/abs/2212.09748)."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(level)[:, None].chunk(6, dim=-1)
        states = _modulated(tokens, shift, scale)
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(states).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + gate * self.out(attended)
        return tokens + mlp_gate * self.mlp(_modulated(tokens, mlp_shift, mlp_scale))


def _modulated(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(tokens, (WIDTH,)) * (1 + scale) + shift


class Probe(nn.Module):
    r"""Velocity of noisy latents.

    Args:
        latent_shape: `(channels, frames, rows, columns)` of latents.
        patch: Latents of a token, which divide these.
    """

    def __init__(self, latent_shape: Sequence[int], patch: Sequence[int]):
        super().__init__()
        channels, *lengths = latent_shape
        self.patch = tuple(patch)
        self.grid = tuple(length // size for length, size in zip(lengths, patch, strict=True))
        values = channels * patch[0] * patch[1] * patch[2]
        self.embed, self.head = nn.Linear(values, WIDTH), nn.Linear(WIDTH, values)
        self.positions = nn.Parameter(0.02 * torch.randn(self.num_tokens, WIDTH))
        self.frequencies = Timesteps(WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.level = TimestepEmbedding(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(ProbeBlock() for _ in range(BLOCKS))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What is missing to the velocity of white data, in units of its deviation.

        Args:
            noisy: `(batch, channels, frames, rows, columns)`.
            sigma: Noise levels in [0, 1], `(batch,)`.
        """
        level = F.silu(self.level(self.frequencies(1000 * sigma)))
        tokens = self.embed(self._to_tokens(noisy)) + self.positions
        for block in self.blocks:
            tokens = block(tokens, level)
        return self._to_latents(self.head(F.layer_norm(tokens, (WIDTH,))))

    def velocity(self, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Estimate of `noise - data`."""
        level = sigma[:, None, None, None, None]
        energy = energy_of(level)
        return (2 * level - 1) / energy * noisy + self(noisy, sigma) / energy.sqrt()

    def _to_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        (t, h, w), (p, q, r) = self.grid, self.patch
        parts = latents.reshape(len(latents), -1, t, p, h, q, w, r)
        return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(len(latents), self.num_tokens, -1)

    def _to_latents(self, tokens: torch.Tensor) -> torch.Tensor:
        (t, h, w), (p, q, r) = self.grid, self.patch
        parts = tokens.reshape(len(tokens), t, h, w, -1, p, q, r).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return parts.reshape(len(tokens), -1, t * p, h * q, w * r)


def energy_of(sigma: torch.Tensor) -> torch.Tensor:
    """Mean square of noisy latents; one over it is the least error of the velocity of white data."""
    return (1 - sigma).square() + sigma.square()


def relative_errors(probe: Probe, data: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Squared error of the velocity of each latent, 1 for that of white data, `(batch,)`."""
    level = sigma[:, None, None, None, None]
    velocity = probe.velocity((1 - level) * data + level * noise, sigma)
    return ((velocity - (noise - data)).square() * energy_of(level)).flatten(1).mean(dim=1)


def train_probe(data: torch.Tensor, patch: Sequence[int], settings: GenerationSettings, seed: int) -> Probe:
    r"""A probe after its steps; AdamW with a short warm-up, and a rate that falls to 0 as a cosine.

    Args:
        data: Normalised latents to learn, `(N, C, t, h, w)`, on the device to train on.
        patch: Latents of a token.
        settings: Steps and batches.
        seed: Seed of weights, order, noise and levels, the same windows and levels for every model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe(data.shape[1:], patch).to(data.device).train()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.99))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    order = ShuffledOrder(len(data), seed)
    for step in range(settings.steps):
        draws = torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
        batch = data[[order[int(draw)] for draw in draws]]
        noise = normal_noise(tuple(data.shape[1:]), torch_generators(seed, draws, NOISE_STREAM), batch)
        loss = relative_errors(probe, batch, noise, _spread_levels(step, settings.batch_size, seed, batch)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
        optimizer.step()
        rates.step()
    return probe.eval()


def _rate(step: int, num_steps: int) -> float:
    warmup = min(WARMUP_STEPS, max(1, num_steps // 10))
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def _spread_levels(step: int, batch_size: int, seed: int, like: torch.Tensor) -> torch.Tensor:
    """One noise level of every batch-th part of [0, 1], `(batch_size,)`."""
    (generator,) = torch_generators(seed, torch.tensor([step]), LEVEL_STREAM)
    return ((torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size).to(like)


@torch.no_grad()
def held_out_errors(probe: Probe, data: torch.Tensor, batch_size: int) -> dict[str, float]:
    """Error at every one of `NOISE_LEVELS` on latents that were not learned, 1 for that of white data."""
    errors = {}
    for level in NOISE_LEVELS:
        total = 0.0
        for draws in torch.arange(len(data)).split(batch_size):
            # The same noise for every seed, model and level.
            noise = normal_noise(tuple(data.shape[1:]), torch_generators(0, draws, NOISE_STREAM), data)
            sigma = torch.full((len(draws),), level, device=data.device)
            total += float(relative_errors(probe, data[draws], noise, sigma).sum())
        errors[f"{level:g}"] = total / len(data)
    return errors


@torch.no_grad()
def sample_latents(probe: Probe, like: torch.Tensor, num_steps: int, batch_size: int, seed: int) -> torch.Tensor:
    """Normalised latents made from noise by Euler's method in equal steps, as many and as large as `like`."""
    samples = []
    for draws in torch.arange(len(like)).split(batch_size):
        state = normal_noise(tuple(like.shape[1:]), torch_generators(seed, draws, SAMPLE_STREAM), like)
        for step in range(num_steps):
            sigma = torch.full((len(draws),), 1 - step / num_steps, device=like.device)
            state = state - probe.velocity(state, sigma) / num_steps
        samples.append(state)
    return torch.cat(samples)
