r"""Conversion of the latent video transformer of floatingtrees/dynamic-frame-compression to `GapDiT`.

Source: `dit_pytorch.pt`, or the same state dict as safetensors, of
https://github.com/floatingtrees/dynamic-frame-compression (commit 2150c20). Keys are renamed, except that

- `down_proj` changes sign: the original predicts data - noise, diffusers noise - data,
- `qkv_projection` is split into `to_q`, `to_k` and `to_v`, in this order,
- `ROPE.cos_cached` and `ROPE.sin_cached`, which some files hold, are not needed: positions are recomputed.

No tensor is transposed. The original's time, 0 for noise and 1 for data, is computed from the timestep inside the
model, so `timestep_proj` is only renamed. Missing, unexpected and mis-shaped keys raise with the full list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers_vidvae.errors import CheckpointError

from .checkpoints import (
    KeyPlan,
    PlannedTensor,
    Shape,
    count_layers,
    plan_layer,
)
from .conversions import Conversion, convert_planned_key
from .factored_attention_keys import IGNORED_KEYS, block_config, block_key_plan, table_length


if TYPE_CHECKING:
    import torch


PUBLISHED_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 96,
    "hidden_size": 1024,
    "num_layers": 30,
    "num_attention_heads": 8,
    "attention_head_dim": 128,
    "ff_inner_dim": 2048,
    "max_num_frames": 64,
}

TINY_CONFIG: dict[str, Any] = {
    "sample_size": 4,
    "in_channels": 24,
    "hidden_size": 64,
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "ff_inner_dim": 96,
    "max_num_frames": 64,
}


def is_source(shapes: Mapping[str, Shape]) -> bool:
    r"""Whether a checkpoint with these keys is one of this source."""
    return "timestep_proj.weight" in shapes and "spacing_pred2.weight" in shapes


def infer_config(shapes: Mapping[str, Shape], **overrides: Any) -> dict[str, Any]:
    r"""Reads the model's configuration off the shapes of its tensors.

    Files without rotary tables do not tell the most latent frames; the published 64 are taken then.

    Args:
        shapes: Shape of every tensor.
        overrides: Entries of the configuration that weights do not tell.

    Raises:
        CheckpointError: A tensor that tells a size is missing.
    """
    try:
        hidden_size, in_channels = shapes["up_proj.weight"]
        return {
            "sample_size": math.isqrt(shapes["spacing_pred2.weight"][1]),
            "in_channels": in_channels,
            "hidden_size": hidden_size,
            "num_layers": count_layers(shapes, "layers."),
            **block_config(shapes, "layers.0"),
            "max_num_frames": table_length(shapes, "layers.0", PUBLISHED_CONFIG["max_num_frames"]),
            **overrides,
        }
    except KeyError as error:
        raise CheckpointError(f"not a dynamic-frame-compression transformer: key {error} is missing.") from error


def key_plan(config: Mapping[str, Any]) -> KeyPlan:
    r"""Every key of the source, its shape and what it becomes, from the configuration alone."""
    dim, channels = config["hidden_size"], config["in_channels"]
    plan: KeyPlan = {}
    for old, new, shape in (
        ("timestep_proj", "time_proj", (dim, 1)),
        ("up_proj", "proj_in", (dim, channels)),
        ("down_proj", "proj_out", (channels, dim)),
        ("spacing_pred1", "gap_proj", (1, dim)),
        ("spacing_pred2", "gap_pool", (1, config["sample_size"] ** 2)),
    ):
        plan_layer(plan, old, new, shape)
    for layer in range(config["num_layers"]):
        plan.update(block_key_plan(f"layers.{layer}", f"transformer_blocks.{layer}", dim, config))
    return plan


def convert_key(key: str, tensor: torch.Tensor, planned: PlannedTensor) -> dict[str, torch.Tensor]:
    r"""Converts one tensor: renames it, splits a joint projection, turns the sign of the velocity."""
    return convert_planned_key(key, -tensor if key.startswith("down_proj.") else tensor, planned)


CONVERSION = Conversion(
    "gap_dit",
    "GapDiT",
    is_source,
    infer_config,
    key_plan,
    convert_key=convert_key,
    ignored=IGNORED_KEYS,
)
convert = CONVERSION.convert
