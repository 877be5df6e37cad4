r"""Conversion of the video autoencoder of floatingtrees/dynamic-frame-compression to `FrameSelectVAE`.

Source: `vae_pytorch.pt`, or the same state dict as safetensors, of
https://github.com/floatingtrees/dynamic-frame-compression (commit 2150c20). Keys are renamed, except that

- `qkv_projection` is split into `to_q`, `to_k` and `to_v`, in this order,
- `fill_token` loses its leading axes, `(1, 1, 1, C)` to `(C,)`,
- `ROPE.cos_cached` and `ROPE.sin_cached`, which some files hold, are not needed: positions are recomputed.

No tensor is transposed and no value changes. Missing, unexpected and mis-shaped keys raise with the full list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE

from .checkpoints import (
    Checkpoint,
    CheckpointError,
    KeyPlan,
    PlannedTensor,
    Shape,
    build_model,
    check_plan,
    convert_tensors,
    count_layers,
)
from .factored_attention_keys import IGNORED_KEYS, block_config, block_key_plan, convert_planned_key, table_length


PUBLISHED_CONFIG: dict[str, Any] = {
    "sample_size": 256,
    "in_channels": 3,
    "patch_size": 16,
    "latent_channels": 96,
    "num_encoder_layers": 9,
    "num_decoder_layers": 12,
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "ff_inner_dim": 1536,
    "max_num_frames": 64,
    "clip_num_frames": 32,
    "unpatch_channels": 4,
    "refiner_channels": 16,
    "refiner_levels": 3,
    "pixel_range": (0.0, 1.0),
}

TINY_CONFIG: dict[str, Any] = {
    **PUBLISHED_CONFIG,
    "sample_size": 32,
    "patch_size": 8,
    "latent_channels": 24,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "ff_inner_dim": 96,
    "max_num_frames": 16,
    "clip_num_frames": 16,
}


def is_source(shapes: Mapping[str, Shape]) -> bool:
    r"""Whether a checkpoint with these keys is one of this source."""
    return "fill_token" in shapes and "encoder.patch_embedding.linear.weight" in shapes


def infer_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    r"""Reads the model's configuration off the shapes of its tensors.

    Files without rotary tables do not tell the longest clip; the published 64 frames are taken then.
    """
    try:
        in_channels, unpatched_channels = shapes["decoder.patch_unembedding.downsample.weight"]
        patch_size = math.isqrt(shapes["encoder.patch_embedding.linear.weight"][0] // in_channels)
        max_num_frames = table_length(shapes, "encoder.layers.0", PUBLISHED_CONFIG["max_num_frames"])
        return {
            "sample_size": math.isqrt(shapes["encoder.selection_layer2.weight"][1]) * patch_size,
            "in_channels": in_channels,
            "patch_size": patch_size,
            "latent_channels": shapes["fill_token"][-1],
            "num_encoder_layers": count_layers(shapes, "encoder.layers."),
            "num_decoder_layers": count_layers(shapes, "decoder.layers."),
            **block_config(shapes, "encoder.layers.0"),
            "max_num_frames": max_num_frames,
            "clip_num_frames": min(max_num_frames, PUBLISHED_CONFIG["clip_num_frames"]),
            "unpatch_channels": unpatched_channels // in_channels,
            "refiner_channels": shapes["decoder.unet.final_conv.weight"][1],
            "refiner_levels": count_layers(shapes, "decoder.unet.encoders."),
            "pixel_range": PUBLISHED_CONFIG["pixel_range"],
        }
    except KeyError as error:
        raise CheckpointError(f"Not a dynamic-frame-compression autoencoder: key {error} is missing.") from error


def key_plan(config: Mapping[str, Any]) -> KeyPlan:
    r"""Every key of the source, its shape and what it becomes, from the configuration alone."""
    width = config["in_channels"] * config["patch_size"] ** 2
    latent_channels = config["latent_channels"]
    num_tokens = (config["sample_size"] // config["patch_size"]) ** 2
    features = config["in_channels"] * config["unpatch_channels"]
    block_sizes = tuple(config[name] for name in ("num_attention_heads", "attention_head_dim", "ff_inner_dim"))

    plan: KeyPlan = {
        "fill_token": PlannedTensor((1, 1, 1, latent_channels), {"fill_token.weight": (latent_channels,)})
    }
    _plan_layer(plan, "encoder.patch_embedding.norm", "encoder.patch_embed.norm", (width,))
    for old, new, shape in (
        ("encoder.patch_embedding.linear", "encoder.patch_embed.proj", (width, width)),
        ("encoder.spatial_compression", "encoder.to_mean", (latent_channels, width)),
        ("encoder.variance_estimator", "encoder.to_variance", (latent_channels, width)),
        ("encoder.selection_layer1", "encoder.keep_head.token_proj", (1, latent_channels)),
        ("encoder.selection_layer2", "encoder.keep_head.frame_proj", (1, num_tokens)),
        ("decoder.spatial_decompression", "decoder.proj_in", (width, latent_channels)),
        ("decoder.patch_unembedding.linear", "decoder.patch_unembed.linear", (width, width)),
        (
            "decoder.patch_unembedding.upsample",
            "decoder.patch_unembed.upsample",
            (width * config["unpatch_channels"], width),
        ),
        ("decoder.patch_unembedding.downsample", "decoder.to_pixels", (config["in_channels"], features)),
    ):
        _plan_layer(plan, old, new, shape)
    for part in ("encoder", "decoder"):
        for layer in range(config[f"num_{part}_layers"]):
            old, new = f"{part}.layers.{layer}", f"{part}.transformer_blocks.{layer}"
            plan.update(block_key_plan(old, new, width, *block_sizes))
    _plan_refiner(plan, features, config)
    return plan


def _plan_layer(plan: KeyPlan, old: str, new: str, weight_shape: Shape, bias_size: int | None = None):
    bias_shape = (weight_shape[0] if bias_size is None else bias_size,)
    plan[f"{old}.weight"] = PlannedTensor(weight_shape, {f"{new}.weight": weight_shape})
    plan[f"{old}.bias"] = PlannedTensor(bias_shape, {f"{new}.bias": bias_shape})


def _plan_refiner(plan: KeyPlan, features: int, config: Mapping[str, Any]):
    levels = config["refiner_levels"]
    widths = [config["refiner_channels"] * 2**level for level in range(levels + 1)]
    old, new = "decoder.unet", "decoder.refiner"

    def plan_conv(old_conv: str, new_conv: str, out_channels: int, in_channels: int):
        _plan_layer(plan, f"{old}.{old_conv}.conv", f"{new}.{new_conv}.conv", (out_channels, in_channels, 3, 3, 3))
        _plan_layer(plan, f"{old}.{old_conv}.norm", f"{new}.{new_conv}.norm", (out_channels,))

    _plan_layer(plan, f"{old}.patch_mixer", f"{new}.patch_mixer", (features, features, 3, 7, 7))
    for level, (width_in, width_out) in enumerate(zip([features, *widths], widths[:-1], strict=False)):
        plan_conv(f"encoders.{level}.conv1", f"down_blocks.{level}.conv1", width_out, width_in)
        plan_conv(f"encoders.{level}.conv2", f"down_blocks.{level}.conv2", width_out, width_out)
    plan_conv("bottleneck1", "mid_conv1", widths[-1], widths[-2])
    plan_conv("bottleneck2", "mid_conv2", widths[-1], widths[-1])
    for level, (width_in, width_out) in enumerate(zip(widths[:0:-1], widths[-2::-1], strict=True)):
        upsample = f"decoders.{level}.upsample", f"up_blocks.{level}.upsample"
        _plan_layer(plan, f"{old}.{upsample[0]}", f"{new}.{upsample[1]}", (width_in, width_out, 1, 2, 2), width_out)
        plan_conv(f"decoders.{level}.conv1", f"up_blocks.{level}.conv1", width_out, 2 * width_out)
        plan_conv(f"decoders.{level}.conv2", f"up_blocks.{level}.conv2", width_out, width_out)
    _plan_layer(plan, f"{old}.final_conv", f"{new}.conv_out", (config["in_channels"], widths[0], 1, 1, 1))


def convert_key(key: str, tensor: torch.Tensor, plan: KeyPlan) -> dict[str, torch.Tensor]:
    r"""Converts one tensor: renames it, splits a joint projection, drops leading axes of the fill token."""
    return convert_planned_key(key, tensor, plan[key])


def convert(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> FrameSelectVAE:
    r"""Makes a `FrameSelectVAE` of a checkpoint.

    Args:
        checkpoint: The original weights.
        dtype: Type to store them in; by default that of the checkpoint.

    Raises:
        CheckpointError: Keys or shapes are not those of the architecture; lists all of them.
    """
    config = infer_config(checkpoint.shapes)
    plan = key_plan(config)
    check_plan(checkpoint, plan, IGNORED_KEYS)
    tensors = convert_tensors(checkpoint, plan, lambda key, tensor: convert_key(key, tensor, plan))
    return build_model(FrameSelectVAE, config, tensors, dtype)


def map_single_file_config(original_config: Mapping[str, Any], checkpoint: dict, **kwargs) -> dict[str, Any]:
    r"""Configuration for `FrameSelectVAE.from_single_file`; entries of `original_config` win."""
    shapes = Checkpoint.from_state_dict(checkpoint).shapes
    return {**infer_config(shapes), **original_config}


def map_single_file_checkpoint(checkpoint: dict, config: Mapping[str, Any], **kwargs) -> dict[str, torch.Tensor]:
    r"""State dict for `FrameSelectVAE.from_single_file`."""
    opened = Checkpoint.from_state_dict(checkpoint, "the original checkpoint")
    plan = key_plan(config)
    check_plan(opened, plan, IGNORED_KEYS)
    return dict(convert_tensors(opened, plan, lambda key, tensor: convert_key(key, tensor, plan)))
