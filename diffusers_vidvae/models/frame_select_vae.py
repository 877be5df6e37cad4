r"""A video autoencoder that learns which frames to keep.

Architecture of https://github.com/floatingtrees/dynamic-frame-compression/blob/2150c20/autoencoder.py, with every
frame accounted for: decoded clips have the length of the clips that were encoded, and clips of one batch do not
influence each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from .clip_windows import clip_windows, cut_clip, join_windows, stack_padded, stream_windows
from .convolution_adapters import ConvolutionAdapterMixin
from .factored_attention import RotaryEmbedding
from .frame_fill import FILLS, WienerFill, clip_lengths, count_fill_features, make_fill
from .frame_select_coders import FrameSelectDecoder, FrameSelectEncoder
from .frame_selection import (
    FrameSelector,
    PackedFrames,
    check_frame_mask,
    check_masks,
    check_selection,
    pack_frames,
    select_frames,
    unpack_frames,
)
from .latent_normalization import LatentNormalizationMixin
from .pixel_range import from_levels, from_pixel_range, to_levels, to_pixel_range
from .single_file import SingleFileMixin
from .tiling import Tile, TileBlend, TileGrid


KEEP_HEADS = ("latent", "pooled", "motion")

# More at once need memory, and more of it than caches hold.
TILES_PER_BATCH = 4


@dataclass
class FrameSelectEncoderOutput(BaseOutput):
    r"""Output of `FrameSelectVAE.encode`.

    Args:
        latent_dist: Posterior with parameters `(batch, 2 * latent_channels, frames, height, width)`.
        keep_probs: Probability that a frame is worth keeping, float32 `(batch, frames)`; 0 on padding.
        keep_logits: The logits of `keep_probs`, float32 `(batch, frames)`; 0 on padding.
    """

    latent_dist: DiagonalGaussianDistribution
    keep_probs: torch.Tensor
    keep_logits: torch.Tensor


@dataclass
class FrameSelectOutput(BaseOutput):
    r"""Output of `FrameSelectVAE.forward`.

    Args:
        sample: Reconstruction, `(batch, channels, frames, height, width)` in [-1, 1].
        latent_dist: Posterior of the latents.
        keep_probs: `(batch, frames)`, float32.
        keep_mask: The frames that were decoded from their latents, bool `(batch, frames)`.
        keep_logits: `(batch, frames)`, float32.
    """

    sample: torch.Tensor
    latent_dist: DiagonalGaussianDistribution
    keep_probs: torch.Tensor
    keep_mask: torch.Tensor
    keep_logits: torch.Tensor


class FrameSelectVAE(
    ModelMixin,
    AutoencoderMixin,
    ConfigMixin,
    AttentionMixin,
    ConvolutionAdapterMixin,
    SingleFileMixin,
    LatentNormalizationMixin,
):
    r"""Autoencoder that gives every frame a latent and a keep probability, and decodes clips from kept frames alone.

    Frames that are not kept are replaced by a learned token, and the decoder fills them in from their neighbours.
    Pixels are `(batch, channels, frames, height, width)` in [-1, 1]; latents are
    `(batch, latent_channels, frames, height / patch_size, width / patch_size)`, one latent frame per frame.

    The defaults are the published model of https://github.com/floatingtrees/dynamic-frame-compression
    (170,631,304 parameters). Clips longer than `clip_num_frames` run in windows of that length.

    Args:
        sample_size: Height and width the model was trained at, in pixels.
        in_channels: Pixel channels.
        patch_size: Side of a patch, in pixels; a multiple of `2 ** refiner_levels`.
        latent_channels: Latent channels of a patch.
        num_encoder_layers: Blocks of the encoder.
        num_decoder_layers: Blocks of the decoder.
        num_attention_heads: Heads of every attention.
        attention_head_dim: Channels of a head.
        ff_inner_dim: Inner width of the MLPs.
        max_num_frames: Longest window the model takes, in frames.
        clip_num_frames: Length of the windows that long clips are cut into, the training length.
        unpatch_channels: Full-resolution features per pixel channel, given to the refiner.
        refiner_channels: Width of the refiner's first level; doubles with every level.
        refiner_levels: Times the refiner halves height and width; 0 for no refiner.
        pixel_range: Lowest and highest pixel value inside the model; [-1, 1] outside is mapped to it.
        latents_mean: Per-channel mean of the latents over a data set, for `normalize_latents`.
        latents_std: Per-channel standard deviation, likewise.
        hidden_size: Width of the tokens; by default the number of values in a patch.
        patch_norm: Layer norm on the pixels of a patch. It hides brightness and contrast of flat patches from the
            encoder; the published model has it.
        rope_type: `"raster"` numbers tokens row by row; `"axial"` rotates by row and column, for any size.
        keep_head: `"latent"` weighs every token position of the latent mean and so fixes the number of tokens;
            `"pooled"` reads pooled tokens, for any size; `"motion"` how much they change from frame to frame.
        refiner_norm: Statistics of the refiner's group norms over a `"clip"` or over each `"frame"`.
        fill: What the decoder reads in the place of dropped frames: a learned `"token"`, or `"interpolate"` for the
            blend of the kept frames before and after, with how much they differ and how far they are.
            `"wiener"` for the best linear estimate from all kept frames, with what is unknown of it.
        cycle_channels: Last latent channels whose content takes turns from frame to frame, see `ChannelCycle`; 0 with
            `fill="token"`.
        cycle_length: Frames after which it is the first group's turn again.
        filter_size: Frames that a `TemporalFilter` mixes in the latents, an odd number; above 1 needs `fill="wiener"`.
        decoder_context: Whether the decoder's tokens start from the latents of the 3x3 tokens around them.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["FactoredAttentionBlock", "Refiner"]
    _repeated_blocks = ["FactoredAttentionBlock"]
    _skip_layerwise_casting_patterns = ["norm", "patch_embed", "to_mean", "to_variance", "keep_head", "to_pixels"]
    _group_offload_block_modules = ["encoder", "fill_token", "decoder"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        in_channels: int = 3,
        patch_size: int = 16,
        latent_channels: int = 96,
        num_encoder_layers: int = 9,
        num_decoder_layers: int = 12,
        num_attention_heads: int = 8,
        attention_head_dim: int = 64,
        ff_inner_dim: int = 1536,
        max_num_frames: int = 64,
        clip_num_frames: int = 32,
        unpatch_channels: int = 4,
        refiner_channels: int = 16,
        refiner_levels: int = 3,
        pixel_range: tuple[float, float] = (0.0, 1.0),
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        hidden_size: int | None = None,
        patch_norm: bool = True,
        rope_type: str = "raster",
        keep_head: str = "latent",
        refiner_norm: str = "clip",
        fill: str = "token",
        cycle_channels: int = 0,
        cycle_length: int = 3,
        filter_size: int = 1,
        decoder_context: bool = False,
    ):
        super().__init__()
        self._check_config()
        self.spatial_compression_ratio = patch_size
        self.temporal_compression_ratio = 1

        shared: dict[str, Any] = {
            "patch_size": patch_size,
            "hidden_size": hidden_size or in_channels * patch_size**2,
            "num_attention_heads": num_attention_heads,
            "attention_head_dim": attention_head_dim,
            "ff_inner_dim": ff_inner_dim,
        }
        self.temporal_rope = RotaryEmbedding(attention_head_dim)
        self.spatial_rope = RotaryEmbedding(attention_head_dim, rope_type)
        self.encoder = FrameSelectEncoder(
            in_channels,
            patch_norm=patch_norm,
            num_layers=num_encoder_layers,
            latent_channels=latent_channels,
            cycle_channels=cycle_channels,
            cycle_length=cycle_length,
            filter_size=filter_size,
            keep_head=keep_head,
            num_tokens=(sample_size // patch_size) ** 2,
            **shared,
        )
        self.decoder = FrameSelectDecoder(
            count_fill_features(fill, self.encoder.cycle),
            context=decoder_context,
            num_layers=num_decoder_layers,
            out_channels=in_channels,
            unpatch_channels=unpatch_channels,
            refiner_channels=refiner_channels,
            refiner_levels=refiner_levels,
            refiner_norm=refiner_norm,
            **shared,
        )
        self.fill_token = make_fill(fill, self.encoder.cycle, clip_num_frames)

        self.use_slicing = False
        self.use_tiling = False
        self.tile_sample_size, self.tile_overlap = self.usual_tile
        self.tiles_per_batch = TILES_PER_BATCH

    def _check_config(self) -> None:
        config = self.config
        if config.sample_size % config.patch_size:
            raise ValueError(
                f"`sample_size` must be a multiple of `patch_size`, got {config.sample_size} and {config.patch_size}."
            )
        if config.refiner_levels < 0 or config.patch_size % 2**config.refiner_levels:
            raise ValueError(
                f"`patch_size` must be a multiple of 2 ** `refiner_levels`, which is at least 0, got"
                f" {config.patch_size} and {config.refiner_levels} levels."
            )
        if config.clip_num_frames > config.max_num_frames:
            raise ValueError(
                f"`clip_num_frames` must be at most `max_num_frames`, got {config.clip_num_frames} and"
                f" {config.max_num_frames}."
            )
        if config.keep_head not in KEEP_HEADS:
            raise ValueError(f"`keep_head` must be one of {KEEP_HEADS}, got {config.keep_head!r}.")
        if config.refiner_norm not in ("clip", "frame"):
            raise ValueError(f"`refiner_norm` must be one of ('clip', 'frame'), got {config.refiner_norm!r}.")
        if config.fill not in FILLS:
            raise ValueError(f"`fill` must be one of {FILLS}, got {config.fill!r}.")
        if not 0 <= config.cycle_channels < config.latent_channels or config.cycle_channels and config.fill == "token":
            raise ValueError(
                f"`cycle_channels` must be below the {config.latent_channels} latent channels, and 0 if `fill` is"
                f" 'token', got {config.cycle_channels} and {config.fill!r}."
            )
        if config.cycle_length < 1:
            raise ValueError(f"`cycle_length` must be at least 1, got {config.cycle_length}.")
        if config.filter_size < 1 or config.filter_size % 2 == 0 or config.filter_size > 1 and config.fill != "wiener":
            raise ValueError(
                f"`filter_size` must be odd, and 1 unless `fill` is 'wiener', got {config.filter_size} and"
                f" {config.fill!r}."
            )

    @property
    def takes_any_size(self) -> bool:
        r"""Whether frames may have any multiples of the patch size as height and width, without tiles."""
        return self.config.keep_head != "latent"

    @property
    def usual_tile(self) -> tuple[int, float]:
        r"""Side in pixels, and overlap as a fraction of it, of the tiles that large frames are best cut into.

        Rows and columns that are told apart by rotation alone go on beyond the size that the model was trained at:
        twice the side costs no quality and a quarter less time, since less is computed twice. Other models see what
        they were trained at.
        """
        if self.takes_any_size and self.config.rope_type == "axial":
            return 2 * self.config.sample_size, 0.125
        return self.config.sample_size, 0.25

    def enable_tiling(
        self,
        tile_sample_size: int | None = None,
        tile_overlap: float | None = None,
        tiles_per_batch: int = TILES_PER_BATCH,
    ) -> None:
        r"""Encodes and decodes frames in overlapping tiles, blended where they meet, so that any size fits the model.

        The latents of all tiles form one map. The keep probability of a frame is the mean over its tiles.

        Args:
            tile_sample_size: Side of a tile in pixels; by default that of `usual_tile`.
            tile_overlap: Overlap of neighbouring tiles as a fraction of the tile, in [0, 1); by default that of
                `usual_tile`.
            tiles_per_batch: Tiles that run at once; fewer need less memory.
        """
        tile_sample_size = tile_sample_size or self.usual_tile[0]
        tile_overlap = self.usual_tile[1] if tile_overlap is None else tile_overlap
        if tile_sample_size % self.config.patch_size:
            raise ValueError(
                f"`tile_sample_size` must be a multiple of the patch size {self.config.patch_size}, got"
                f" {tile_sample_size}."
            )
        if not 0 <= tile_overlap < 1:
            raise ValueError(f"`tile_overlap` must be in [0, 1), got {tile_overlap}.")
        if tiles_per_batch < 1:
            raise ValueError(f"`tiles_per_batch` must be at least 1, got {tiles_per_batch}.")
        super().enable_tiling()
        self.tile_sample_size = tile_sample_size
        self.tile_overlap = tile_overlap
        self.tiles_per_batch = tiles_per_batch

    # Encoding

    @apply_forward_hook
    def encode(
        self, sample: torch.Tensor, frame_mask: torch.Tensor | None = None, return_dict: bool = True
    ) -> FrameSelectEncoderOutput | tuple[DiagonalGaussianDistribution, torch.Tensor, torch.Tensor]:
        r"""Encodes every frame, and says how much worth keeping it is.

        Args:
            sample: Pixels in [-1, 1], or levels of uint8, `(batch, channels, frames, height, width)`. Height and
                width are multiples of the patch size; a model with a `"latent"` keep head takes `sample_size` only,
                unless tiling is on.
            frame_mask: Bool `(batch, frames)`, True for real frames, which come first, False for padding.
            return_dict: Whether to return a `FrameSelectEncoderOutput` instead of a tuple.

        Raises:
            ValueError: The shape does not fit the model, or a mask does not fit the clips.
        """
        self._check_sample(sample)
        frame_mask = check_frame_mask(frame_mask, sample.shape[0], sample.shape[2])

        parameters, keep_logits = self._map_clips(self._encode_windows, sample, frame_mask=frame_mask)
        keep_probs = keep_logits.sigmoid()
        if frame_mask is not None:
            parameters = parameters * frame_mask[:, None, :, None, None]
            keep_logits = keep_logits * frame_mask
            keep_probs = keep_probs * frame_mask

        latent_dist = DiagonalGaussianDistribution(parameters)
        if not return_dict:
            return latent_dist, keep_probs, keep_logits
        return FrameSelectEncoderOutput(latent_dist=latent_dist, keep_probs=keep_probs, keep_logits=keep_logits)

    @apply_forward_hook
    @torch.no_grad()
    def encode_stream(
        self, pieces: Iterable[torch.Tensor], clip_num_frames: int | None = None
    ) -> Iterator[FrameSelectEncoderOutput]:
        r"""Encodes a clip that arrives in pieces, window by window, in memory that does not grow with its length.

        Args:
            pieces: Consecutive frames in [-1, 1], or levels of uint8, in a quarter of the memory,
                `(batch, channels, t, height, width)`, any number in each.
            clip_num_frames: Length of the windows, at most `max_num_frames`; by default the model's.

        Yields:
            What `encode` gives for the new frames of every window, which are those of one window each but for the
            last; put together, those of `encode`.

        Raises:
            ValueError: The shape of a piece does not fit the model or the other pieces, or windows are too long.
        """
        clip_num_frames = self._check_clip_num_frames(clip_num_frames)
        checked = ((self._check_sample(piece),) for piece in pieces)
        for parameters, keep_logits in self._encode_windows(checked, clip_num_frames):
            yield FrameSelectEncoderOutput(
                latent_dist=DiagonalGaussianDistribution(parameters),
                keep_probs=keep_logits.sigmoid(),
                keep_logits=keep_logits,
            )

    def _encode_windows(
        self,
        pieces: Iterable[tuple[torch.Tensor]],
        clip_num_frames: int,
        frame_mask: torch.Tensor | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Parameters and keep logits of every window's new frames; `frame_mask` is that of a single window."""
        for window, (sample,) in stream_windows(pieces, clip_num_frames):
            parameters, keep_logits = self._encode_window(sample, frame_mask, window.start)
            num_seen = window.first_new - window.start
            yield parameters[:, :, num_seen:], keep_logits[:, num_seen:]

    def _encode_window(
        self, sample: torch.Tensor, frame_mask: torch.Tensor | None = None, first_frame: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.use_tiling:
            return self._encode_tile(sample, frame_mask, first_frame)

        ratio = self.config.patch_size
        grid = self._tile_grid(sample.shape[3] // ratio, sample.shape[4] // ratio)
        shape = (sample.shape[0], 2 * self.config.latent_channels, sample.shape[2], *grid.size)
        parameters = sample.new_empty(shape, dtype=self.dtype)
        blend = TileBlend(grid, parameters)
        probs = torch.zeros(sample.shape[0], sample.shape[2], device=sample.device)

        def encode(tiles: list[Tile]) -> tuple[torch.Tensor, torch.Tensor]:
            mask = None if frame_mask is None else frame_mask.repeat(len(tiles), 1)
            return self._encode_tile(torch.cat([tile.region(sample, ratio) for tile in tiles]), mask, first_frame)

        for tiles, (tile_parameters, tile_logits) in grid.run(encode, self.tiles_per_batch):
            for tile, values in zip(tiles, tile_parameters.chunk(len(tiles)), strict=True):
                blend.add(tile, values)
            probs += tile_logits.sigmoid().unflatten(0, (len(tiles), -1)).sum(dim=0) / len(grid)
        return parameters, torch.logit(probs, eps=1e-6)

    def _encode_tile(
        self, sample: torch.Tensor, frame_mask: torch.Tensor | None = None, first_frame: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = (side // self.config.patch_size for side in sample.shape[3:])
        if sample.dtype == torch.uint8:
            sample = from_levels(sample)
        # Mapped before the cast: half precision is too coarse to shift pixels in.
        sample = to_pixel_range(sample, self.config.pixel_range).to(self.dtype)
        temporal_rotary_emb, spatial_rotary_emb = self._rotary_embeddings(
            sample.shape[2], height, width, sample.device
        )
        parameters, keep_logits = self.encoder(
            sample, temporal_rotary_emb, spatial_rotary_emb, frame_mask, first_frame
        )
        parameters = parameters.permute(0, 3, 1, 2).unflatten(3, (height, width))  # (B, 2 * C, T, h, w)
        return parameters, keep_logits

    # Selection

    def select_frames(
        self,
        keep_probs: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        mode: str = "systematic",
        num_frames: int | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        r"""Chooses the frames to keep: at least one of every window, never padding.

        Clips longer than `clip_num_frames` are chosen from window by window, as `select_stream` does.

        Args:
            keep_probs: `(batch, frames)`, as `encode` gives them.
            frame_mask: Bool `(batch, frames)`; False for padding.
            mode: `"systematic"` keeps K frames at the mid-quantiles `(i + 1/2) / K` of the cumulative probability,
                at randomly shifted quantiles with a `generator`; `"top_k"` the K most probable frames; `"uniform"` K
                evenly spaced ones; `"threshold"` all above `threshold`; `"bernoulli"` each with its own probability.
            num_frames: K, at least the number of a clip's windows and at most the shortest clip's length.
            rate: K as a fraction of a clip's length, in (0, 1]. With neither, K is the rounded sum of probabilities.
            threshold: Probability, in [0, 1], above which `"threshold"` keeps a frame.
            generator: Source of randomness; a list gives every clip its own.

        Returns:
            Bool `(batch, frames)`, True for kept frames.

        Raises:
            ValueError: An unknown mode, a shape or threshold that does not fit, or a count that a clip or the mode
                does not allow.
        """
        check_selection(mode, num_frames, rate, threshold)
        if keep_probs.ndim != 2:
            raise ValueError(f"`keep_probs` must have shape (batch, frames), got {tuple(keep_probs.shape)}.")
        batch_size, total_frames = keep_probs.shape
        checked_mask = check_frame_mask(frame_mask, batch_size, total_frames)
        mask = torch.ones_like(keep_probs, dtype=torch.bool) if checked_mask is None else checked_mask
        if batch_size == 0 or total_frames <= self.config.clip_num_frames:
            return select_frames(keep_probs, mask, mode, num_frames, rate, threshold, generator)

        options = {"mode": mode, "num_frames": num_frames, "rate": rate, "threshold": threshold}
        generators = generator if isinstance(generator, list) else [generator] * batch_size
        if len(generators) != batch_size:
            raise ValueError(
                f"A list of generators must have one for each of the {batch_size} clips, got {len(generators)}."
            )
        keep_masks = [
            self._select_long(keep_probs[clip : clip + 1, :length], generators[clip], options)
            for clip, length in enumerate(mask.sum(dim=1).tolist())
        ]
        return stack_padded(keep_masks, total_frames)

    def _select_long(
        self, keep_probs: torch.Tensor, generator: torch.Generator | None, options: dict[str, Any]
    ) -> torch.Tensor:
        """Keep mask `(1, frames)` of a clip of several windows."""
        num_frames = keep_probs.shape[1]
        selector = FrameSelector(self.config.clip_num_frames, **options, generator=generator, total_frames=num_frames)
        windows = clip_windows(num_frames, self.config.clip_num_frames)
        return torch.cat([selector.select(keep_probs[:, window.first_new : window.stop]) for window in windows], dim=1)

    @torch.no_grad()
    def select_stream(
        self,
        encoded: Iterable[FrameSelectEncoderOutput],
        mode: str = "systematic",
        num_frames: int | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        total_frames: int | None = None,
        clip_num_frames: int | None = None,
    ) -> Iterator[tuple[FrameSelectEncoderOutput, torch.Tensor]]:
        r"""Chooses the frames to keep of a clip that is encoded window by window, at least one in every window.

        Args:
            encoded: What `encode_stream` yields.
            mode: As for `select_frames`, window by window.
            num_frames: Frames to keep of the whole clip, shared out among its windows by their lengths.
            rate: Share of the frames to keep of the whole clip, in (0, 1]. With neither, as many of every window as
                its keep probabilities add up to.
            threshold: As for `select_frames`.
            generator: As for `select_frames`.
            total_frames: Length of the clip, needed for `num_frames`.
            clip_num_frames: Length of the windows, if `encode_stream` was given another than the model's.

        Yields:
            What was encoded, as it came, and its keep mask, bool `(batch, frames)`.

        Raises:
            ValueError: As for `select_frames`; or the clip, once at its end, had another length than `total_frames`.
        """
        clip_num_frames = self._check_clip_num_frames(clip_num_frames)
        selector = FrameSelector(clip_num_frames, mode, num_frames, rate, threshold, generator, total_frames)
        for output in encoded:
            yield output, selector.select(output.keep_probs)
        selector.check_length()

    def pack_frames(
        self, latents: torch.Tensor, keep_mask: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> PackedFrames:
        r"""Moves the kept latent frames of every clip to the front and says how far apart they were.

        Args:
            latents: `(batch, latent_channels, frames, height, width)`.
            keep_mask: Bool `(batch, frames)`, at least one True in every row.
            frame_mask: Bool `(batch, frames)`; False for padding.

        Raises:
            ValueError: A mask has another shape, or keeps no frame of a clip.
        """
        keep_mask, checked_mask = check_masks(keep_mask, frame_mask, latents.shape[0], latents.shape[2])
        return pack_frames(latents, keep_mask, checked_mask)

    def unpack_frames(self, packed: PackedFrames) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        r"""Inverse of `pack_frames` on kept frames; dropped frames come back as zeros.

        Returns:
            latents `(batch, latent_channels, frames, height, width)`, keep_mask and frame_mask `(batch, frames)`.

        Raises:
            ValueError: Gaps lead beyond the end of their clip.
        """
        return unpack_frames(packed)

    # Decoding

    @apply_forward_hook
    def decode(
        self,
        latents: torch.Tensor,
        keep_mask: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        r"""Decodes a clip from the latents of its kept frames.

        Args:
            latents: `(batch, latent_channels, frames, height, width)`; those of dropped frames are not read.
            keep_mask: Bool `(batch, frames)`, True for frames to decode from their latents; by default all.
            frame_mask: Bool `(batch, frames)`, True for real frames, which come first, False for padding, whose
                pixels are returned as 0.
            return_dict: Whether to return a `DecoderOutput` instead of a tuple.

        Returns:
            Pixels `(batch, channels, frames, height, width)`, in [-1, 1] but for the model's errors: they are not
            clamped.

        Raises:
            ValueError: The shape does not fit the model, or a mask has another shape or keeps no frame of a clip.
        """
        self._check_latents(latents)
        if keep_mask is None:
            keep_mask = torch.ones(latents.shape[0], latents.shape[2], dtype=torch.bool, device=latents.device)
        keep_mask, frame_mask = check_masks(keep_mask, frame_mask, latents.shape[0], latents.shape[2])
        (sample,) = self._map_clips(self._decode_windows, latents, keep_mask, frame_mask=frame_mask)
        if frame_mask is not None:
            sample = sample * frame_mask[:, None, :, None, None]
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    @torch.no_grad()
    def decode_stream(
        self,
        pieces: Iterable[tuple[torch.Tensor, torch.Tensor]],
        clip_num_frames: int | None = None,
        as_levels: bool = False,
    ) -> Iterator[torch.Tensor]:
        r"""Decodes a clip that arrives in pieces, window by window, in memory that does not grow with its length.

        Args:
            pieces: Latents and keep masks of consecutive frames, `(batch, latent_channels, t, height, width)` and
                bool `(batch, t)`, any number in each; latents of dropped frames are not read.
            clip_num_frames: Length of the windows, at most `max_num_frames`; by default the model's.
            as_levels: Whether pixels are given as levels of uint8, in a quarter of the memory.

        Yields:
            Pixels `(batch, channels, t, height, width)` of the new frames of every window; put together, those of
            `decode`.

        Raises:
            ValueError: A shape does not fit the model or the other pieces, windows are too long, or one keeps no
                frame.
        """
        clip_num_frames = self._check_clip_num_frames(clip_num_frames)
        checked = (self._check_piece(*piece) for piece in pieces)
        for (sample,) in self._decode_windows(checked, clip_num_frames, as_levels=as_levels):
            yield sample

    def _decode_windows(
        self,
        pieces: Iterable[tuple[torch.Tensor, torch.Tensor]],
        clip_num_frames: int,
        frame_mask: torch.Tensor | None = None,
        as_levels: bool = False,
    ) -> Iterator[tuple[torch.Tensor]]:
        """Pixels of every window's new frames; `frame_mask` is that of a single window."""
        for window, (latents, keep_mask) in stream_windows(pieces, clip_num_frames):
            if not keep_mask.any(dim=1).all():
                raise ValueError(
                    f"`keep_mask` must keep at least one frame in every window of {clip_num_frames}, all of frames"
                    f" {window.start} to {window.stop - 1} are dropped."
                )
            latents = latents.to(self.dtype)
            sample = self._decode_window(latents, keep_mask, frame_mask, window.start, as_levels)
            yield (sample[:, :, window.first_new - window.start :],)

    def _decode_window(
        self,
        latents: torch.Tensor,
        keep_mask: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        first_frame: int = 0,
        as_levels: bool = False,
    ) -> torch.Tensor:
        def decode(tiles: list[Tile]) -> torch.Tensor:
            keep = keep_mask.repeat(len(tiles), 1)
            mask = None if frame_mask is None else frame_mask.repeat(len(tiles), 1)
            regions = torch.cat([tile.region(latents) for tile in tiles])
            return self._decode_tile(self.fill(regions, keep, mask, first_frame), mask)

        if not self.use_tiling:
            sample = self._decode_tile(self.fill(latents, keep_mask, frame_mask, first_frame), frame_mask)
            return to_levels(sample) if as_levels else sample

        ratio = self.config.patch_size
        grid = self._tile_grid(*latents.shape[3:])
        shape = (latents.shape[0], self.config.in_channels, latents.shape[2], *(side * ratio for side in grid.size))
        sample = latents.new_empty(shape, dtype=torch.uint8 if as_levels else None)
        blend = TileBlend(grid, sample, scale=ratio)
        for tiles, pixels in grid.run(decode, self.tiles_per_batch):
            for tile, values in zip(tiles, pixels.chunk(len(tiles)), strict=True):
                blend.add(tile, values)
        return sample

    def fill(
        self,
        latents: torch.Tensor,
        keep_mask: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        first_frame: int = 0,
    ) -> torch.Tensor:
        """What the decoder reads of a window that starts at `first_frame`, `(batch, features, frames, h, w)`."""
        if not isinstance(self.fill_token, WienerFill):
            return self.fill_token(latents, keep_mask, first_frame)
        lengths = clip_lengths(frame_mask, latents.shape[0], latents.shape[2], latents.device)
        return self.fill_token(latents, keep_mask, first_frame, self.encoder.filter_matrix(lengths, latents.shape[2]))

    def _decode_tile(self, latents: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
        num_frames, height, width = latents.shape[2:]
        temporal_rotary_emb, spatial_rotary_emb = self._rotary_embeddings(num_frames, height, width, latents.device)
        sample = self.decoder(latents, temporal_rotary_emb, spatial_rotary_emb, frame_mask)
        return from_pixel_range(sample, self.config.pixel_range)

    # Both ways

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        frame_mask: torch.Tensor | None = None,
        keep_mask: torch.Tensor | None = None,
    ) -> FrameSelectOutput | tuple:
        r"""Reconstructs clips from the frames in `keep_mask`, by default those of systematic selection.

        Args:
            sample: Pixels in [-1, 1], `(batch, channels, frames, height, width)`.
            sample_posterior: Whether to draw the latents from the posterior instead of taking its mode.
            return_dict: Whether to return a `FrameSelectOutput` instead of a tuple.
            generator: Source of the posterior's noise.
            frame_mask: Bool `(batch, frames)`; False for padding.
            keep_mask: Bool `(batch, frames)`; the frames to decode from their latents.
        """
        latent_dist, keep_probs, keep_logits = self.encode(sample, frame_mask, return_dict=False)
        latents = latent_dist.sample(generator=generator) if sample_posterior else latent_dist.mode()
        if keep_mask is None:
            keep_mask = self.select_frames(keep_probs.detach(), frame_mask)
        decoded = self.decode(latents, keep_mask, frame_mask, return_dict=False)[0]
        if not return_dict:
            return decoded, latent_dist, keep_probs, keep_mask, keep_logits
        return FrameSelectOutput(
            sample=decoded,
            latent_dist=latent_dist,
            keep_probs=keep_probs,
            keep_mask=keep_mask,
            keep_logits=keep_logits,
        )

    def _map_clips(
        self,
        run_windows: Callable[..., Iterator[tuple[torch.Tensor, ...]]],
        *clips: torch.Tensor,
        frame_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        """Runs a batch at once, or clip by clip when slicing, or where clips of different lengths need windows."""
        clip_num_frames = self.config.clip_num_frames
        batch_size, _, num_frames = clips[0].shape[:3]
        ragged_windows = frame_mask is not None and num_frames > clip_num_frames
        if batch_size <= 1 and frame_mask is None or not (self.use_slicing or ragged_windows):
            return join_windows(run_windows([clips], clip_num_frames, frame_mask))
        lengths = [num_frames] * batch_size if frame_mask is None else frame_mask.sum(dim=1).tolist()
        results = [
            join_windows(run_windows([tuple(cut_clip(x, clip, length) for x in clips)], clip_num_frames))
            for clip, length in enumerate(lengths)
        ]
        return tuple(stack_padded(parts, num_frames) for parts in zip(*results, strict=True))

    def _rotary_embeddings(self, num_frames: int, height: int, width: int, device: torch.device) -> tuple:
        return self.temporal_rope(1, num_frames, device), self.spatial_rope(height, width, device)

    def _tile_grid(self, height: int, width: int) -> TileGrid:
        """Tiles of a map of `height` x `width` tokens."""
        side = self.tile_sample_size // self.config.patch_size
        overlap = min(round(self.tile_overlap * side), side - 1)
        return TileGrid((height, width), (side, side), (overlap, overlap))

    # Checks

    def _check_clip_num_frames(self, clip_num_frames: int | None) -> int:
        """Length of the windows, which must not go beyond the positions that the model has learned."""
        if clip_num_frames is None:
            return self.config.clip_num_frames
        if not 1 <= clip_num_frames <= self.config.max_num_frames:
            raise ValueError(
                f"`clip_num_frames` must be from 1 to the model's `max_num_frames`, {self.config.max_num_frames}, got"
                f" {clip_num_frames}."
            )
        return clip_num_frames

    def _check_piece(self, latents: torch.Tensor, keep_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._check_latents(latents)
        if keep_mask.shape != (latents.shape[0], latents.shape[2]):
            raise ValueError(
                f"`keep_mask` must have shape (batch, frames) = {(latents.shape[0], latents.shape[2])}, got"
                f" {tuple(keep_mask.shape)}."
            )
        return latents, keep_mask.bool()

    def _check_sample(self, sample: torch.Tensor) -> torch.Tensor:
        if sample.ndim != 5 or sample.shape[1] != self.config.in_channels or sample.shape[2] < 1:
            raise ValueError(
                f"`sample` must have shape (batch, {self.config.in_channels}, frames, height, width) with at least one"
                f" frame, got {tuple(sample.shape)}."
            )
        height, width = sample.shape[3:]
        if height % self.config.patch_size or width % self.config.patch_size or min(height, width) == 0:
            raise ValueError(
                f"Height and width must be multiples of the patch size {self.config.patch_size}, got {height}x{width}."
            )
        self._check_size(height, width)
        return sample

    def _check_latents(self, latents: torch.Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels or 0 in latents.shape[2:]:
            raise ValueError(
                f"`latents` must have shape (batch, {self.config.latent_channels}, frames, height, width), got"
                f" {tuple(latents.shape)}."
            )
        self._check_size(*(side * self.config.patch_size for side in latents.shape[3:]))

    def _check_size(self, height: int, width: int) -> None:
        if self.takes_any_size:
            return
        size = self.config.sample_size
        if self.use_tiling and self.tile_sample_size != size:
            raise ValueError(
                f"This model's tiles must be {size}x{size}, got `tile_sample_size` {self.tile_sample_size}."
            )
        if (height, width) != (size, size) and not (self.use_tiling and min(height, width) >= size):
            raise ValueError(
                f"This model takes {size}x{size} frames, larger ones after `enable_tiling()`, got {height}x{width}."
            )
