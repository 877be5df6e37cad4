r"""Conversion of 3D convolutional autoencoders with the layers of `AutoencoderKL3D`, if their names are known.

    python -m diffusers_vidvae.conversion.convert_autoencoder_kl_3d CHECKPOINT [--output FOLDER | --dry-run]

Meant for the checkpoint of Linum's image-video-vae (https://huggingface.co/Linum-AI/image-video-vae), whose layer
names are not public: several layouts have its published parameter counts (`KNOWN_LAYOUTS`), three of them even the
same shapes in another order. Nothing is guessed. A checkpoint is converted if its keys follow one of `NAMINGS` and
every key and shape is accounted for; otherwise the error says which of the layouts its shapes fit. Keys are renamed,
except that

- norm weights may have trailing axes of size one, `(C, 1, 1, 1)`, which are dropped,
- attention projections may be convolutions of kernel size one, `(C, C, 1, 1[, 1])`, whose kernel axes are dropped.

What weights do not tell is taken from the card or from `overrides`: which resampling layers halve frames (all but the
first), the pixel range ([0, 1]), the number of groups of group norms (32) and that they see single frames, and that
time is padded causally. Compare pixels with the original's before trusting a conversion.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D

from .checkpoints import (
    Checkpoint,
    CheckpointError,
    Conversion,
    KeyPlan,
    PlannedTensor,
    Shape,
    check_plan,
    describe_plan,
)


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


class Naming(NamedTuple):
    r"""Names of layers in a family of checkpoints.

    Args:
        rules: Patterns in names of `AutoencoderKL3D`'s layers and their replacements, applied in order.
        pointwise_shortcut: Name of shortcuts of kernel size one, if they have one of their own.
        up_from_full_resolution: Whether decoder levels are counted from the full resolution on.
    """

    rules: tuple[tuple[str, str], ...] = ()
    pointwise_shortcut: str | None = None
    up_from_full_resolution: bool = False


NAMINGS: dict[str, Naming] = {
    "AutoencoderKL3D": Naming(),
    "diffusers": Naming(
        rules=(
            (r"conv_in\.conv$", "conv_in"),
            (r"conv_out\.norm$", "conv_norm_out"),
            (r"conv_out\.conv$", "conv_out"),
            (r"shortcut\.conv$", "conv_shortcut"),
            (r"(down|up)(_blocks\.\d+)\.resampler\.", r"\1\2.\1samplers.0."),
            (r"attention\.norm$", "attention.group_norm"),
            (r"attention\.to_out$", "attention.to_out.0"),
            (r"attention\.", "attentions.0."),
        ),
    ),
    "latent-diffusion": Naming(
        rules=(
            (r"conv_in\.conv$", "conv_in"),
            (r"conv_out\.norm$", "norm_out"),
            (r"conv_out\.conv$", "conv_out"),
            (r"shortcut\.conv$", "conv_shortcut"),
            (r"mid_block\.attention\.to_out$", "mid.attn_1.proj_out"),
            (r"mid_block\.attention\.(?:to_)?", "mid.attn_1."),
            (r"mid_block\.resnets\.", "mid.block_"),
            (r"(down|up)_blocks\.(\d+)\.resnets\.", r"\1.\2.block."),
            (r"(down|up)_blocks\.(\d+)\.resampler\.", r"\1.\2.\1sample."),
        ),
        pointwise_shortcut="nin_shortcut",
        up_from_full_resolution=True,
    ),
}


@dataclass(frozen=True)
class SourceFormat:
    r"""How a checkpoint spells a configuration.

    Args:
        naming: Key of `NAMINGS`.
        prefix: What precedes `encoder.` and `decoder.`.
        wrapped: Whether convolutions sit in a wrapper, `conv1.conv.weight`.
        norm_weight: Last part of the norm weights' names.
        norm_axes: Axes of norm weights.
        attention_axes: Axes of attention projections.
    """

    naming: str = "AutoencoderKL3D"
    prefix: str = ""
    wrapped: bool = False
    norm_weight: str = "weight"
    norm_axes: int = 1
    attention_axes: int = 2


class SourceConfig(dict):
    """Constructor arguments of `AutoencoderKL3D` that remember the format of the checkpoint they were read off."""

    format: SourceFormat = SourceFormat()


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


def infer_config(shapes: Mapping[str, Shape], **overrides: Any) -> SourceConfig:
    r"""Reads the configuration off the names and shapes of a checkpoint's tensors.

    Args:
        shapes: Shape of every tensor.
        overrides: Entries of the configuration that weights do not tell.

    Raises:
        CheckpointError: The keys follow no known naming; says which layouts the shapes fit.
    """
    recognized = [found for name in NAMINGS if (found := _recognize(shapes, name))]
    if recognized:
        layers, source = max(recognized, key=lambda found: len(found[0]))
        norm_bias = any(key.endswith("norm1.bias") for key in shapes)
        read = {**_read_config(layers), "norm_type": "group" if norm_bias else "rms"}
        config = SourceConfig({**read, **overrides})
        config.format = source
        return config
    fits = "\n  ".join(str(fit) for fit in fit_layouts(shapes))
    sample = ", ".join(sorted(shapes)[:3])
    raise CheckpointError(
        f"keys such as {sample} follow none of the namings {tuple(NAMINGS)}, so nothing is converted. By shapes alone:"
        f"\n  {fits}"
    )


def fit_layouts(shapes: Mapping[str, Shape]) -> list[LayoutFit]:
    r"""Compares the shapes of a checkpoint with those of every known layout, best fit first."""
    found = Counter(_without_trailing_ones(shape) for shape in shapes.values())
    fits = []
    for layout, config in KNOWN_LAYOUTS.items():
        for norm_type in ("rms", "group"):
            tensors = _target_shapes({**config, "norm_type": norm_type}).values()
            expected = Counter(_without_trailing_ones(shape) for shape in tensors)
            fits.append(LayoutFit(layout, norm_type, (found & expected).total(), expected - found, found - expected))
    return sorted(fits, key=lambda fit: fit.missing.total() + fit.unexpected.total())


def _without_trailing_ones(shape: Shape) -> Shape:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _target_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    with torch.device("meta"):
        model = AutoencoderKL3D(**config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _source_layer(layer: str, naming: Naming, num_levels: int, shortcut_kernel_size: int) -> str:
    """Name of one of `AutoencoderKL3D`'s layers in checkpoints of a naming."""
    if naming.up_from_full_resolution:
        layer = re.sub(r"(?<=up_blocks\.)\d+", lambda match: str(num_levels - 1 - int(match[0])), layer)
        layer = re.sub(r"(?<=mid_block\.resnets\.)\d+", lambda match: str(1 + int(match[0])), layer)
    if naming.pointwise_shortcut and shortcut_kernel_size == 1:
        layer = re.sub(r"shortcut\.conv$", naming.pointwise_shortcut, layer)
    for pattern, replacement in naming.rules:
        layer = re.sub(pattern, replacement, layer)
    return layer


def _possible_layers(max_levels: int = 8, max_blocks: int = 16) -> Iterator[str]:
    """Every layer that an `AutoencoderKL3D` may have."""
    parts = ("norm1", "conv1", "norm2", "conv2", "shortcut.conv")
    blocks = [f"resnets.{block}.{part}" for block in range(max_blocks) for part in parts]
    attention = [f"attention.{part}" for part in ("norm", "to_q", "to_k", "to_v", "to_out")]
    for half, levels in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
        yield from (
            f"{half}.{layer}" for layer in ("conv_in.conv", "conv_out.norm", "conv_out.conv", "linear_path.conv")
        )
        yield from (f"{half}.mid_block.{layer}" for layer in blocks + attention)
        for level in range(max_levels):
            yield from (f"{half}.{levels}.{level}.{layer}" for layer in [*blocks, "resampler.conv"])


def _recognize(shapes: Mapping[str, Shape], name: str) -> tuple[dict[str, tuple[str, Shape]], SourceFormat] | None:
    """Reads a checkpoint as of one naming: last part of the key and shape of every layer it knows, and the format."""
    naming = NAMINGS[name]
    prefixes = Counter(key[: key.index(half)] for key in shapes for half in ("encoder.", "decoder.") if half in key)
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    keys = [key.removeprefix(prefix) for key in shapes]
    first_layers = (_source_layer(f"encoder.down_blocks.{level}.resnets.0.norm1", naming, 0, 1) for level in range(8))
    num_levels = sum(any(key.startswith(layer) for key in keys) for layer in first_layers)
    known = {
        _source_layer(layer, naming, num_levels, kernel_size): layer
        for layer in _possible_layers()
        for kernel_size in (1, 3)
    }
    layers: dict[str, tuple[str, Shape]] = {}
    wrapped = False
    for key in keys:
        layer, _, leaf = key.rpartition(".")
        if layer not in known and layer.removesuffix(".conv") in known:
            layer, wrapped = layer.removesuffix(".conv"), True
        if layer in known and leaf != "bias":
            layers[known[layer]] = leaf, shapes[prefix + key]
    if not {"encoder.conv_in.conv", "decoder.conv_in.conv", "encoder.down_blocks.0.resnets.0.norm1"} <= layers.keys():
        return None
    norm_weight, norm_shape = layers["encoder.down_blocks.0.resnets.0.norm1"]
    _, query_shape = layers.get("encoder.mid_block.attention.to_q", ("weight", (0, 0)))
    return layers, SourceFormat(name, prefix, wrapped, norm_weight, len(norm_shape), len(query_shape))


def _read_config(layers: Mapping[str, tuple[str, Shape]]) -> dict[str, Any]:
    """Reads the configuration off the layers that are there, named as in `AutoencoderKL3D`."""

    def count(pattern: str) -> int:
        return len({match[1] for layer in layers if (match := re.match(pattern, layer))})

    def width(layer: str, axis: int) -> int:
        if layer not in layers:
            raise CheckpointError(f"layer {layer} is missing, or has another name.")
        return layers[layer][1][axis]

    levels = range(count(r"encoder\.down_blocks\.(\d+)\."))
    num_resamplers = count(r"encoder\.down_blocks\.(\d+)\.resampler\.")
    shortcuts = {shape[-1] for layer, (_, shape) in layers.items() if layer.endswith("shortcut.conv")}
    encoder_layers = tuple(count(rf"encoder\.down_blocks\.{level}\.resnets\.(\d+)\.") for level in levels)
    decoder_layers = tuple(count(rf"decoder\.up_blocks\.{level}\.resnets\.(\d+)\.") for level in reversed(levels))
    return {
        "in_channels": width("encoder.conv_in.conv", 1),
        "out_channels": width("decoder.conv_out.conv", 0),
        "latent_channels": width("decoder.conv_in.conv", 1),
        "block_out_channels": tuple(width(f"encoder.down_blocks.{level}.resnets.0.conv1", 0) for level in levels),
        "layers_per_block": encoder_layers,
        "decoder_layers_per_block": None if decoder_layers == encoder_layers else decoder_layers,
        "mid_block_layers": count(r"encoder\.mid_block\.resnets\.(\d+)\."),
        "mid_block_attention": "encoder.mid_block.attention.to_q" in layers,
        "temporal_downsample": (False,) + (True,) * (num_resamplers - 1),
        "shortcut_kernel_size": max(shortcuts, default=1),
        "pixel_range": (0.0, 1.0),
        "linear_path": "encoder.linear_path.conv" in layers,
    }


def key_plan(config: Mapping[str, Any]) -> KeyPlan:
    r"""Every key of the source, its shape and what it becomes, from the configuration alone.

    Args:
        config: Configuration; a `SourceConfig` is planned in its checkpoint's format, others in `AutoencoderKL3D`'s.
    """
    source = config.format if isinstance(config, SourceConfig) else SourceFormat()
    naming = NAMINGS[source.naming]
    num_levels = len(config.get("block_out_channels", ()))
    shapes = _target_shapes(config)
    convolutions = {name.rpartition(".")[0] for name, shape in shapes.items() if len(shape) == 5}
    plan: KeyPlan = {}
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition(".")
        key = source.prefix + _source_layer(layer, naming, num_levels, config.get("shortcut_kernel_size", 1))
        axes = len(shape)
        if layer in convolutions:
            key += ".conv" if source.wrapped else ""
        elif "norm" in layer and leaf == "weight":
            leaf, axes = source.norm_weight, source.norm_axes
        elif leaf == "weight":
            axes = source.attention_axes
        plan[f"{key}.{leaf}"] = PlannedTensor(shape + (1,) * (axes - len(shape)), {name: shape})
    return plan


_CONVERSION = Conversion(AutoencoderKL3D, infer_config, key_plan)
convert = _CONVERSION.convert
map_single_file_config = _CONVERSION.map_single_file_config
map_single_file_checkpoint = _CONVERSION.map_single_file_checkpoint


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Converts a checkpoint to a folder of an AutoencoderKL3D.")
    parser.add_argument("checkpoint", type=Path, help="safetensors file, or a state dict of torch.save")
    parser.add_argument("--output", type=Path, help="folder to write")
    parser.add_argument("--dry-run", action="store_true", help="read the header, report what fits, write nothing")
    options = parser.parse_args(arguments)
    if options.output is None and not options.dry_run:
        parser.error("either --output or --dry-run is needed")
    try:
        checkpoint = Checkpoint.open(options.checkpoint)
        if options.dry_run:
            print("Layouts with these shapes, best first:", *fit_layouts(checkpoint.shapes), sep="\n  ")
            config = infer_config(checkpoint.shapes)
            plan = key_plan(config)
            check_plan(checkpoint, plan)
            print(f"Format: {config.format}\nConfiguration: {dict(config)}\n{describe_plan(checkpoint, plan)}")
        else:
            convert(checkpoint).save_pretrained(options.output)
    except (CheckpointError, FileNotFoundError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
