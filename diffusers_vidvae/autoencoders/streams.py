r"""Clips of any length through an autoencoder, piece after piece.

What pieces mean depends on the model. `AutoencoderKL3D` carries a state from one to the next, so that they give the
result of the whole clip; `FrameSelectVAE` runs in windows of its own; to every other model each piece is a clip by
itself, which changes nothing for image models and the result of video models. `open_stream` chooses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from diffusers_vidvae.models.padding import crop_clip, pad_clip

from .memory import MemoryPlan
from .video_autoencoder import Posterior, VideoAutoencoder


class EncodedPiece(NamedTuple):
    """Latents of consecutive frames.

    Args:
        posterior: Posterior of latents `(batch, latent_channels, latent_frames, latent_height, latent_width)`.
        size: `(frames, height, width)` that these stand for, in pixels.
        keep_mask: Frames to decode from their latents, bool `(batch, frames)`, of models that select frames.
    """

    posterior: Posterior
    size: tuple[int, int, int]
    keep_mask: torch.Tensor | None = None


class LatentPiece(NamedTuple):
    """What is decoded: latents drawn from an `EncodedPiece`, with its size and mask."""

    latents: torch.Tensor
    size: tuple[int, int, int]
    keep_mask: torch.Tensor | None = None


class DecodedPiece(NamedTuple):
    """Pixels `(batch, 3, t, height, width)`, float32, about [-1, 1], and the mask that they were decoded with."""

    sample: torch.Tensor
    keep_mask: torch.Tensor | None = None


class ChunkStream:
    """Every piece is a clip of its own, padded to a size that the model takes."""

    def __init__(self, model: VideoAutoencoder) -> None:
        self.model = model

    def encode(
        self, pieces: Iterable[torch.Tensor], selection: dict[str, Any] | None = None
    ) -> Iterator[EncodedPiece]:
        """
        Args:
            pieces: Consecutive frames `(batch, 3, t, height, width)` in [-1, 1], on the model's device.
            selection: Arguments of `FrameSelectVAE.select_stream`; None keeps all frames.
        """
        for piece in pieces:
            size = self.model.geometry.padded_size(*piece.shape[2:])
            with self.model.tiling(*size[1:]):
                posterior = self.model.encode(pad_clip(piece, size)).posterior
            num_frames, height, width = piece.shape[2:]
            yield EncodedPiece(posterior, (num_frames, height, width))

    def decode(self, pieces: Iterable[LatentPiece], decode_timestep: float = 0.0) -> Iterator[DecodedPiece]:
        """
        Args:
            pieces: Consecutive latents.
            decode_timestep: Noise level told to decoders that are conditioned on one.
        """
        for piece in pieces:
            size = self.model.geometry.padded_size(*piece.size)
            with self.model.tiling(*size[1:]):
                sample = self.model.decode(piece.latents, size, decode_timestep)
            yield DecodedPiece(crop_clip(sample, piece.size), piece.keep_mask)


class CausalStream(ChunkStream):
    """`AutoencoderKL3D`, whose state makes one clip of the pieces."""

    def encode(
        self, pieces: Iterable[torch.Tensor], selection: dict[str, Any] | None = None
    ) -> Iterator[EncodedPiece]:
        ratio = self.model.vae.temporal_compression_ratio
        num_read = num_encoded = num_latents = 0
        side: tuple[int, ...] = ()

        def read() -> Iterator[torch.Tensor]:
            nonlocal num_read, side
            for piece in pieces:
                num_read, side = num_read + piece.shape[2], tuple(piece.shape[3:])
                yield pad_clip(piece, self.model.geometry.padded_size(*piece.shape[2:]))

        for parameters in self.model.vae.encode_stream(read()):
            # The first and the last latent frame may stand for fewer frames than the others.
            num_latents += parameters.shape[2]
            num_frames = min(num_latents * ratio - self.model.vae.num_missing_frames, num_read) - num_encoded
            num_encoded += num_frames
            yield EncodedPiece(DiagonalGaussianDistribution(parameters), (num_frames, *side))

    def decode(self, pieces: Iterable[LatentPiece], decode_timestep: float = 0.0) -> Iterator[DecodedPiece]:
        num_known = num_decoded = 0
        side: tuple[int, ...] = ()

        def read() -> Iterator[torch.Tensor]:
            nonlocal num_known, side
            for piece in pieces:
                num_known, side = num_known + piece.size[0], piece.size[1:]
                yield piece.latents

        for sample in self.model.vae.decode_stream(read()):
            num_frames = min(sample.shape[2], num_known - num_decoded)
            num_decoded += num_frames
            yield DecodedPiece(crop_clip(sample.float(), (num_frames, *side)))


class WindowStream(ChunkStream):
    """`FrameSelectVAE`, which cuts clips into windows of its own and selects frames of each.

    Args:
        model: The autoencoder.
        total_frames: Frames of the whole clip, which a budget of frames is shared out over, if known.
    """

    def __init__(self, model: VideoAutoencoder, total_frames: int | None = None) -> None:
        super().__init__(model)
        self.total_frames = total_frames

    def encode(
        self, pieces: Iterable[torch.Tensor], selection: dict[str, Any] | None = None
    ) -> Iterator[EncodedPiece]:
        vae, pieces = self.model.vae, iter(pieces)
        first = next(pieces)
        side = tuple(first.shape[3:])
        padded = self.model.geometry.padded_size(1, *side)[1:]
        with self.model.tiling(*padded):
            encoded = vae.encode_stream(pad_clip(p, (p.shape[2], *padded)) for p in chain([first], pieces))
            selected = zip(encoded, repeat(None), strict=False)
            if selection is not None:
                selected = vae.select_stream(encoded, total_frames=self.total_frames, **selection)
            for output, keep_mask in selected:
                yield EncodedPiece(output.latent_dist, (output.keep_probs.shape[1], *side), keep_mask)

    def decode(self, pieces: Iterable[LatentPiece], decode_timestep: float = 0.0) -> Iterator[DecodedPiece]:
        pieces = iter(pieces)
        first = next(pieces)
        padded = self.model.geometry.padded_size(*first.size)[1:]
        masks: deque[torch.Tensor | None] = deque()

        def read() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for piece in chain([first], pieces):
                masks.append(piece.keep_mask)
                everything = torch.ones(piece.latents.shape[0], piece.latents.shape[2], dtype=torch.bool)
                yield (
                    piece.latents,
                    everything.to(piece.latents.device) if piece.keep_mask is None else piece.keep_mask,
                )

        with self.model.tiling(*padded):
            for sample in self.model.vae.decode_stream(read()):
                size = (sample.shape[2], *first.size[1:])
                yield DecodedPiece(crop_clip(sample.float(), size), masks.popleft())


def open_stream(model: VideoAutoencoder, plan: MemoryPlan, total_frames: int | None = None) -> ChunkStream:
    r"""How clips run through a model, with the memory that is planned for it."""
    model.frames_per_batch, model.tiled = plan.frames_per_batch, plan.tiled
    if model.is_a("FrameSelectVAE"):
        return WindowStream(model, total_frames)
    # A whole clip is simpler, and to images cheaper, than a stream of one piece.
    fits_a_chunk = total_frames is not None and plan.chunk_frames is not None and total_frames <= plan.chunk_frames
    if model.is_a("AutoencoderKL3D") and plan.chunk_frames is not None and not fits_a_chunk:
        return CausalStream(model)
    return ChunkStream(model)


def rechunk(pieces: Iterable[torch.Tensor], num_frames: int | None) -> Iterator[torch.Tensor]:
    r"""Cuts a clip that comes in pieces `(B, C, t, H, W)` of any lengths into ones of `num_frames`, None for one."""
    ready: list[torch.Tensor] = []
    length = 0
    for piece in pieces:
        ready.append(piece)
        length += piece.shape[2]
        while num_frames is not None and length >= num_frames:
            joined = torch.cat(ready, dim=2) if len(ready) > 1 else ready[0]
            yield joined[:, :, :num_frames]
            length -= num_frames
            ready = [joined[:, :, num_frames:]] if length else []
    if ready:
        yield torch.cat(ready, dim=2) if len(ready) > 1 else ready[0]
