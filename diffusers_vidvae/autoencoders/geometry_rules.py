r"""Which sizes the autoencoders of diffusers and of this package take, read from their configs and attributes.

There is one rule for every class, by its name, since code from the Hub has classes of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, TypeAlias

from diffusers import ModelMixin
from diffusers.models import autoencoders

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE

from .geometry import Lengths, VideoGeometry


IMAGE_MODELS = (
    "AsymmetricAutoencoderKL",
    "AutoencoderDC",
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderKLHunyuanImage",
    "AutoencoderKLKVAE",
    "AutoencoderTiny",
    "VQModel",
)


def _video(frames: Lengths | tuple[Lengths, ...], side: int, **options: Any) -> VideoGeometry:
    """Geometry of a model whose height and width are multiples of `side`."""
    frames = frames if isinstance(frames, tuple) else (frames,)
    return VideoGeometry(frames, Lengths(side, side), Lengths(side, side), **options)


def _halved_per_level(channels: tuple[int, ...] | list[int]) -> int:
    return 2 ** (len(channels) - 1)


def _frame_select(vae: Any) -> VideoGeometry:
    patch_size, sample_size = vae.config.patch_size, vae.config.sample_size
    if vae.config.keep_head != "latent":
        return _video(Lengths(1), patch_size)
    sides = Lengths(sample_size, patch_size)
    return VideoGeometry((Lengths(1),), sides, sides, untiled_side=sample_size)


def _ltx(vae: Any) -> VideoGeometry:
    # Counted from the layers: the model's own `*_compression_ratio` take every downsampling to halve space and time.
    spatial, temporal = vae.config.patch_size, vae.config.patch_size_t
    for block, kind in zip(vae.encoder.down_blocks, vae.config.downsample_type, strict=False):
        if block.downsamplers is not None:
            halves_all = kind in ("conv", "spatiotemporal") or type(block).__name__ == "LTXVideoDownBlock3D"
            spatial *= 2 if halves_all or kind == "spatial" else 1
            temporal *= 2 if halves_all or kind == "temporal" else 1
    # Reflection, the decoder's padding in LTX-2, needs two latents a side.
    reflects = vae.config.get("decoder_spatial_padding_mode") == "reflect"
    sides = Lengths(2 * spatial if reflects else spatial, spatial)
    return VideoGeometry((Lengths(1, temporal),), sides, sides)


def _cogvideox(vae: Any) -> VideoGeometry:
    # It encodes 8 frames and decodes 2 latent frames at a time; of other counts the two make different batches.
    batch = vae.num_sample_frames_batch_size
    return _video((Lengths(1, batch), Lengths(batch, batch)), _halved_per_level(vae.config.block_out_channels))


def _mochi(vae: Any) -> VideoGeometry:
    ratio = vae.temporal_compression_ratio
    return _video(Lengths(1 if vae.drop_last_temporal_frames else ratio, ratio), vae.spatial_compression_ratio)


def _kvae_video(vae: Any) -> VideoGeometry:
    # 17 frames first, then 16 at a time; a last segment of one latent frame would come back as a single frame.
    ratio, segment = vae.config.temporal_compress_times, 16
    frames = [Lengths(1 + rest, segment) for rest in range(0, segment, ratio) if rest != ratio]
    return _video(tuple(frames), _halved_per_level(vae.config.ch_mult))


def _vidtok(vae: Any) -> VideoGeometry:
    side = 2 ** len(vae.encoder.spatial_ds)
    batch = vae.num_sample_frames_batch_size
    return _video(Lengths(1, vae.temporal_compression_ratio) if vae.is_causal else Lengths(batch, batch), side)


def _minimax_h3(vae: Any) -> VideoGeometry:
    clip_length, token_drop = vae.config.clip_length, vae.config.token_drop
    tail = 0
    if token_drop:
        tail = (vae.tokens_chunk_size - token_drop) * vae.temporal_compression_ratio - vae.frame_pre_padding
    side = vae.spatial_compression_ratio
    # Reflection, the usual padding of its encoder, needs two latents a side.
    sides = Lengths(2 * side if vae.config.spatial_padding_mode == "reflect" else side, side)
    return VideoGeometry((Lengths(clip_length + tail, clip_length),), sides, sides)


def _allegro(vae: Any) -> VideoGeometry:
    axes = [Lengths(tile, stride) for tile, stride in zip(vae.kernel, vae.stride, strict=True)]
    return VideoGeometry((axes[0],), axes[1], axes[2], untiled_side=0, one_clip_at_a_time=True)


def _image_model(vae: Any) -> VideoGeometry | None:
    for name in ("block_out_channels", "down_block_out_channels", "encoder_block_out_channels", "ch_mult"):
        if vae.config.get(name) is not None:
            side = getattr(vae, "spatial_compression_ratio", None) or _halved_per_level(vae.config[name])
            return _video(Lengths(1), side, per_frame=True)
    return None


def _causal(vae: Any) -> VideoGeometry:
    return _video(Lengths(1, vae.temporal_compression_ratio), vae.spatial_compression_ratio)


# A rule returns None where a config does not tell.
GEOMETRIES: dict[str, Callable[[Any], VideoGeometry | None]] = {
    "AutoencoderKL3D": lambda vae: VideoGeometry(
        (Lengths(1),), Lengths(vae.spatial_compression_ratio), Lengths(vae.spatial_compression_ratio)
    ),
    "AutoencoderKLAllegro": _allegro,
    "AutoencoderKLCogVideoX": _cogvideox,
    "AutoencoderKLCosmos": lambda vae: _video(
        Lengths(1, vae.config.temporal_compression_ratio), vae.config.spatial_compression_ratio
    ),
    "AutoencoderKLHunyuanImageRefiner": _causal,
    "AutoencoderKLHunyuanVideo": _causal,
    # Its attention mask fits batches of one only.
    "AutoencoderKLHunyuanVideo15": lambda vae: replace(_causal(vae), one_clip_at_a_time=True),
    "AutoencoderKLKVAEVideo": _kvae_video,
    "AutoencoderKLLTX2Video": _ltx,
    "AutoencoderKLLTXVideo": _ltx,
    "AutoencoderKLMagvit": _causal,
    "AutoencoderKLMiniMaxH3": _minimax_h3,
    "AutoencoderKLMochi": _mochi,
    "AutoencoderKLQwenImage": lambda vae: _video(Lengths(1, 4), vae.spatial_compression_ratio),
    "AutoencoderKLQwenImage21": lambda vae: _video(Lengths(1), vae.config.scale_factor_spatial, per_frame=True),
    "AutoencoderKLTemporalDecoder": _image_model,
    "AutoencoderKLWan": lambda vae: _video(Lengths(1, 4), vae.spatial_compression_ratio),
    "AutoencoderVidTok": _vidtok,
    "FrameSelectVAE": _frame_select,
    "Kandinsky6SRVAE": _causal,
    **dict.fromkeys(IMAGE_MODELS, _image_model),
}


# What `from_pipe` moves between pipelines: it asks for exactly the type of a component.
if TYPE_CHECKING:
    AnyVideoAutoencoder: TypeAlias = ModelMixin
else:
    AnyVideoAutoencoder = reduce(
        or_,
        (getattr(autoencoders, name) for name in GEOMETRIES if hasattr(autoencoders, name)),
        AutoencoderKL3D | FrameSelectVAE | ModelMixin,
    )


def class_names(model: Any) -> list[str]:
    """Names of the model's class and its bases. Rules go by name, since code from the Hub has classes of its own."""
    return [cls.__name__ for cls in type(model).__mro__]


def require_frame_select(vae: Any, needed_by: str) -> None:
    r"""Refuses an autoencoder that does not select frames, by its name; None passes.

    Raises:
        ValueError: It is another one.
    """
    if vae is not None and "FrameSelectVAE" not in class_names(vae):
        raise ValueError(f"{needed_by} needs a FrameSelectVAE as `vae`, got {type(vae).__name__}.")
