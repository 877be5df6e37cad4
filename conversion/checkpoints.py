r"""Checkpoints of other projects, tensor by tensor, and plans of what becomes of each without leftovers."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from diffusers_vidvae.errors import CheckpointError


if TYPE_CHECKING:
    import torch


Shape = tuple[int, ...]


@dataclass
class Checkpoint:
    r"""Names and shapes of a checkpoint's tensors, which are read one at a time.

    Args:
        name: What to call the checkpoint in messages, usually its path.
        shapes: Shape of every tensor.
        read: Gives the tensor of a key.
    """

    name: str
    shapes: dict[str, Shape]
    read: Callable[[str], torch.Tensor] = field(repr=False)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, torch.Tensor], name: str = "the state dict") -> Checkpoint:
        shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
        return cls(name, shapes, state_dict.__getitem__)

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        r"""Opens a safetensors file, or a state dict written by `torch.save`, which is read as data only.

        Raises:
            CheckpointError: The file is neither, is damaged, or holds something else than tensors.
            FileNotFoundError: There is no such file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no checkpoint file {path}.")
        if path.suffix == ".safetensors":
            return cls._open_safetensors(path)
        return cls._open_pickled(path)

    @classmethod
    def _open_safetensors(cls, path: Path) -> Checkpoint:
        try:
            # Names and shapes need no torch.
            header = safe_open(path, framework="np")
            shapes = {key: tuple(header.get_slice(key).get_shape()) for key in header.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}.") from error
        file = cache(lambda: safe_open(path, framework="pt"))
        return cls(str(path), shapes, lambda key: file().get_tensor(key))

    @classmethod
    def _open_pickled(cls, path: Path) -> Checkpoint:
        import torch

        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path} is not a readable state dict of tensors: {reason.rstrip('.')}.") from error
        if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise CheckpointError(f"{path} holds a {type(content).__name__} that is not a state dict of tensors.")
        return cls.from_state_dict(content, str(path))


@dataclass(frozen=True)
class PlannedTensor:
    r"""What becomes of one tensor of a checkpoint.

    Args:
        shape: Shape it must have.
        targets: Name and shape of every tensor made of it.
    """

    shape: Shape
    targets: dict[str, Shape]


KeyPlan = dict[str, PlannedTensor]


def plan_layer(plan: KeyPlan, source: str, target: str, weight_shape: Shape, bias_size: int | None = None) -> None:
    r"""Plans weight and bias of a layer that is only renamed; the bias has the weight's first size by default."""
    for name, shape in (("weight", weight_shape), ("bias", (bias_size or weight_shape[0],))):
        plan[f"{source}.{name}"] = PlannedTensor(shape, {f"{target}.{name}": shape})


def check_plan(checkpoint: Checkpoint, plan: KeyPlan, ignored: str | None = None) -> None:
    r"""Compares a checkpoint with a plan.

    Args:
        checkpoint: The checkpoint.
        plan: Its tensors, planned.
        ignored: Regular expression of keys that may be there and are not converted.

    Raises:
        CheckpointError: Lists every missing, unexpected and mis-shaped key.
    """
    found = {key: shape for key, shape in checkpoint.shapes.items() if not (ignored and re.search(ignored, key))}
    problems = [f"missing {key} {plan[key].shape}" for key in sorted(plan.keys() - found.keys())]
    problems += [f"unexpected {key} {found[key]}" for key in sorted(found.keys() - plan.keys())]
    problems += [
        f"mis-shaped {key}: {found[key]}, expected {plan[key].shape}"
        for key in sorted(plan.keys() & found.keys())
        if found[key] != plan[key].shape
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint.name} does not fit, {len(problems)} of {len(plan)} planned keys differ:\n  "
            + "\n  ".join(problems)
        )


def describe_plan(checkpoint: Checkpoint, plan: KeyPlan) -> str:
    r"""A line for every tensor: its key and shape, and the names and shapes of what it becomes."""
    lines = [
        f"{key} {planned.shape} -> " + ", ".join(f"{name} {shape}" for name, shape in planned.targets.items())
        for key, planned in plan.items()
    ]
    ignored = sorted(checkpoint.shapes.keys() - plan.keys())
    return "\n".join(lines + [f"{key} {checkpoint.shapes[key]} -> not needed" for key in ignored])


def count_layers(shapes: Mapping[str, Shape], prefix: str) -> int:
    r"""Number of different indices `i` in keys that begin with `prefix + "i."`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for key in shapes if (match := pattern.match(key))})
