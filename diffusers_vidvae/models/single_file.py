r"""Loading of checkpoints of other projects."""

from __future__ import annotations

import os
from typing import Any

import torch
from diffusers.loaders import FromOriginalModelMixin


class SingleFileMixin(FromOriginalModelMixin):
    r"""`from_single_file` of diffusers, which finds the configuration from the shapes of the weights."""

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | os.PathLike[str] | dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""Loads a checkpoint of another layout, such as the original project's `.pt` or safetensors file.

        Args:
            pretrained_model_link_or_path_or_dict: The file, its link on the Hub, or its weights.
            kwargs: Options of diffusers' `FromOriginalModelMixin.from_single_file`; without `config` the configuration
                is read off the weights' shapes.

        Raises:
            ValueError: The weights fit no configuration.
        """
        if kwargs.get("config") is None:
            kwargs.setdefault("original_config", {})
        return super().from_single_file(pretrained_model_link_or_path_or_dict, **kwargs)
