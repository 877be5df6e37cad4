r"""Reading checkpoints of other projects, and turning them into diffusers models by a plan without leftovers."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open


Shape = tuple[int, ...]
Model = TypeVar("Model", bound=ModelMixin)

# What messages call the checkpoint of `from_single_file`, whose name is not passed on.
SINGLE_FILE = "the original checkpoint"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or whose keys and shapes are not those of the model."""


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
            file = safe_open(path, framework="pt")
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}.") from error
        return cls(str(path), shapes, file.get_tensor)

    @classmethod
    def _open_pickled(cls, path: Path) -> Checkpoint:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path} is not a readable state dict of tensors: {reason}") from error
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


def plan_layer(plan: KeyPlan, source: str, target: str, weight_shape: Shape, bias_size: int | None = None):
    r"""Plans weight and bias of a layer that is only renamed; the bias has the weight's first size by default."""
    for name, shape in (("weight", weight_shape), ("bias", (bias_size or weight_shape[0],))):
        plan[f"{source}.{name}"] = PlannedTensor(shape, {f"{target}.{name}": shape})


def check_plan(checkpoint: Checkpoint, plan: KeyPlan, ignored: str | None = None):
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


def convert_planned_key(key: str, tensor: torch.Tensor, planned: PlannedTensor) -> dict[str, torch.Tensor]:
    r"""Splits a tensor over its targets along the first axis; with one target, renames and reshapes it."""
    parts = tensor.chunk(len(planned.targets))
    return {name: part.reshape(shape) for (name, shape), part in zip(planned.targets.items(), parts, strict=True)}


def build_model(
    model_class: type[Model],
    config: dict[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype | None = None,
) -> Model:
    r"""Makes a model of converted tensors without ever holding a second copy of its weights.

    Args:
        model_class: Class of the model.
        config: Arguments of its constructor.
        tensors: Name and tensor of all its parameters.
        dtype: Type to store the weights in; by default that of the checkpoint.
    """
    with torch.device("meta"):
        model = model_class(**config)
    state_dict = {name: tensor.to(dtype=dtype).contiguous().clone() for name, tensor in tensors}
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model.eval()


@dataclass(frozen=True)
class Conversion(Generic[Model]):
    r"""How checkpoints of one source become a model.

    Args:
        model_class: Class of the model.
        infer_config: Reads the model's configuration off the shapes of a checkpoint's tensors; keywords replace
            entries that those do not tell.
        key_plan: Plans every key of a checkpoint from the configuration alone.
        convert_key: Makes the targets of a tensor, given its key, the tensor and its plan.
        ignored: Regular expression of keys that a checkpoint may have and that are not converted.
    """

    model_class: type[Model]
    infer_config: Callable[..., dict[str, Any]]
    key_plan: Callable[[Mapping[str, Any]], KeyPlan]
    convert_key: Callable[[str, torch.Tensor, PlannedTensor], dict[str, torch.Tensor]] = convert_planned_key
    ignored: str | None = None

    def convert(self, checkpoint: Checkpoint, dtype: torch.dtype | None = None, **overrides: Any) -> Model:
        r"""Makes the model of a checkpoint.

        Args:
            checkpoint: The original weights.
            dtype: Type to store them in; by default that of the checkpoint.
            overrides: Entries of the configuration that weights do not tell.

        Raises:
            CheckpointError: Keys or shapes are not those of the architecture; lists all of them.
        """
        config = self._config(checkpoint, overrides)
        return build_model(self.model_class, config, self.convert_tensors(checkpoint, config), dtype)

    def convert_tensors(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
        r"""Yields name and tensor of all the model's parameters, reading one tensor of the checkpoint at a time."""
        plan = self.key_plan(config)
        check_plan(checkpoint, plan, self.ignored)
        for key, planned in plan.items():
            converted = self.convert_key(key, checkpoint.read(key), planned)
            shapes = {name: tuple(tensor.shape) for name, tensor in converted.items()}
            if shapes != planned.targets:
                raise CheckpointError(f"{checkpoint.name}: {key} became {shapes}, planned was {planned.targets}.")
            yield from converted.items()

    def map_single_file_config(self, original_config: Mapping[str, Any], checkpoint: dict, **kwargs) -> dict[str, Any]:
        r"""Configuration for the model's `from_single_file`; entries of `original_config` win."""
        return dict(self._config(Checkpoint.from_state_dict(checkpoint, SINGLE_FILE), original_config))

    def map_single_file_checkpoint(
        self, checkpoint: dict, config: Mapping[str, Any], **kwargs
    ) -> dict[str, torch.Tensor]:
        r"""State dict for the model's `from_single_file`."""
        opened = Checkpoint.from_state_dict(checkpoint, SINGLE_FILE)
        known = {name: value for name, value in config.items() if not name.startswith("_")}
        return dict(self.convert_tensors(opened, self._config(opened, known)))

    def _config(self, checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.infer_config(checkpoint.shapes, **overrides)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.name}: {error}") from error


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
