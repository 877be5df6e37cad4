"""One way to call every video autoencoder of diffusers.

Autoencoders disagree about the sizes they take (`4k + 1` frames, `8k`, any), about padding, pixel range, batching,
about what `encode` returns and what `decode` needs. `VideoAutoencoder` hides that behind `encode` and `decode` on
`(batch, 3, frames, height, width)` pixels in [-1, 1]; `VideoGeometry` says which sizes a model takes.

Sizes are read from a model's config and attributes, with one rule per class in `GEOMETRIES`. A model of another class
is probed: small clips are sent through it until its sizes are known.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from diffusers import ModelMixin
from diffusers.models import autoencoders
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution, IdentityDistribution

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE


PROBE_SIDES = (32, 64, 128, 256)
PROBE_FRAMES = 33
FRAMES_PER_BATCH = 8

# Pixels that a model wants as (x - mean) / std of [0, 1] values, where the usual is [-1, 1].
PIXEL_STATISTICS = {"AutoencoderKLMiniMaxH3": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}

# Models that map and cast pixels themselves: they get float32, since half precision is too coarse to shift pixels in.
CASTING_MODELS = ("AutoencoderKL3D", "FrameSelectVAE", "AutoencoderKLMiniMaxH3")

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


# Which sizes a model takes


@dataclass(frozen=True)
class Lengths:
    """The lengths `start`, `start + step`, `start + 2 * step`, ... of one axis."""

    start: int
    step: int = 1

    def __contains__(self, length: object) -> bool:
        return isinstance(length, int) and length >= self.start and (length - self.start) % self.step == 0

    def round_up(self, length: int) -> int:
        """Smallest of the lengths that is at least `length`."""
        return self.start + max(0, math.ceil((length - self.start) / self.step)) * self.step

    def round_down(self, length: int) -> int:
        """Largest of the lengths that is at most `length`, 0 if all are longer."""
        return 0 if length < self.start else self.start + (length - self.start) // self.step * self.step


@dataclass(frozen=True)
class VideoGeometry:
    """Sizes of clips that a model takes, in frames and pixels.

    Args:
        frames: Numbers of frames; a number in any of the progressions is accepted.
        height: Heights.
        width: Widths.
        per_frame: The encoder is an image encoder: frames go through it as images.
        untiled_side: Side of the only frames that fit the model without tiling; 0 if it always tiles, None if tiling
            is never needed.
        one_clip_at_a_time: The model takes batches of one.
    """

    frames: tuple[Lengths, ...]
    height: Lengths
    width: Lengths
    per_frame: bool = False
    untiled_side: int | None = None
    one_clip_at_a_time: bool = False

    def padded_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Smallest accepted `(frames, height, width)` that holds a clip of this size."""
        return self.padded_frames(num_frames), self.height.round_up(height), self.width.round_up(width)

    def padded_frames(self, num_frames: int) -> int:
        """Smallest accepted number of frames that is at least `num_frames`."""
        return min(lengths.round_up(num_frames) for lengths in self.frames)

    def accepts_frames(self, num_frames: int) -> bool:
        return any(num_frames in lengths for lengths in self.frames)

    def first_frame_counts(self, count: int = 5) -> list[int]:
        """The smallest accepted numbers of frames, for messages."""
        return sorted({lengths.start + i * lengths.step for lengths in self.frames for i in range(count)})[:count]

    def needs_tiling(self, height: int, width: int) -> bool:
        return self.untiled_side is not None and (height, width) != (self.untiled_side, self.untiled_side)


def _video(frames: Lengths | tuple[Lengths, ...], side: int, **options: Any) -> VideoGeometry:
    """Geometry of a model whose height and width are multiples of `side`."""
    frames = frames if isinstance(frames, tuple) else (frames,)
    return VideoGeometry(frames, Lengths(side, side), Lengths(side, side), **options)


def _halved_per_level(channels: tuple[int, ...] | list[int]) -> int:
    return 2 ** (len(channels) - 1)


def _frame_select(vae: Any) -> VideoGeometry:
    patch_size, sample_size = vae.config.patch_size, vae.config.sample_size
    if vae.config.keep_head == "pooled":
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


def _image_model(vae: Any) -> VideoGeometry:
    for name in ("block_out_channels", "down_block_out_channels", "encoder_block_out_channels", "ch_mult"):
        if vae.config.get(name) is not None:
            side = getattr(vae, "spatial_compression_ratio", None) or _halved_per_level(vae.config[name])
            return _video(Lengths(1), side, per_frame=True)
    return probe_geometry(vae)


def _causal(vae: Any) -> VideoGeometry:
    return _video(Lengths(1, vae.temporal_compression_ratio), vae.spatial_compression_ratio)


GEOMETRIES: dict[str, Callable[[Any], VideoGeometry]] = {
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


def geometry_of(vae: ModelMixin) -> VideoGeometry:
    """Sizes that an autoencoder takes: by the rule of its class, or by trying."""
    for name in class_names(vae):
        if name in GEOMETRIES:
            return GEOMETRIES[name](vae)
    return probe_geometry(vae)


# Finding out


_PROBED: WeakKeyDictionary[ModelMixin, VideoGeometry] = WeakKeyDictionary()


@torch.no_grad()
def probe_geometry(vae: ModelMixin) -> VideoGeometry:
    """Sends small clips of growing length through a model until the sizes it takes are known.

    Raises:
        ValueError: Fewer than two clips of up to 33 frames and 256 pixels a side come back with their own size.
    """
    if vae not in _PROBED:
        for side in PROBE_SIDES:
            for per_frame in (False, True):
                geometry = _probe_side(vae, side, per_frame)
                if geometry is not None:
                    _PROBED[vae] = geometry
                    return geometry
        raise ValueError(
            f"Cannot tell which sizes {type(vae).__name__} takes: of clips of 1 to {PROBE_FRAMES} frames and"
            f" {PROBE_SIDES} pixels a side, fewer than two came back with their own size."
        )
    return _PROBED[vae]


def _probe_side(vae: ModelMixin, side: int, per_frame: bool) -> VideoGeometry | None:
    trial = VideoGeometry((Lengths(1),), Lengths(side), Lengths(side), per_frame=per_frame)
    accepted = []
    for num_frames in range(1, 2 if per_frame else PROBE_FRAMES + 1):
        step = _probe_clip(vae, trial, num_frames, side)
        if step:
            accepted.append((num_frames, step))
        if _progression([num_frames for num_frames, _ in accepted], length=3):
            break
    frames = Lengths(1) if per_frame else _progression([num_frames for num_frames, _ in accepted])
    if not accepted or frames is None:
        return None
    step = accepted[0][1]
    smallest = step if _probe_clip(vae, trial, accepted[0][0], step) == step else side
    return VideoGeometry((frames,), Lengths(smallest, step), Lengths(smallest, step), per_frame=per_frame)


def _probe_clip(vae: ModelMixin, geometry: VideoGeometry, num_frames: int, side: int) -> int:
    """Pixels per latent of a clip that comes back whole, 0 for one that does not."""
    model = VideoAutoencoder(vae, geometry)
    clip = torch.linspace(-1, 1, side * side, device=_device_of(vae)).view(1, 1, 1, side, side)
    clip = clip.expand(1, 3, num_frames, side, side)
    try:
        latents = model.encode(clip).posterior.mode()
        model.decode(latents, clip.shape[2:])
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError):
        # A failed call leaves the state of its frames in some models.
        for name in ("_clear_conv_cache", "clear_cache"):
            getattr(vae, name, lambda: None)()
        return 0
    return side // latents.shape[-1] if latents.ndim == 5 and latents.shape[-1] else 0


def _progression(accepted: list[int], length: int = 2) -> Lengths | None:
    """The densest progression of `length` accepted numbers or more, and of no others, from the first one on."""
    for step in range(1, PROBE_FRAMES):
        candidates = range(accepted[0], accepted[-1] + 1, step) if accepted else ()
        if len(candidates) >= length and set(candidates) <= set(accepted):
            return Lengths(accepted[0], step)
    return None


# Calling a model


Posterior: TypeAlias = DiagonalGaussianDistribution | IdentityDistribution


class EncodedClip(NamedTuple):
    """What an encoder makes of a clip.

    Args:
        posterior: Posterior of latents `(batch, latent_channels, latent_frames, latent_height, latent_width)`; a
            single point for models that have none.
        keep_probs: Keep probability of every frame, `(batch, frames)`, of models that select frames.
    """

    posterior: Posterior
    keep_probs: torch.Tensor | None = None


def _device_of(vae: ModelMixin) -> torch.device:
    return next(vae.parameters()).device


class VideoAutoencoder:
    """Calls an autoencoder with clips, whatever its own signatures are.

    Args:
        vae: An autoencoder of diffusers, of this package or of that form.
        geometry: Sizes it takes; found out by default.
    """

    def __init__(self, vae: ModelMixin, geometry: VideoGeometry | None = None):
        self.vae: Any = vae
        self.names = class_names(vae)
        self.geometry = geometry or geometry_of(vae)

    def is_a(self, class_name: str) -> bool:
        return class_name in self.names

    @property
    def name(self) -> str:
        return type(self.vae).__name__

    # Encoding

    def encode(self, sample: torch.Tensor) -> EncodedClip:
        """
        Args:
            sample: Pixels in [-1, 1], `(batch, 3, frames, height, width)`, of a size that `geometry` accepts.
        """
        pixels = self._to_model_pixels(sample)
        if self.is_a("FrameSelectVAE"):
            posterior, keep_probs, _ = self.vae.encode(pixels, return_dict=False)
            return EncodedClip(posterior, keep_probs)
        if self.geometry.per_frame:
            images = pixels.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
            posterior = _join([self._encode_batch(batch) for batch in images.split(FRAMES_PER_BATCH)])
            parameters = posterior.parameters.unflatten(0, (len(sample), -1)).transpose(1, 2)
            return EncodedClip(type(posterior)(parameters))
        if self.geometry.one_clip_at_a_time:
            return EncodedClip(_join([self._encode_batch(clip) for clip in pixels.split(1)]))
        return EncodedClip(self._encode_batch(pixels))

    def _encode_batch(self, pixels: torch.Tensor) -> Posterior:
        if self.is_a("AutoencoderVidTok") and self.vae.is_causal:
            # Its `forward` pads the first frame so; its `encode` leaves that to the caller.
            first = pixels[:, :, :1].expand(-1, -1, self.vae.temporal_compression_ratio - 1, -1, -1)
            pixels = torch.cat([first, pixels], dim=2)
        output = self.vae.encode(pixels)
        for field in ("latent_dist", "latents", "latent"):
            if getattr(output, field, None) is not None:
                output = getattr(output, field)
                break
        output = output[0] if isinstance(output, tuple) else output
        return IdentityDistribution(output) if isinstance(output, torch.Tensor) else output

    # Decoding

    def decode(
        self,
        latents: torch.Tensor,
        size: tuple[int, ...] | torch.Size,
        decode_timestep: float = 0.0,
        keep_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            latents: `(batch, latent_channels, latent_frames, latent_height, latent_width)`.
            size: `(frames, height, width)` of the clip that was encoded.
            decode_timestep: Noise level told to decoders that are conditioned on one.
            keep_mask: Frames to decode from their latents, bool `(batch, frames)`, for models that select frames.

        Returns:
            Pixels `(batch, 3, *size)`, float32, as the model makes them: about [-1, 1], not clamped.

        Raises:
            ValueError: The model returned another size.
        """
        latents = latents if self._casts_itself() else latents.to(self.vae.dtype)
        if keep_mask is not None:
            pixels = self.vae.decode(latents, keep_mask=keep_mask).sample
        elif self.geometry.one_clip_at_a_time:
            pixels = torch.cat([self._decode_batch(clip, size, decode_timestep) for clip in latents.split(1)])
        elif self.geometry.per_frame and not self._decodes_clips():
            images = latents.transpose(1, 2).flatten(0, 1)  # (B * T, C, h, w)
            decoded = [self._decode_batch(batch, size, decode_timestep) for batch in images.split(FRAMES_PER_BATCH)]
            pixels = torch.cat(decoded).unflatten(0, (len(latents), -1)).transpose(1, 2)
        elif self.geometry.per_frame:
            clips = [clip.transpose(0, 1) for clip in latents]  # (T, C, h, w) each
            decoded = [self._decode_batch(clip, size, decode_timestep) for clip in clips]
            pixels = torch.stack(decoded).transpose(1, 2)
        else:
            pixels = self._decode_batch(latents, size, decode_timestep)
        pixels = self._from_model_pixels(pixels)
        if pixels.shape[2:] != tuple(size):
            raise ValueError(
                f"{self.name} was given a clip of (frames, height, width) = {tuple(size)} and returned one of"
                f" {tuple(pixels.shape[2:])}."
            )
        return pixels

    def _decodes_clips(self) -> bool:
        return "num_frames" in inspect.signature(self.vae.decode).parameters

    def _decode_batch(self, latents: torch.Tensor, size: tuple[int, ...], decode_timestep: float) -> torch.Tensor:
        options: dict[str, Any] = {}
        if self.is_a("AutoencoderKL3D"):
            options = dict(zip(("num_frames", "height", "width"), size, strict=True))
        elif self.geometry.per_frame and self._decodes_clips():
            options["num_frames"] = size[0]
        if self.vae.config.get("timestep_conditioning"):
            options["temb"] = torch.full((len(latents),), decode_timestep, device=latents.device, dtype=latents.dtype)
        output = self.vae.decode(latents, **options)
        output = getattr(output, "sample", output)
        output = output[0] if isinstance(output, tuple) else output
        return output.transpose(1, 2) if self.is_a("AutoencoderKLAllegro") else output  # that one puts frames first

    # Pixels

    def _to_model_pixels(self, sample: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            if name in PIXEL_STATISTICS:
                mean, std = (sample.new_tensor(values).view(1, 3, 1, 1, 1) for values in PIXEL_STATISTICS[name])
                sample = ((sample + 1) / 2 - mean) / std
        if self._takes_alpha():
            sample = torch.cat([sample, torch.ones_like(sample[:, :1])], dim=1)
        return sample if self._casts_itself() else sample.to(self.vae.dtype)

    def _from_model_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.float()
        if self._takes_alpha():
            pixels = pixels[:, :3]
        for name in self.names:
            if name in PIXEL_STATISTICS:
                mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1, 1) for values in PIXEL_STATISTICS[name])
                pixels = (pixels * std + mean) * 2 - 1
        return pixels

    def _casts_itself(self) -> bool:
        return any(name in CASTING_MODELS for name in self.names)

    def _takes_alpha(self) -> bool:
        channels = self.vae.config.get("input_channels") or self.vae.config.get("in_channels")
        return channels == 4 and any(name.startswith("AutoencoderKLQwenImage") for name in self.names)

    @contextmanager
    def tiling(self, height: int, width: int) -> Iterator[None]:
        """Turns tiling on for models that cannot take frames of this size without it, and off again afterwards."""
        if not self.geometry.needs_tiling(height, width) or self.vae.use_tiling:
            yield
            return
        if self.is_a("AutoencoderKLAllegro"):
            self.vae.enable_tiling()
        else:
            self.vae.enable_tiling(tile_sample_size=self.vae.config.sample_size)
        try:
            yield
        finally:
            self.vae.disable_tiling()


def _join(posteriors: list[Posterior]) -> Posterior:
    if len(posteriors) == 1:
        return posteriors[0]
    return type(posteriors[0])(torch.cat([posterior.parameters for posterior in posteriors]))


# Padding


def pad_clip(sample: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Repeats the last frame, row and column of `(batch, channels, frames, height, width)` until it has `size`."""
    for dim, length in zip((2, 3, 4), size, strict=True):
        if sample.shape[dim] != length:
            index = torch.arange(length, device=sample.device).clamp(max=sample.shape[dim] - 1)
            sample = sample.index_select(dim, index)
    return sample


def crop_clip(sample: torch.Tensor, size: tuple[int, ...] | torch.Size) -> torch.Tensor:
    """Inverse of `pad_clip`."""
    num_frames, height, width = size
    return sample[:, :, :num_frames, :height, :width]
