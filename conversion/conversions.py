r"""How checkpoints of a source become diffusers models: known by their keys, planned whole, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusers_vidvae.errors import CheckpointError

from .checkpoints import Checkpoint, KeyPlan, PlannedTensor, Shape, check_plan


if TYPE_CHECKING:
    import torch
    from diffusers import ModelMixin


# What messages call the checkpoint of `from_single_file`, whose name is not passed on.
SINGLE_FILE = "the original checkpoint"


@dataclass(frozen=True)
class Plan:
    r"""What becomes of a checkpoint.

    Args:
        config: Arguments of the model's constructor.
        tensors: Every tensor that is converted, planned.
    """

    config: dict[str, Any]
    tensors: KeyPlan


def convert_planned_key(key: str, tensor: torch.Tensor, planned: PlannedTensor) -> dict[str, torch.Tensor]:
    r"""Splits a tensor over its targets along the first axis; with one target, renames and reshapes it."""
    parts = tensor.chunk(len(planned.targets))
    return {name: part.reshape(shape) for (name, shape), part in zip(planned.targets.items(), parts, strict=True)}


@dataclass(frozen=True)
class Conversion:
    r"""How checkpoints of one source become a model.

    Args:
        name: What to call the source.
        model: Name of the model's class in this package.
        is_source: Whether a checkpoint with tensors of these names and shapes is one of this source.
        infer_config: Reads the model's configuration off the shapes of a checkpoint's tensors; keywords replace
            entries that those do not tell.
        key_plan: Plans every key of a checkpoint from the configuration alone.
        convert_key: Makes the targets of a tensor, given its key, the tensor and its plan.
        ignored: Regular expression of keys that a checkpoint may have and that are not converted.
    """

    name: str
    model: str
    is_source: Callable[[Mapping[str, Shape]], bool]
    infer_config: Callable[..., dict[str, Any]]
    key_plan: Callable[[Mapping[str, Any]], KeyPlan]
    convert_key: Callable[[str, torch.Tensor, PlannedTensor], dict[str, torch.Tensor]] = convert_planned_key
    ignored: str | None = None

    def plan(self, checkpoint: Checkpoint, **overrides: Any) -> Plan:
        r"""Plans every tensor of a checkpoint; reads none of them.

        Args:
            checkpoint: The original weights.
            overrides: Entries of the configuration that weights do not tell.

        Raises:
            CheckpointError: Keys or shapes are not those of the architecture; lists all of them.
        """
        try:
            config = self.infer_config(checkpoint.shapes, **overrides)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.name}: {error}") from error
        tensors = self.key_plan(config)
        check_plan(checkpoint, tensors, self.ignored)
        return Plan(config, tensors)

    def convert(self, checkpoint: Checkpoint, dtype: torch.dtype | None = None, **overrides: Any) -> ModelMixin:
        r"""Makes the model of a checkpoint without ever holding a second copy of its weights.

        Args:
            checkpoint: The original weights.
            dtype: Type to store them in; by default that of the checkpoint.
            overrides: Entries of the configuration that weights do not tell.

        Raises:
            CheckpointError: Keys or shapes are not those of the architecture; lists all of them.
        """
        import torch

        import diffusers_vidvae

        plan = self.plan(checkpoint, **overrides)
        with torch.device("meta"):
            model = getattr(diffusers_vidvae, self.model)(**plan.config)
        tensors = self._converted(checkpoint, plan.tensors)
        state_dict = {name: tensor.to(dtype=dtype).contiguous().clone() for name, tensor in tensors}
        model.load_state_dict(state_dict, strict=True, assign=True)
        return model.eval()

    def _converted(self, checkpoint: Checkpoint, plan: KeyPlan) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields name and tensor of all the model's parameters, reading one tensor of the checkpoint at a time."""
        for key, planned in plan.items():
            converted = self.convert_key(key, checkpoint.read(key), planned)
            shapes = {name: tuple(tensor.shape) for name, tensor in converted.items()}
            if shapes != planned.targets:
                raise CheckpointError(f"{checkpoint.name}: {key} became {shapes}, planned was {planned.targets}.")
            yield from converted.items()

    def map_single_file_config(
        self, original_config: Mapping[str, Any], checkpoint: dict[str, torch.Tensor], **kwargs: Any
    ) -> dict[str, Any]:
        r"""Configuration for the model's `from_single_file`; entries of `original_config` win."""
        return self.plan(Checkpoint.from_state_dict(checkpoint, SINGLE_FILE), **original_config).config

    def map_single_file_checkpoint(
        self, checkpoint: dict[str, torch.Tensor], config: Mapping[str, Any], **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        r"""State dict for the model's `from_single_file`."""
        opened = Checkpoint.from_state_dict(checkpoint, SINGLE_FILE)
        known = {name: value for name, value in config.items() if not name.startswith("_")}
        return dict(self._converted(opened, self.plan(opened, **known).tensors))
