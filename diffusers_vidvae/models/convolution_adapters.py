r"""LoRA on models with 3D convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.loaders import PeftAdapterMixin
from torch import nn


@contextmanager
def pointwise_in_2d(model: nn.Module) -> Iterator[None]:
    r"""Shows 1x1x1 convolutions and their LoRAs as 1x1 ones, since PEFT (0.21) fails to multiply out the former."""
    layers: list[Any] = [
        module
        for module in model.modules()
        if hasattr(module, "lora_A") and getattr(module.base_layer, "kernel_size", None) == (1, 1, 1)
    ]
    convolutions = [conv for layer in layers for conv in (layer.base_layer, *layer.lora_A.values())]
    convolutions += [conv for layer in layers for conv in layer.lora_B.values()]
    for conv in convolutions:
        conv.weight.data = conv.weight.data.squeeze(4)
    try:
        yield
    finally:
        for conv in convolutions:
            conv.weight.data = conv.weight.data.unsqueeze(4)


class ConvolutionAdapterMixin(PeftAdapterMixin):
    r"""Adapters as in diffusers, where LoRAs of 1x1x1 convolutions can be fused, too."""

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | None = None
    ) -> None:
        r"""Adds LoRAs to the weights, as in diffusers.

        Args:
            lora_scale: Factor of what is added.
            safe_fusing: Whether to refuse sums that are not finite.
            adapter_names: The adapters, by default the active ones.
        """
        with pointwise_in_2d(self):
            super().fuse_lora(lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self) -> None:
        r"""Takes off again what `fuse_lora` added, as in diffusers."""
        with pointwise_in_2d(self):
            super().unfuse_lora()
