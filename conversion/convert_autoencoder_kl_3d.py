r"""Weights of `AutoencoderKL3D` without their configuration, and what is known of Linum's image-video-vae.

The layer names of the checkpoint of https://huggingface.co/Linum-AI/image-video-vae are not public, and nothing is
guessed: several layouts have its published parameter counts (`KNOWN_LAYOUTS`), three of them even the same shapes in
another order. A checkpoint is converted if its keys are those of `AutoencoderKL3D` and every key and shape is
accounted for; otherwise the error says which of the layouts its shapes fit.

What weights do not tell is taken from the card or from `overrides`: which resampling layers halve frames (all but the
first), the pixel range ([0, 1]), the number of groups of group norms (32) and that they see single frames, and that
time is padded causally. Compare pixels with the original's before trusting a conversion.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers_vidvae.errors import CheckpointError

from .checkpoints import KeyPlan, PlannedTensor, Shape
from .conversions import Conversion


# Layouts with 170.1M + 176.5M parameters, each with either norm.
KNOWN_LAYOUTS: dict[str, dict[str, Any]] = {
    "no attention": {},
    "one mid block": {"layers_per_block": (2, 2, 5, 5), "mid_block_layers": 1},
    "five levels": {
        "block_out_channels": (128, 256, 512, 512, 512),
        "layers_per_block": (2, 2, 3, 3, 3),
        "mid_block_layers": 2,
    },
    "attention": {
        "layers_per_block": 4,
        "shortcut_kernel_size": 3,
        "mid_block_layers": 2,
        "mid_block_attention": True,
    },
}


@dataclass
class LayoutFit:
    r"""How many tensors of a checkpoint have shapes of a layout, whatever their names."""

    layout: str
    norm_type: str
    num_fitting: int
    missing: Counter = field(repr=False)
    unexpected: Counter = field(repr=False)

    def __str__(self) -> str:
        return (
            f"{self.layout} ({self.norm_type} norm): {self.num_fitting} tensors fit, {self.missing.total()} missing,"
            f" {self.unexpected.total()} unexpected"
        )


def is_source(shapes: Mapping[str, Shape]) -> bool:
    r"""Whether a checkpoint looks like a 3D convolutional autoencoder, of known names or not."""
    convolutions = [key for key, shape in shapes.items() if len(shape) == 5]
    return all(any(half in key for key in convolutions) for half in ("encoder", "decoder"))


def infer_config(shapes: Mapping[str, Shape], **overrides: Any) -> dict[str, Any]:
    r"""Reads the configuration off the names and shapes of a checkpoint's tensors.

    Args:
        shapes: Shape of every tensor.
        overrides: Entries of the configuration that weights do not tell.

    Raises:
        CheckpointError: The keys are not those of `AutoencoderKL3D`; says which layouts the shapes fit.
    """
    if not {"encoder.conv_in.conv.weight", "encoder.down_blocks.0.resnets.0.norm1.weight"} <= shapes.keys():
        fits = "\n  ".join(str(fit) for fit in fit_layouts(shapes))
        sample = ", ".join(sorted(shapes)[:3])
        raise CheckpointError(
            f"keys such as {sample} are not those of AutoencoderKL3D, so nothing is converted. By shapes alone:"
            f"\n  {fits}"
        )
    norm_bias = any(key.endswith("norm1.bias") for key in shapes)
    return {**_read_config(shapes), "norm_type": "group" if norm_bias else "rms", **overrides}


def fit_layouts(shapes: Mapping[str, Shape]) -> list[LayoutFit]:
    r"""Compares the shapes of a checkpoint with those of every known layout, best fit first."""
    found = Counter(_without_trailing_ones(shape) for shape in shapes.values())
    fits = []
    for layout, config in KNOWN_LAYOUTS.items():
        for norm_type in ("rms", "group"):
            tensors = _model_shapes({**config, "norm_type": norm_type}).values()
            expected = Counter(_without_trailing_ones(shape) for shape in tensors)
            fits.append(LayoutFit(layout, norm_type, (found & expected).total(), expected - found, found - expected))
    return sorted(fits, key=lambda fit: fit.missing.total() + fit.unexpected.total())


def _without_trailing_ones(shape: Shape) -> Shape:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _model_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    import torch

    from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D

    with torch.device("meta"):
        model = AutoencoderKL3D(**config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _read_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Reads the configuration off the layers that are there."""

    def count(pattern: str) -> int:
        return len({match[1] for key in shapes if (match := re.match(pattern, key))})

    def width(layer: str, axis: int) -> int:
        if f"{layer}.weight" not in shapes:
            raise CheckpointError(f"layer {layer} is missing.")
        return shapes[f"{layer}.weight"][axis]

    levels = range(count(r"encoder\.down_blocks\.(\d+)\."))
    num_resamplers = count(r"encoder\.down_blocks\.(\d+)\.resampler\.")
    shortcuts = {shape[-1] for key, shape in shapes.items() if key.endswith("shortcut.conv.weight")}
    encoder_layers = tuple(count(rf"encoder\.down_blocks\.{level}\.resnets\.(\d+)\.") for level in levels)
    decoder_layers = tuple(count(rf"decoder\.up_blocks\.{level}\.resnets\.(\d+)\.") for level in reversed(levels))
    linear_path = shapes.get("encoder.linear_path.projection.conv.weight")
    return {
        "in_channels": width("encoder.conv_in.conv", 1),
        "out_channels": width("decoder.conv_out.conv", 0),
        "latent_channels": width("decoder.conv_in.conv", 1),
        "block_out_channels": tuple(width(f"encoder.down_blocks.{level}.resnets.0.conv1", 0) for level in levels),
        "layers_per_block": encoder_layers,
        "decoder_layers_per_block": None if decoder_layers == encoder_layers else decoder_layers,
        "mid_block_layers": count(r"encoder\.mid_block\.resnets\.(\d+)\."),
        "mid_block_attention": "encoder.mid_block.attention.to_q.weight" in shapes,
        "temporal_downsample": (False,) + (True,) * (num_resamplers - 1),
        "shortcut_kernel_size": max(shortcuts, default=1),
        "pixel_range": (0.0, 1.0),
        "linear_path": linear_path is not None,
        "linear_path_context": linear_path[-1] // 2 if linear_path else 0,
    }


def key_plan(config: Mapping[str, Any]) -> KeyPlan:
    r"""Every key of a checkpoint and its shape, from the configuration alone; each keeps its name."""
    return {name: PlannedTensor(shape, {name: shape}) for name, shape in _model_shapes(config).items()}


CONVERSION = Conversion("autoencoder_kl_3d", "AutoencoderKL3D", is_source, infer_config, key_plan)
convert = CONVERSION.convert
