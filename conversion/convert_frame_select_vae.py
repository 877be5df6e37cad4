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

from diffusers_vidvae.errors import CheckpointError

from .checkpoints import (
    KeyPlan,
    PlannedTensor,
    Shape,
    count_layers,
    plan_layer,
)
from .conversions import Conversion
from .factored_attention_keys import IGNORED_KEYS, block_config, block_key_plan, table_length


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


def infer_config(shapes: Mapping[str, Shape], **overrides: Any) -> dict[str, Any]:
    r"""Reads the model's configuration off the shapes of its tensors.

    Files without rotary tables do not tell the longest clip; the published 64 frames are taken then.

    Args:
        shapes: Shape of every tensor.
        overrides: Entries of the configuration that weights do not tell.

    Raises:
        CheckpointError: A tensor that tells a size is missing.
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
            **overrides,
        }
    except KeyError as error:
        raise CheckpointError(f"not a dynamic-frame-compression autoencoder: key {error} is missing.") from error


def key_plan(config: Mapping[str, Any]) -> KeyPlan:
    r"""Every key of the source, its shape and what it becomes, from the configuration alone."""
    width = config["in_channels"] * config["patch_size"] ** 2
    latent_channels = config["latent_channels"]
    num_tokens = (config["sample_size"] // config["patch_size"]) ** 2
    features = config["in_channels"] * config["unpatch_channels"]

    plan: KeyPlan = {
        "fill_token": PlannedTensor((1, 1, 1, latent_channels), {"fill_token.weight": (latent_channels,)})
    }
    plan_layer(plan, "encoder.patch_embedding.norm", "encoder.patch_embed.norm", (width,))
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
        plan_layer(plan, old, new, shape)
    for part in ("encoder", "decoder"):
        for layer in range(config[f"num_{part}_layers"]):
            old, new = f"{part}.layers.{layer}", f"{part}.transformer_blocks.{layer}"
            plan.update(block_key_plan(old, new, width, config))
    _plan_refiner(plan, features, config)
    return plan


def _plan_refiner(plan: KeyPlan, features: int, config: Mapping[str, Any]) -> None:
    levels = config["refiner_levels"]
    widths = [config["refiner_channels"] * 2**level for level in range(levels + 1)]
    old, new = "decoder.unet", "decoder.refiner"

    def plan_conv(old_conv: str, new_conv: str, out_channels: int, in_channels: int) -> None:
        plan_layer(plan, f"{old}.{old_conv}.conv", f"{new}.{new_conv}.conv", (out_channels, in_channels, 3, 3, 3))
        plan_layer(plan, f"{old}.{old_conv}.norm", f"{new}.{new_conv}.norm", (out_channels,))

    plan_layer(plan, f"{old}.patch_mixer", f"{new}.patch_mixer", (features, features, 3, 7, 7))
    for level, (width_in, width_out) in enumerate(zip([features, *widths], widths[:-1], strict=False)):
        plan_conv(f"encoders.{level}.conv1", f"down_blocks.{level}.conv1", width_out, width_in)
        plan_conv(f"encoders.{level}.conv2", f"down_blocks.{level}.conv2", width_out, width_out)
    plan_conv("bottleneck1", "mid_conv1", widths[-1], widths[-2])
    plan_conv("bottleneck2", "mid_conv2", widths[-1], widths[-1])
    for level, (width_in, width_out) in enumerate(zip(widths[:0:-1], widths[-2::-1], strict=True)):
        # The weight of a transposed convolution has its inputs first.
        shape = (width_in, width_out, 1, 2, 2)
        plan_layer(plan, f"{old}.decoders.{level}.upsample", f"{new}.up_blocks.{level}.upsample", shape, width_out)
        plan_conv(f"decoders.{level}.conv1", f"up_blocks.{level}.conv1", width_out, 2 * width_out)
        plan_conv(f"decoders.{level}.conv2", f"up_blocks.{level}.conv2", width_out, width_out)
    plan_layer(plan, f"{old}.final_conv", f"{new}.conv_out", (config["in_channels"], widths[0], 1, 1, 1))


CONVERSION = Conversion(
    "frame_select_vae",
    "FrameSelectVAE",
    is_source,
    infer_config,
    key_plan,
    ignored=IGNORED_KEYS,
)
convert = CONVERSION.convert
