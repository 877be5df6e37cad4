r"""One way to call every image and video autoencoder.

Autoencoders disagree about batching and pixel range, about what `encode` returns and what `decode` needs.
`VideoAutoencoder` hides that behind `encode` and `decode` on `(batch, 3, frames, height, width)` pixels in [-1, 1].
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from diffusers import ModelMixin
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution, IdentityDistribution

from .geometry import VideoGeometry
from .geometry_rules import class_names


FRAMES_PER_BATCH = 8

# Pixels that a model wants as (x - mean) / std of [0, 1] values, where the usual is [-1, 1].
PIXEL_STATISTICS = {"AutoencoderKLMiniMaxH3": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}

# Models that map and cast pixels themselves: they get float32, since half precision is too coarse to shift pixels in.
CASTING_MODELS = ("AutoencoderKL3D", "FrameSelectVAE", "AutoencoderKLMiniMaxH3")


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


class VideoAutoencoder:
    """Calls an autoencoder with clips, whatever its own signatures are.

    Args:
        vae: An autoencoder of diffusers, of this package or of that form.
        geometry: Sizes it takes; `open_autoencoder` finds them out.

    Attributes:
        frames_per_batch: Frames that image models take as one batch.
        tiled: Whether frames run in tiles although the model takes them whole, to save memory.
    """

    def __init__(self, vae: ModelMixin, geometry: VideoGeometry) -> None:
        self.vae: Any = vae
        self.names = class_names(vae)
        self.geometry = geometry
        self.frames_per_batch = FRAMES_PER_BATCH
        self.tiled = False
        self._num_tiling = 0

    def is_a(self, class_name: str) -> bool:
        return class_name in self.names

    @property
    def name(self) -> str:
        return type(self.vae).__name__

    @property
    def is_frame_wise(self) -> bool:
        """Whether every frame is an image of its own, both ways, so that chunks of a clip change nothing."""
        return self.geometry.per_frame and not self._decodes_clips()

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
            posterior = _join([self._encode_batch(batch) for batch in images.split(self.frames_per_batch)])
            parameters = posterior.parameters.unflatten(0, (len(sample), -1)).transpose(1, 2)
            return EncodedClip(type(posterior)(parameters))
        if self.geometry.one_clip_at_a_time:
            return EncodedClip(_join([self._encode_batch(clip) for clip in pixels.split(1)]))
        return EncodedClip(self._encode_batch(pixels))

    def _encode_batch(self, pixels: torch.Tensor) -> Posterior:
        if self._takes_images_as_clips():
            posterior = self.vae.encode(pixels.unsqueeze(2)).latent_dist
            return type(posterior)(posterior.parameters.squeeze(2))
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
        elif self.is_frame_wise:
            images = latents.transpose(1, 2).flatten(0, 1)  # (B * T, C, h, w)
            decoded = [
                self._decode_batch(batch, size, decode_timestep) for batch in images.split(self.frames_per_batch)
            ]
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
        if self._takes_images_as_clips():
            return self.vae.decode(latents.unsqueeze(2)).sample.squeeze(2)
        output = self.vae.decode(latents, **options)
        output = getattr(output, "sample", output)
        output = output[0] if isinstance(output, tuple) else output
        return output.transpose(1, 2) if self.is_a("AutoencoderKLAllegro") else output  # that one puts frames first

    def _takes_images_as_clips(self) -> bool:
        return self.is_a("AutoencoderKLQwenImage21")

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

    @property
    def can_tile(self) -> bool:
        """Whether frames can run in tiles and do not yet."""
        return getattr(self.vae, "use_tiling", None) is False

    @contextmanager
    def tiling(self, height: int, width: int) -> Iterator[None]:
        """Turns tiling on where frames of this size need it, or `tiled` asks for it, and off again afterwards.

        Encoding and decoding streams overlap: tiling stays on until the last of them has ended.
        """
        is_needed = self.tiled or self.geometry.needs_tiling(height, width)
        if not is_needed or not (self.can_tile or self._num_tiling):
            yield
            return
        if not self._num_tiling:
            self.vae.enable_tiling()
        self._num_tiling += 1
        try:
            yield
        finally:
            self._num_tiling -= 1
            if not self._num_tiling:
                self.vae.disable_tiling()


def _join(posteriors: list[Posterior]) -> Posterior:
    if len(posteriors) == 1:
        return posteriors[0]
    return type(posteriors[0])(torch.cat([posterior.parameters for posterior in posteriors]))
