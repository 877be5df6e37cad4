r"""What this package's pipelines do differently from other diffusers pipelines when they are loaded and published.

This module imports nothing but diffusers, so that pipelines can build on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any


LIBRARY = "diffusers_vidvae"

#: Version of the layout of saved pipelines. A change that older versions of this package would misread raises it.
FORMAT_VERSION = 1

#: Key of `model_index.json` that holds the version. diffusers ignores keys that start with an underscore.
FORMAT_KEY = "_vidvae_format_version"

#: The classes that `model_index.json` may name.
PIPELINES = ("GapDiTPipeline", "VideoCompressionPipeline", "VideoReconstructionPipeline")
MODELS = ("AutoencoderKL3D", "FrameSelectVAE", "GapDiT")
SCHEDULERS = ("FlowMatchGapScheduler",)


class UnsupportedFormatError(ValueError):
    r"""A repository was written by a newer version of this package, in a layout that this version cannot read."""


def check_format(config: Mapping[str, Any]) -> None:
    r"""Checks that this version of the package can read a saved pipeline.

    Args:
        config: Contents of a `model_index.json`. Without a version key it is taken for the first version.

    Raises:
        UnsupportedFormatError: The pipeline was saved in a later format.
    """
    version = config.get(FORMAT_KEY, 1)
    if not isinstance(version, int) or version < 1:
        raise UnsupportedFormatError(
            f"`{FORMAT_KEY}` in model_index.json must be a positive integer, got {version!r}."
        )
    if version > FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"This {config.get('_class_name')} was saved in format version {version}, but the installed diffusers-vidvae"
            f" reads versions up to {FORMAT_VERSION}: upgrade it with `pip install -U diffusers-vidvae`."
        )


def use_installed_classes(config: dict[str, Any]) -> dict[str, Any]:
    r"""Points a `model_index.json` that names source files of its own at the installed classes of the same name.

    Args:
        config: Contents of a `model_index.json`, of this package's or of the standalone flavour.

    Returns:
        The same entries, with `["<module>", "<Class>"]` of this package's classes as `["diffusers_vidvae", "<Class>"]`.
    """
    return {key: _use_installed_class(key, value) for key, value in config.items()}


def _use_installed_class(key: str, value: Any) -> Any:
    if not (isinstance(value, (list, tuple)) and len(value) == 2):
        return value
    if key == "_class_name":
        return value[1] if value[1] in PIPELINES else value
    return [LIBRARY, value[1]] if value[1] in MODELS + SCHEDULERS else value


class VidVAEPipelineMixin:
    r"""First base of this package's pipelines: `class XPipeline(VidVAEPipelineMixin, DiffusionPipeline)`.

    - Repositories of the standalone flavour, whose source files travel with the weights, load into the installed
      classes, and none of their code runs.
    - A saved pipeline carries the version of its format, and a version that is too new is refused.
    - `push_to_hub` publishes a model card of this package.
    """

    @classmethod
    def _dict_from_json_file(cls, json_file: str | PathLike) -> dict[str, Any]:
        return use_installed_classes(super()._dict_from_json_file(json_file))  # type: ignore[misc]

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs):
        check_format(config_dict)
        return super().extract_init_dict(config_dict, **kwargs)  # type: ignore[misc]

    def save_config(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs) -> None:
        self.register_to_config(**{FORMAT_KEY: FORMAT_VERSION})  # type: ignore[attr-defined]
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)  # type: ignore[misc]

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        r"""Publishes the pipeline with a model card; see `diffusers_vidvae.hub.push_to_hub` for the arguments."""
        from .push import push_to_hub

        return push_to_hub(self, repo_id, **kwargs)
