"""What an optimiser step is made of: groups of parameters, their learning rates, clipping and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .config import RunConfig


def parameter_groups(objective: nn.Module, run: RunConfig) -> list[dict[str, Any]]:
    r"""Trainable parameters in groups of one learning rate and one weight decay, of which vectors get none.

    Besides what the optimiser reads, a group holds `"rate_factor"`, its part of the learning rate, `"warms_up"`,
    whether that part rises over `run.part_warmup`, and `"adversary"`, whether it belongs to the discriminator.

    Raises:
        ValueError: `run.part_rates` names a part without parameters to train.
    """
    groups: dict[tuple[str | None, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            adversary = name.startswith("discriminator.")
            part = None if adversary else part_of(name, run.part_rates)
            groups.setdefault((part, adversary, parameter.ndim > 1), []).append(parameter)
    for part in run.part_rates:
        if all(part != found for found, _, _ in groups):
            raise ValueError(f"`run.part_rates` names {part!r}, in which there is no parameter to train.")
    return [
        {
            "params": parameters,
            "weight_decay": run.weight_decay if is_matrix else 0.0,
            "rate_factor": run.discriminator_rate if adversary else run.part_rates.get(part or "", 1.0),
            "warms_up": part is not None,
            "adversary": adversary,
        }
        for (part, adversary, is_matrix), parameters in groups.items()
    ]


def part_of(parameter: str, parts: dict[str, float]) -> str | None:
    """The longest of the named parts that a parameter of the model, such as "model.encoder.weight", is in."""
    found = [part for part in parts if f"{parameter}.".startswith(f"model.{part}.")]
    return max(found, key=len, default=None)


def learning_rate(run: RunConfig, step: int, progress: float) -> float:
    """Linear warm-up by steps, then half a cosine by progress."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    factor = run.final_learning_rate + (1 - run.final_learning_rate) * cosine
    return run.learning_rate * factor * min(1.0, (step + 1) / max(run.warmup_steps, 1))


def set_learning_rates(optimizer: torch.optim.Optimizer, rate: float, run: RunConfig, progress: float) -> None:
    """Gives every group its part of a learning rate."""
    warmed_up = min(progress / run.part_warmup, 1.0) if run.part_warmup else 1.0
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"] * (warmed_up if group["warms_up"] else 1.0)


def clip_separately(optimizer: torch.optim.Optimizer, max_norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales down large gradients of the model and of its adversary, each by its own norm; returns both norms."""
    norms = []
    for adversary in (False, True):
        groups = [group for group in optimizer.param_groups if group["adversary"] == adversary]
        parameters = [parameter for group in groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        norms.append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    return norms[0], norms[1]


def averaged_parameters(objective: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of which a moving average is kept: all but those of the discriminator."""
    for name, parameter in objective.named_parameters():
        if not name.startswith("discriminator."):
            yield parameter


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.factor * gradients[0], None


def scale_input_gradient(module: nn.Module, factor: float) -> torch.utils.hooks.RemovableHandle:
    """Multiplies the gradient that reaches the first input of a module, whose values and own gradients stay."""

    def scale(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_ScaledGradient.apply(inputs[0], factor), *inputs[1:])

    return module.register_forward_pre_hook(scale)
