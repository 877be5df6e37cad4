"""Models to start a training from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin

from diffusers_vidvae.assets import demo_model

from .config import RunConfig, check_model_arguments


Model = TypeVar("Model", bound=ModelMixin)

PARTS_OF_PIPELINES = ("vae", "transformer", "autoencoder_kl_3d")


def starting_model(model_class: type[Model], run: RunConfig, arguments: Mapping[str, Any]) -> Model:
    """The pretrained model of a run, or a new one whose weights depend on the run's seed alone.

    Args:
        model_class: Its class.
        run: Names the pretrained model, if there is one.
        arguments: Arguments of a new model's constructor.

    Raises:
        ValueError: There is no such pretrained model, or the constructor does not take one of the arguments.
    """
    torch.manual_seed(run.seed)
    if run.pretrained_model:
        return load_pretrained(model_class, run.pretrained_model)
    check_model_arguments(model_class, arguments)
    return model_class(**arguments)


def load_pretrained(model_class: type[Model], name: str) -> Model:
    """Loads a model in float32, whatever it is stored in.

    Args:
        model_class: Its class.
        name: Folder or Hub id of the model, or of a pipeline that holds it; "demo" for the embedded pipeline.

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
