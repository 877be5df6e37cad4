"""Models to start a training from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from torch import nn

from diffusers_vidvae.assets import demo_model

from .checkpoint import checkpoint_folders
from .config import RunConfig, check_model_arguments


Model = TypeVar("Model", bound=ModelMixin)

PARTS_OF_PIPELINES = ("vae", "transformer", "autoencoder_kl_3d")


def starting_model(model_class: type[Model], run: RunConfig, arguments: Mapping[str, Any]) -> Model:
    """The pretrained model of a run, or a new one whose weights depend on the run's seed alone.

    Parts of it that are not to be trained have no gradient.

    Args:
        model_class: Its class.
        run: Names the pretrained model, if there is one.
        arguments: Arguments of a new model's constructor.

    Raises:
        ValueError: There is no such pretrained model, the constructor does not take one of the arguments, or the model
            has none of a trained part.
    """
    torch.manual_seed(run.seed)
    if run.pretrained_model:
        model = load_pretrained(model_class, run.pretrained_model)
    else:
        check_model_arguments(model_class, arguments)
        model = model_class(**arguments)
    if run.trained_parts:
        freeze_all_but(model, run.trained_parts)
    return model


def starts_as_linear_codec(run: RunConfig) -> bool:
    """Whether the weights of a linear codec are to be found; a run that is resumed has them in its checkpoints."""
    return run.init == "pca" and not checkpoint_folders(Path(run.output_dir))


def freeze_all_but(model: ModelMixin, parts: Sequence[str]) -> None:
    """Takes the gradient from all parameters but those of the named modules, such as "encoder.keep_head"."""
    modules = [find_part(model, part) for part in parts]
    model.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)


def find_part(model: ModelMixin, name: str) -> nn.Module:
    """A module of a model by its path."""
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        allowed = ", ".join(
            child for child, module in model.named_children() if any(True for _ in module.parameters())
        )
        raise ValueError(
            f"`run.trained_parts` must name modules of {type(model).__name__} ({allowed} or what is in them),"
            f" got {name!r}."
        ) from error


def load_pretrained(model_class: type[Model], name: str) -> Model:
    """Loads a model in float32, whatever it is stored in.

    Args:
        model_class: Its class.
        name: Folder or Hub id of the model, or of a pipeline that holds it; "demo" for the embedded model of that
            class.

    Raises:
        ValueError: There is no model of that class.
    """
    folder = demo_model() if name == "demo" else name
    for subfolder in (None, *PARTS_OF_PIPELINES):
        try:
            config = model_class.load_config(folder, subfolder=subfolder)
        except OSError:
            continue
        if config.get("_class_name") == model_class.__name__:
            return model_class.from_pretrained(folder, subfolder=subfolder)
    raise ValueError(f"{name}: holds no {model_class.__name__}, neither alone nor as part of a pipeline.")
