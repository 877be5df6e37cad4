r"""LoRAs of a `GapDiT` and of the text encoder beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from diffusers.utils import get_adapter_name, get_peft_kwargs, scale_lora_layers
from huggingface_hub.utils import validate_hf_hub_args


HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


class GapDiTLoraLoaderMixin(LoraBaseMixin):
    r"""Loads, saves and merges LoRAs of a pipeline's `transformer` and `text_encoder`.

    Files are laid out as those of other pipelines of diffusers: PEFT's names behind `transformer.` and
    `text_encoder.`, and the adapters' configurations as metadata. Only safetensors files are read.
    """

    _lora_loadable_modules = ["transformer", "text_encoder"]
    transformer_name = "transformer"
    text_encoder_name = "text_encoder"

    @classmethod
    @validate_hf_hub_args
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, torch.Tensor],
        weight_name: str | None = None,
        return_lora_metadata: bool = False,
        **hub_options: Any,
    ) -> Any:
        r"""Reads LoRA weights.

        Args:
            pretrained_model_name_or_path_or_dict: A file, a folder, a Hub id, or the weights themselves.
            weight_name: Name of the file in a folder or on the Hub.
            return_lora_metadata: Whether to return the adapters' configurations, too.
            hub_options: `cache_dir`, `force_download`, `proxies`, `local_files_only`, `token`, `revision` and
                `subfolder`, as `from_pretrained` takes them.

        Returns:
            Weights by name, or these and the configurations, or None for these where the file has none.

        Raises:
            ValueError: An option is unknown, or a weight is not one of a LoRA of the transformer or text encoder.
        """
        unknown = sorted(set(hub_options) - set(HUB_OPTIONS))
        if unknown:
            raise ValueError(f"Options must be among {HUB_OPTIONS}, got {unknown}.")
        state_dict, metadata = _fetch_state_dict(
            pretrained_model_name_or_path_or_dict,
            weight_name=weight_name,
            use_safetensors=True,
            allow_pickle=False,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            **dict.fromkeys(HUB_OPTIONS) | hub_options,
        )
        prefixes = tuple(f"{name}." for name in cls._lora_loadable_modules)
        strange = [name for name in state_dict if "lora" not in name or not name.startswith(prefixes)]
        if strange or not state_dict:
            raise ValueError(
                f"LoRA weights must be named {' or '.join(f'{prefix}*.lora_*' for prefix in prefixes)}, got"
                f" {strange[:3] or 'none'}."
            )
        return (state_dict, metadata) if return_lora_metadata else state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **kwargs: Any,
    ) -> None:
        r"""Loads LoRAs into the transformer and the text encoder, whichever the weights are of.

        Args:
            pretrained_model_name_or_path_or_dict: As `lora_state_dict` takes it.
            adapter_name: Name to give the adapter; by default `"default_{i}"`.
            hotswap: Whether to put the weights in the place of an adapter's of that name, so that a compiled
                model need not be compiled anew.
            low_cpu_mem_usage: Whether to load without initialising the adapter's weights first.
            kwargs: `weight_name` and the options of `lora_state_dict`.

        Raises:
            ValueError: The weights are not of LoRAs, or of a component that the pipeline does not have.
        """
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        options: dict[str, Any] = {
            "adapter_name": adapter_name,
            "_pipeline": self,
            "low_cpu_mem_usage": low_cpu_mem_usage,
            "hotswap": hotswap,
        }
        for name, load in (
            (self.transformer_name, self.load_lora_into_transformer),
            (self.text_encoder_name, self.load_lora_into_text_encoder),
        ):
            if not _below(state_dict, name):
                continue
            if getattr(self, name, None) is None:
                raise ValueError(f"The LoRA has weights for the `{name}`, which this pipeline does not have.")
            load(state_dict, getattr(self, name), metadata=metadata, **options)

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: dict[str, torch.Tensor],
        transformer: Any,
        metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        r"""Loads those of the weights that are named `transformer.*`, see `load_lora_weights`."""
        transformer.load_lora_adapter(state_dict, prefix=cls.transformer_name, metadata=metadata, **options)

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: dict[str, torch.Tensor],
        text_encoder: Any,
        metadata: dict[str, Any] | None = None,
        adapter_name: str | None = None,
        low_cpu_mem_usage: bool = True,
        hotswap: bool = False,
        _pipeline: Any = None,
    ) -> None:
        r"""Loads those of the weights that are named `text_encoder.*`, see `load_lora_weights`."""
        # transformers loads them itself: diffusers knows the names of CLIP's layers alone, not those of T5.
        from peft import LoraConfig

        weights = _below(state_dict, cls.text_encoder_name)
        config = _below(metadata or {}, cls.text_encoder_name)
        if not config:
            ranks = {name: weight.shape[1] for name, weight in weights.items() if name.endswith("lora_B.weight")}
            config = get_peft_kwargs(ranks, None, weights, is_unet=False)
        with _without_offloading(_pipeline):
            text_encoder.load_adapter(
                adapter_name=adapter_name or get_adapter_name(text_encoder),
                adapter_state_dict=weights,
                peft_config=LoraConfig(**config),
                low_cpu_mem_usage=low_cpu_mem_usage,
                hotswap=hotswap,
            )
            text_encoder.to(device=text_encoder.device, dtype=text_encoder.dtype)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        transformer_lora_layers: dict[str, torch.nn.Module | torch.Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
        text_encoder_lora_layers: dict[str, torch.nn.Module | torch.Tensor] | None = None,
        text_encoder_lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        r"""Writes LoRAs to a file that `load_lora_weights` reads.

        Args:
            save_directory: The folder to write to.
            transformer_lora_layers: Those of the transformer, `peft.get_peft_model_state_dict(pipe.transformer)`.
            is_main_process: Whether this process of a distributed training is the one that writes.
            weight_name: Name of the file, `pytorch_lora_weights.safetensors` by default.
            save_function: Writes weights to a path instead.
            safe_serialization: Whether to write safetensors, the only kind that is read.
            transformer_lora_adapter_metadata: Configuration of the transformer's adapter.
            text_encoder_lora_layers: The text encoder's weights, likewise.
            text_encoder_lora_adapter_metadata: Configuration of its adapter.

        Raises:
            ValueError: There are no weights.
        """
        given = {
            cls.transformer_name: (transformer_lora_layers, transformer_lora_adapter_metadata),
            cls.text_encoder_name: (text_encoder_lora_layers, text_encoder_lora_adapter_metadata),
        }
        found = {name: parts for name, parts in given.items() if parts[0]}
        if not found:
            raise ValueError("Give `transformer_lora_layers` or `text_encoder_lora_layers`.")
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={name: layers for name, (layers, _) in found.items()},
            lora_metadata={name: config for name, (_, config) in found.items()},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )

    def fuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        r"""Merges the active LoRAs into the weights of components, by default of all that can have one.

        Args:
            components: Names of components.
            options: `lora_scale`, `safe_fusing` and `adapter_names`, see diffusers' `LoraBaseMixin.fuse_lora`.
        """
        super().fuse_lora(components=components or self._lora_loadable_modules, **options)

    def unfuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        r"""Takes merged LoRAs out of the weights again.

        Args:
            components: Names of components, by default of all that can have a LoRA.
            options: See diffusers' `LoraBaseMixin.unfuse_lora`.
        """
        super().unfuse_lora(components=components or self._lora_loadable_modules, **options)


@contextmanager
def lora_weight(model: torch.nn.Module, scale: float | None) -> Iterator[None]:
    r"""Multiplies the weights of a model's active LoRAs by `scale`, if there is one, inside the block."""
    if scale in (None, 1.0) or not hasattr(model, "peft_config"):
        yield
        return
    # Remembered, since diffusers' way back from 0 forgets the weights that `set_adapters` gave.
    layers: list[Any] = [layer for layer in model.modules() if isinstance(getattr(layer, "scaling", None), dict)]
    scalings = [dict(layer.scaling) for layer in layers]
    scale_lora_layers(model, scale)
    try:
        yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling = scaling


@contextmanager
def _without_offloading(pipeline: Any) -> Iterator[None]:
    """Takes the hooks of offloading off a pipeline's components inside the block."""
    is_model, is_sequential, is_group = LoraBaseMixin._optionally_disable_offloading(pipeline)
    try:
        yield
    finally:
        if is_model:
            pipeline.enable_model_cpu_offload()
        elif is_sequential:
            pipeline.enable_sequential_cpu_offload()
        elif is_group:
            for component in pipeline.components.values():
                if isinstance(component, torch.nn.Module):
                    _maybe_remove_and_reapply_group_offloading(component)


def _below(entries: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Entries whose names are below a prefix, without it."""
    return {name.removeprefix(f"{prefix}."): entry for name, entry in entries.items() if name.startswith(f"{prefix}.")}
