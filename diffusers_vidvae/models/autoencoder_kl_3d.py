r"""A causal 3D convolutional KL autoencoder for images and video.

Pixels are `(batch, channels, frames, height, width)` in [-1, 1]; latents are
`(batch, latent_channels, latent_frames, latent_height, latent_width)`, by default an eighth of height and width and a
quarter of the frames. Geometry and defaults follow the card of Linum's image-video-vae
(https://huggingface.co/Linum-AI/image-video-vae); its layer names and norms are not public.

- Every layer is causal in time and carries its last input frames as explicit state, which is passed through the
  functions and never stored on a module. Hence a clip in chunks, or as a stream, gives the result of the whole clip.
- A clip starts by repeating its first frame, so a still clip stays still in every layer: one frame stands for it, and
  a 3D convolution of it is the 2D convolution with the kernel summed over time. Images run that way.
- Norms see one position (`"rms"`) or one frame (`"group"`), never several frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from .causal_blocks import BlockProjection, State, make_norm, split_state, starts_clip
from .causal_coders import Decoder3D, Encoder3D, compression_ratios, divide_up
from .convolution_adapters import ConvolutionAdapterMixin
from .latent_normalization import LatentNormalizationMixin
from .padding import edge_pad
from .pixel_range import from_pixel_range, to_pixel_range
from .single_file import SingleFileMixin
from .tiling import Tile, TileBlend, TileGrid


@dataclass
class AutoencoderKL3DOutput(BaseOutput):
    r"""Output of `AutoencoderKL3D.forward`.

    Args:
        sample: Reconstruction, shaped as the input.
        latent_dist: Posterior of the latents, if asked for.
    """

    sample: torch.Tensor
    latent_dist: DiagonalGaussianDistribution | None = None


def kl_per_element(latent_dist: DiagonalGaussianDistribution) -> torch.Tensor:
    r"""Divergence of a posterior from the standard normal in nats per latent value, `(B,)`."""
    kl = 0.5 * (latent_dist.mean.square() + latent_dist.var - 1 - latent_dist.logvar)
    return kl.flatten(1).mean(dim=1)


# Entries of the configuration that are no arguments.
DERIVED_ENTRIES = (
    "z_dim",
    "scale_factor_temporal",
    "scale_factor_spatial",
    "temporal_compression_ratio",
    "spatial_compression_ratio",
    "timestep_conditioning",
)


class AutoencoderKL3D(
    ModelMixin,
    AutoencoderMixin,
    ConfigMixin,
    AttentionMixin,
    ConvolutionAdapterMixin,
    SingleFileMixin,
    LatentNormalizationMixin,
):
    r"""Causal 3D convolutional KL autoencoder for images and for video of any length.

    Pixels are `(batch, channels, frames, height, width)` in [-1, 1], any number of frames, sides of at least 8. Frames
    are padded to a multiple of 4 and sides to multiples of 8 by repeating the last ones, and decoding crops back, so
    `T` frames have `ceil(T / 4)` latent frames and an image, a clip of one frame, has one. Results do not depend on
    chunks, pieces of a stream or batch mates, but for float rounding. With the default configuration the encoder has
    170,071,072 parameters and the decoder 176,485,763.

    The encoder and the decoder may have different dtypes, for example `vae.encoder.to(torch.float32)` after loading
    in bfloat16: `encode` and `decode` cast their inputs to the dtype of their half, and return it.

    To compile, compile the halves, which `encode` and `decode` call:
    `vae.decoder.compile(fullgraph=True, dynamic=False)`. Each size then has code of its own, which PyTorch's default
    would replace by code for all sizes, where the CPU compiler of PyTorch 2.13 fails. The blocks differ in width and
    size, so `compile_repeated_blocks` makes many variants and needs `torch._dynamo.config.recompile_limit` raised
    to 64.

    Args:
        in_channels: Pixel channels.
        out_channels: Pixel channels of the reconstruction.
        latent_channels: Latent channels; the encoder gives mean and log variance of each.
        block_out_channels: Width of every level, full resolution first; the decoder mirrors them.
        layers_per_block: Residual blocks per level, one number or one for each level.
        decoder_layers_per_block: The same for the decoder, also full resolution first; by default as the encoder.
        mid_block_layers: Residual blocks between the last level and the latents.
        mid_block_attention: Attention within each frame after the first of them. It needs memory quadratic in the
            latent area and lets no overlap of tiles be exact.
        temporal_downsample: An entry for each level that ends in halved height and width, the first ones; true if it
            halves the frames, too.
        norm_type: `"rms"` over the channels of a position, or `"group"` over groups of channels of a frame.
        norm_num_groups: Groups of `"group"`.
        norm_eps: Added to the variance.
        shortcut_kernel_size: Kernel size of convolutional shortcuts where the width changes, 1 or 3.
        pixel_range: Lowest and highest pixel value inside the model; [-1, 1] outside is mapped to it.
        scaling_factor: Factor of normalised latents.
        latents_mean: Mean of each latent channel over a data set, for `normalize_latents`.
        latents_std: Standard deviation, likewise.
        first_frame_alone: Whether the first latent frame stands for one frame instead of 4, so that `4 * k + 1` frames
            have `k + 1` latent frames, as Wan, LTX and HunyuanVideo count them.
        linear_path: Whether latents and pixels are also linear in each other, block by block, beside the convolutions,
            see `set_linear_path`.
        linear_path_context: How many blocks to each side the linear path sees, so that blocks may overlap (H. Malvar
            and D. Staelin, "The LOT: transform coding without blocking effects", 1989).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock3D", "FrameAttention", "Downsample3D", "Upsample3D", "CausalConv3d"]
    _repeated_blocks = ["ResnetBlock3D"]
    _skip_layerwise_casting_patterns = ["norm", "conv_in", "conv_out"]
    _group_offload_block_modules = ["encoder", "decoder"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 16,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int | tuple[int, ...] = (2, 2, 4, 4),
        decoder_layers_per_block: int | tuple[int, ...] | None = None,
        mid_block_layers: int = 3,
        mid_block_attention: bool = False,
        temporal_downsample: tuple[bool, ...] = (False, True, True),
        norm_type: str = "rms",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        shortcut_kernel_size: int = 1,
        pixel_range: tuple[float, float] = (0.0, 1.0),
        scaling_factor: float = 1.0,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        first_frame_alone: bool = False,
        linear_path: bool = False,
        linear_path_context: int = 0,
    ):
        super().__init__()
        self._check_config()
        self.temporal_compression_ratio, self.spatial_compression_ratio, _ = compression_ratios(temporal_downsample)
        # Frames that the first latent frame lacks.
        self.num_missing_frames = self.temporal_compression_ratio - 1 if first_frame_alone else 0

        encoder_layers = self._per_level(layers_per_block)
        decoder_layers = self._per_level(decoder_layers_per_block or layers_per_block)
        shared: dict[str, Any] = {
            "latent_channels": latent_channels,
            "block_out_channels": block_out_channels,
            "mid_block_layers": mid_block_layers,
            "mid_block_attention": mid_block_attention,
            "temporal_downsample": temporal_downsample,
            "shortcut_kernel_size": shortcut_kernel_size,
            "norm": partial(make_norm, norm_type, norm_num_groups, norm_eps),
            "first_frame_alone": first_frame_alone,
            "linear_path": linear_path,
            "linear_path_context": linear_path_context,
        }
        self.encoder = Encoder3D(in_channels, layers_per_block=encoder_layers, **shared)
        self.decoder = Decoder3D(out_channels, layers_per_block=decoder_layers, **shared)
        self._set_reach(encoder_layers, decoder_layers)

        self.use_slicing = False
        self.use_tiling = False
        self.tile_sample_min_height = self.tile_sample_min_width = 256
        self.tile_sample_stride_height = self.tile_sample_stride_width = 192
        self.chunk_frames: int | None = None
        self.full_resolution_frames: int | None = None
        self._register_derived_entries()

    def _register_derived_entries(self) -> None:
        """Adds to the configuration, under their names for it, what pipelines of diffusers ask an autoencoder for."""
        latent_channels = self.config.latent_channels
        self.register_to_config(
            latents_mean=list(self.config.latents_mean or [0.0] * latent_channels),
            latents_std=list(self.config.latents_std or [1.0] * latent_channels),
            z_dim=latent_channels,
            scale_factor_temporal=self.temporal_compression_ratio,
            scale_factor_spatial=self.spatial_compression_ratio,
            temporal_compression_ratio=self.temporal_compression_ratio,
            spatial_compression_ratio=self.spatial_compression_ratio,
            timestep_conditioning=False,
        )

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        r"""Splits a configuration into arguments and others; derived entries follow from the arguments anew."""
        given = {name: value for name, value in config_dict.items() if name not in DERIVED_ENTRIES}
        return super().extract_init_dict(given, **kwargs)

    @property
    def temperal_downsample(self) -> list[bool]:
        r"""`config.temporal_downsample`, as pipelines of Wan spell it."""
        return list(self.config.temporal_downsample)

    @property
    def latents_mean(self) -> torch.Tensor:
        r"""`config.latents_mean` as a tensor, `(latent_channels,)`, which pipelines of LTX ask for."""
        return torch.tensor(self.config.latents_mean, device=self.device)

    @property
    def latents_std(self) -> torch.Tensor:
        r"""`config.latents_std` as a tensor, `(latent_channels,)`."""
        return torch.tensor(self.config.latents_std, device=self.device)

    def _per_level(self, layers: int | tuple[int, ...]) -> tuple[int, ...]:
        num_levels = len(self.config.block_out_channels)
        return (layers,) * num_levels if isinstance(layers, int) else tuple(layers)

    def _check_config(self) -> None:
        config = self.config
        num_levels = len(config.block_out_channels)
        for name in ("layers_per_block", "decoder_layers_per_block"):
            layers = config[name]
            if layers is not None and len(self._per_level(layers)) != num_levels:
                raise ValueError(f"`{name}` must have an entry for each of the {num_levels} levels, got {layers}.")
        if not 1 <= len(config.temporal_downsample) <= num_levels:
            raise ValueError(
                f"`temporal_downsample` must have 1 to {num_levels} entries, got {len(config.temporal_downsample)}."
            )
        if config.norm_type not in ("rms", "group"):
            raise ValueError(f"`norm_type` must be one of ('rms', 'group'), got {config.norm_type!r}.")
        if config.linear_path_context < 0 or (config.linear_path_context and not config.linear_path):
            raise ValueError(
                "`linear_path_context` must be at least 0, and 0 without `linear_path`, got"
                f" {config.linear_path_context}."
            )
        if config.shortcut_kernel_size not in (1, 3):
            raise ValueError(f"`shortcut_kernel_size` must be 1 or 3, got {config.shortcut_kernel_size}.")
        for name in ("latents_mean", "latents_std"):
            if config[name] is not None and len(config[name]) != config.latent_channels:
                raise ValueError(
                    f"`{name}` must have an entry for each of the {config.latent_channels} latent channels, got"
                    f" {len(config[name])}."
                )

    def _set_reach(self, encoder_layers: tuple[int, ...], decoder_layers: tuple[int, ...]) -> None:
        """Finds how far from a tile's edge values differ: latents of the encoder, pixels of the decoder."""
        num_resamplers = len(self.config.temporal_downsample)
        mid_reach = 2 * self.config.mid_block_layers
        reach = 1
        for index, num_layers in enumerate(encoder_layers):
            reach += 2 * num_layers
            if index < num_resamplers:
                reach = math.ceil((reach + 1) / 2)
        self.encoder_reach = max(reach + mid_reach + 1, self.config.linear_path_context)
        reach = 1 + mid_reach
        for index, num_layers in reversed(list(enumerate(decoder_layers))):
            reach += 2 * num_layers
            if index < num_resamplers:
                reach = 2 * reach + 1
        self.decoder_reach = max(reach + 1, self.config.linear_path_context * self.spatial_compression_ratio)

    # Settings: none changes a result by more than float rounding, except tiles that overlap too little.

    def enable_temporal_chunking(self, chunk_frames: int = 24, full_resolution_frames: int | None = None) -> None:
        r"""Encodes and decodes clips in chunks, so that memory does not grow with their length.

        Args:
            chunk_frames: Pixel frames of a chunk, a multiple of the temporal compression ratio (4).
            full_resolution_frames: Frames of a chunk that the full-resolution level, which needs most memory, takes at
                a time, at least 1, and each coarser level twice as many; all of them by default.
        """
        ratio = self.temporal_compression_ratio
        if chunk_frames < ratio or chunk_frames % ratio:
            raise ValueError(f"`chunk_frames` must be a positive multiple of {ratio}, got {chunk_frames}.")
        if full_resolution_frames is not None and full_resolution_frames < 1:
            raise ValueError(f"`full_resolution_frames` must be at least 1, got {full_resolution_frames}.")
        self.chunk_frames = chunk_frames
        self.full_resolution_frames = full_resolution_frames

    def disable_temporal_chunking(self) -> None:
        r"""Encodes and decodes clips whole."""
        self.chunk_frames = None
        self.full_resolution_frames = None

    def enable_tiling(
        self,
        tile_sample_size: int | tuple[int, int] = 256,
        tile_overlap: float | str = 0.25,
        *,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
    ) -> None:
        r"""Encodes and decodes frames larger than a tile in overlapping tiles, blended where they meet.

        Args:
            tile_sample_size: Side, or height and width, of a tile in pixels, multiples of the spatial ratio (8).
            tile_overlap: Least overlap of neighbours as a fraction of the tile, in [0, 1); or `"exact"` for
                `exact_tile_overlap` pixels, with which tiles change nothing.
            tile_sample_min_height: Height of a tile, as diffusers names it; an attribute, too.
            tile_sample_min_width: Width of a tile, likewise.
            tile_sample_stride_height: Most rows from a tile to the next, instead of the overlap, likewise.
            tile_sample_stride_width: Most columns from a tile to the next, likewise.
        """
        ratio = self.spatial_compression_ratio
        sides = (tile_sample_size,) * 2 if isinstance(tile_sample_size, int) else tuple(tile_sample_size)
        if len(sides) != 2 or any(side < ratio or side % ratio for side in sides):
            raise ValueError(f"`tile_sample_size` must be positive multiples of {ratio}, got {tile_sample_size}.")
        sides = tile_sample_min_height or sides[0], tile_sample_min_width or sides[1]
        exact = tile_overlap == "exact"
        if exact and min(sides) <= self.exact_tile_overlap:
            raise ValueError(
                f"Tiles must be larger than their exact overlap of {self.exact_tile_overlap} pixels, got {sides}."
            )
        if not exact and (isinstance(tile_overlap, str) or not 0 <= tile_overlap < 1):
            raise ValueError(f"`tile_overlap` must be in [0, 1) or 'exact', got {tile_overlap!r}.")
        overlaps = [
            self.exact_tile_overlap if exact else math.ceil(float(tile_overlap) * (side // ratio)) * ratio
            for side in sides
        ]
        height_stride = tile_sample_stride_height or max(ratio, sides[0] - overlaps[0])
        width_stride = tile_sample_stride_width or max(ratio, sides[1] - overlaps[1])
        _check_tile_axis("height", sides[0], height_stride, ratio)
        _check_tile_axis("width", sides[1], width_stride, ratio)
        super().enable_tiling()
        self.tile_sample_min_height, self.tile_sample_min_width = sides
        self.tile_sample_stride_height, self.tile_sample_stride_width = height_stride, width_stride

    @property
    def exact_tile_overlap(self) -> int:
        r"""Least overlap of tiles, in pixels, that covers the receptive field on both sides of a seam."""
        if self.config.mid_block_attention or self.config.norm_type == "group":
            raise ValueError("No overlap of tiles is exact with attention or group norms, which see the whole frame.")
        ratio = self.spatial_compression_ratio
        return 2 * ratio * max(self.encoder_reach, math.ceil(self.decoder_reach / ratio))

    # Encoding

    @apply_forward_hook
    def encode(
        self, x: torch.Tensor, return_dict: bool = True, check_finite: bool = False
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        r"""Encodes images or clips.

        Args:
            x: Pixels in [-1, 1], clips `(B, C, T, H, W)` or images `(B, C, H, W)`.
            return_dict: Whether to return an output object instead of a tuple.
            check_finite: Whether to refuse NaN and infinite pixels, which costs a pass over them.

        Returns:
            The distribution of the latents `(B, latent_channels, ceil(T / 4), ceil(H / 8), ceil(W / 8))`, of images
            without the axis of frames.

        Raises:
            ValueError: The shape or dtype does not fit, or values are not finite.
        """
        is_image = x.ndim == 4
        self._check_pixels(x, check_finite, is_image)
        x = x.unsqueeze(2) if is_image else x
        clips = x.split(1) if self.use_slicing else [x]
        parameters = join_clips([self._encode_frames(clip)[0] for clip in clips])
        posterior = DiagonalGaussianDistribution(parameters.squeeze(2) if is_image else parameters)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    @torch.no_grad()
    def encode_stream(self, pieces: Iterable[torch.Tensor], check_finite: bool = False) -> Iterator[torch.Tensor]:
        r"""Encodes a clip that arrives in pieces, with memory that does not grow with its length.

        Args:
            pieces: Consecutive frames in [-1, 1], `(B, C, t, H, W)`, any number in each.
            check_finite: Whether to refuse NaN and infinite pixels.

        Yields:
            Parameters of the latent distribution, `(B, 2 * latent_channels, t', h, w)`, as soon as they are known; put
            together, those of `encode`.

        Raises:
            ValueError: A shape or dtype does not fit, pieces differ in size, or values are not finite.
        """
        state: State = ()
        num_seen = num_encoded = 0
        rest = None
        for piece in pieces:
            self._check_pixels(piece, check_finite)
            num_seen += piece.shape[2]
            if rest is not None:
                _check_same_size(piece, rest)
                piece = torch.cat([rest, piece], dim=2)
            num_complete = (num_seen + self.num_missing_frames) // self.temporal_compression_ratio
            num_ready = max(0, self._num_frames(num_complete) - num_encoded)
            # Copied, so that a few frames do not hold on to a long piece.
            rest = piece[:, :, num_ready:].clone()
            if num_ready:
                num_encoded += num_ready
                parameters, state = self._encode_frames(piece[:, :, :num_ready], state)
                yield parameters
        if rest is not None and rest.shape[2]:
            # A clip that is shorter than a latent frame is a whole clip, and perhaps an image.
            yield self._encode_frames(rest, state or None)[0]

    def _encode_frames(self, x: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        """Encodes a clip to distribution parameters, or the next frames of a stream; every tile has a state."""
        num_frames, height, width = x.shape[2:]
        num_latents = self._num_latents(num_frames, at_start=starts_clip(state))
        chunks = self._plan_chunks(num_latents, at_start=starts_clip(state))
        height, width = (divide_up(side, self.spatial_compression_ratio) for side in (height, width))
        shape = (x.shape[0], 2 * self.config.latent_channels, num_latents, height, width)
        parameters = x.new_empty(shape, dtype=self.encoder.conv_in.conv.weight.dtype)

        tiles = self._plan_tiles(height, width)
        blends = [TileBlend(tiles, parameters, 1, self.encoder_reach, latents) for latents, _ in chunks]
        states = split_state(state, len(tiles))
        for index, tile in enumerate(tiles):
            tile_state = () if len(chunks) > 1 and state is None else states[index]
            for (_, frames), blend in zip(chunks, blends, strict=True):
                values, tile_state = self._encode_tile(x[:, :, frames], tile, tile_state, frames.stop - frames.start)
                blend.add(tile, values)
            states[index] = None if state is None else tile_state
        return parameters, tuple(states)

    def _encode_tile(
        self, frames: torch.Tensor, tile: Tile, state: State, num_frames: int
    ) -> tuple[torch.Tensor, State]:
        """Encodes a tile of a few frames, padded to `num_frames` unless they are an image."""
        ratio = self.spatial_compression_ratio
        frames = tile.region(frames, ratio)
        # Mapped before the cast, which would else lose levels.
        frames = to_pixel_range(frames, self.config.pixel_range).to(self.encoder.conv_in.conv.weight.dtype)
        height, width = ((axis.stop - axis.start) * ratio for axis in (tile.rows, tile.columns))
        if state is not None or frames.shape[2] > 1:
            frames = edge_pad(frames, 2, num_frames)
        frames = edge_pad(edge_pad(frames, 3, height), 4, width)
        frames = frames.contiguous(memory_format=torch.channels_last_3d)
        return self.encoder(frames, state, self.full_resolution_frames)

    # Decoding

    @apply_forward_hook
    def decode(
        self,
        z: torch.Tensor,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        return_dict: bool = True,
        check_finite: bool = False,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        r"""Decodes latents.

        Args:
            z: Latents as `encode` gives them, not normalised, `(B, latent_channels, T', h, w)`, or `(B,
                latent_channels, h, w)` of images.
            num_frames: Frames of the clip, of which its last latent frame may hold fewer than 4; by default all that
                the latents hold, `4 * T'`, or with `first_frame_alone` `4 * T' - 3`.
            height: Height to crop to; by default `8 * h`.
            width: Width to crop to; by default `8 * w`.
            return_dict: Whether to return an output object instead of a tuple.
            check_finite: Whether to refuse NaN and infinite latents.

        Returns:
            Pixels `(B, C, num_frames, height, width)`, or `(B, C, height, width)` of images, in [-1, 1] but for the
            model's errors: they are not clamped.

        Raises:
            ValueError: The latents' shape does not fit the model or the given size, or values are not finite.
        """
        is_image = z.ndim == 4
        self._check_latents(z, check_finite, is_image)
        z = z.unsqueeze(2) if is_image else z
        num_frames = self._cropped_frames(1 if is_image else num_frames, z.shape[2])
        height = self._cropped("height", height, z.shape[3])
        width = self._cropped("width", width, z.shape[4])
        clips = z.split(1) if self.use_slicing else [z]
        sample = join_clips([self._decode_latents(clip, num_frames, height, width)[0] for clip in clips])
        sample = sample.squeeze(2) if is_image else sample
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    @torch.no_grad()
    def decode_stream(
        self,
        pieces: Iterable[torch.Tensor],
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        check_finite: bool = False,
    ) -> Iterator[torch.Tensor]:
        r"""Decodes latents that arrive in pieces, with memory that does not grow with the length of the clip.

        Args:
            pieces: Consecutive latent frames, `(B, latent_channels, t', h, w)`, any number in each.
            num_frames: Frames of the whole clip; by default all that the latents hold.
            height: Height to crop to; by default `8 * h`.
            width: Width to crop to; by default `8 * w`.
            check_finite: Whether to refuse NaN and infinite latents.

        Yields:
            Pixels `(B, C, t, height, width)` of every piece; put together, those of `decode`.

        Raises:
            ValueError: A shape does not fit, or the pieces hold more or fewer latent frames than `num_frames` needs.
        """
        num_latents = None if num_frames is None else self._num_latents(num_frames)
        state: State = ()
        num_seen = 0
        first = None
        for piece in pieces:
            self._check_latents(piece, check_finite)
            first = piece[:, :, :1].clone() if first is None else first
            _check_same_size(piece, first)
            start = self._num_frames(num_seen)
            num_seen += piece.shape[2]
            if num_latents is not None and num_seen > num_latents:
                raise ValueError(f"{num_frames} frames have {num_latents} latent frames, got {num_seen} or more.")
            stop = self._num_frames(num_seen) if num_frames is None else min(self._num_frames(num_seen), num_frames)
            size = self._cropped("height", height, piece.shape[3]), self._cropped("width", width, piece.shape[4])
            sample, state = self._decode_latents(piece, stop - start, *size, state)
            yield sample
        if num_latents is not None and num_seen < num_latents:
            raise ValueError(f"{num_frames} frames have {num_latents} latent frames, got {num_seen}.")

    def _decode_latents(
        self, z: torch.Tensor, num_frames: int, height: int, width: int, state: State = None
    ) -> tuple[torch.Tensor, State]:
        """Decodes a clip and crops it, or the next latents of a stream; every tile has a state."""
        chunks = self._plan_chunks(z.shape[2], at_start=starts_clip(state))
        shape = (z.shape[0], self.config.out_channels, num_frames, height, width)
        sample = z.new_empty(shape, dtype=self.decoder.conv_in.conv.weight.dtype)

        tiles = self._plan_tiles(*z.shape[3:])
        scale, margin = self.spatial_compression_ratio, self.decoder_reach
        blends = [TileBlend(tiles, sample, scale, margin, frames) for _, frames in chunks]
        states = split_state(state, len(tiles))
        for index, tile in enumerate(tiles):
            tile_state = () if len(chunks) > 1 and state is None else states[index]
            for (latents, _), blend in zip(chunks, blends, strict=True):
                values, tile_state = self._decode_tile(z[:, :, latents], tile, tile_state)
                blend.add(tile, values)
            states[index] = None if state is None else tile_state
        return sample, tuple(states)

    def _decode_tile(self, latents: torch.Tensor, tile: Tile, state: State) -> tuple[torch.Tensor, State]:
        """Decodes a tile of a few latents; one frame stands for a still clip."""
        latents = tile.region(latents).to(self.decoder.conv_in.conv.weight.dtype)
        latents = latents.contiguous(memory_format=torch.channels_last_3d)
        sample, state = self.decoder(latents, state, self.full_resolution_frames)
        return from_pixel_range(sample, self.config.pixel_range), state

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        return_posterior: bool = False,
    ) -> AutoencoderKL3DOutput | tuple[Any, ...]:
        r"""Encodes and decodes.

        Args:
            sample: Pixels in [-1, 1], `(B, C, T, H, W)`.
            sample_posterior: Whether to draw the latents instead of taking their mean.
            return_dict: Whether to return an output object instead of a tuple.
            generator: Source of the draw.
            return_posterior: Whether to return the distribution of the latents, too, as training needs it.

        Returns:
            The reconstruction, shaped as `sample`.
        """
        posterior = self.encode(sample).latent_dist
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
        reconstruction = self.decode(latents, *sample.shape[2:]).sample
        if not return_dict:
            return (reconstruction, posterior) if return_posterior else (reconstruction,)
        return AutoencoderKL3DOutput(sample=reconstruction, latent_dist=posterior if return_posterior else None)

    # Latents

    def linear_projections(self) -> tuple[BlockProjection, BlockProjection]:
        r"""The projections of the linear path, from blocks of pixels to latents and back.

        Raises:
            ValueError: The model has no linear path.
        """
        if self.encoder.linear_path is None or self.decoder.linear_path is None:
            raise ValueError("Only a model with `linear_path=True` has a linear path.")
        return self.encoder.linear_path.projection, self.decoder.linear_path.projection

    @torch.no_grad()
    def set_linear_path(
        self, components: torch.Tensor, mean: torch.Tensor, scales: torch.Tensor | None = None
    ) -> None:
        r"""Makes a model with `linear_path` the linear codec of some components of blocks of pixels.

        Means of latents become the coefficients of blocks less the mean, divided by `scales`; decoding is the inverse.
        The last convolutions of encoder and decoder, but for the log variance of latents, become zero, so that
        training starts at the linear codec, for example at the principal components of blocks (the Karhunen-Loeve
        transform).
        Blocks start at the first frame; with `first_frame_alone` the first block is the first frame four times.

        Args:
            components: Orthonormal components `(latent_channels, C, 4, 8, 8)` of blocks of pixels in [-1, 1].
            mean: Mean of every pixel channel, `(C,)`.
            scales: What coefficients are divided by, such as their standard deviations, `(latent_channels,)`; 1 by
                default.

        Raises:
            ValueError: The model has no linear path, or other shapes.
        """
        into, out = self.linear_projections()
        ratio = self.spatial_compression_ratio
        block_shape = (self.config.in_channels, self.temporal_compression_ratio, ratio, ratio)
        scales = components.new_ones(len(components)) if scales is None else scales
        shapes: dict[str, tuple[torch.Tensor, tuple[int, ...]]] = {"mean": (mean, block_shape[:1])}
        shapes |= {"components": (components, (self.config.latent_channels, *block_shape))}
        shapes |= {"scales": (scales, (self.config.latent_channels,))}
        for name, (values, shape) in shapes.items():
            if values.shape != shape:
                raise ValueError(f"`{name}` must have shape {tuple(shape)}, got {tuple(values.shape)}.")
        low, high = self.config.pixel_range
        contrast = (high - low) / 2
        mean = to_pixel_range(mean, (low, high)).repeat_interleave(math.prod(block_shape[1:]))
        analysis = components.flatten(1) / (contrast * scales[:, None])  # (latent_channels, C * 4 * 8 * 8)
        synthesis = components.flatten(1) * (contrast * scales[:, None])
        into.set_centre(analysis, -analysis @ mean)
        out.set_centre(synthesis.T, mean)
        for parameter in self.encoder.conv_out.conv.parameters():
            parameter[: self.config.latent_channels] = 0
        for parameter in self.decoder.conv_out.conv.parameters():
            parameter.zero_()

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        r"""Shape `(latent_channels, T', h, w)` of the latents of a clip."""
        return (
            self.config.latent_channels,
            self._num_latents(num_frames),
            divide_up(height, self.spatial_compression_ratio),
            divide_up(width, self.spatial_compression_ratio),
        )

    # Geometry and checks

    def _num_latents(self, num_frames: int, at_start: bool = True) -> int:
        missing = self.num_missing_frames if at_start else 0
        return divide_up(num_frames + missing, self.temporal_compression_ratio)

    def _num_frames(self, num_latents: int) -> int:
        return max(0, num_latents * self.temporal_compression_ratio - self.num_missing_frames)

    def _plan_chunks(self, num_latents: int, at_start: bool) -> list[tuple[slice, slice]]:
        """Latents of every chunk, and their frames."""
        ratio = self.temporal_compression_ratio
        missing = self.num_missing_frames if at_start else 0
        inner_edges = range(0, num_latents, self.chunk_frames // ratio) if self.chunk_frames else (0,)
        edges = [*inner_edges, num_latents]
        return [
            (slice(start, stop), slice(max(0, start * ratio - missing), stop * ratio - missing))
            for start, stop in zip(edges[:-1], edges[1:], strict=True)
        ]

    def _plan_tiles(self, height: int, width: int) -> TileGrid:
        """Tiles of a latent map, the whole of it without tiling."""
        if not self.use_tiling:
            return TileGrid((height, width), (height, width), (0, 0))
        ratio = self.spatial_compression_ratio
        tile_height, tile_width = self.tile_sample_min_height, self.tile_sample_min_width
        # Attributes, as those of diffusers' autoencoders are, which may have been set to anything.
        _check_tile_axis("height", tile_height, self.tile_sample_stride_height, ratio)
        _check_tile_axis("width", tile_width, self.tile_sample_stride_width, ratio)
        overlap = tile_height - self.tile_sample_stride_height, tile_width - self.tile_sample_stride_width
        tile_size = tile_height // ratio, tile_width // ratio
        return TileGrid((height, width), tile_size, (overlap[0] // ratio, overlap[1] // ratio))

    def _cropped_frames(self, num_frames: int | None, num_latents: int) -> int:
        """The number of frames to crop to, checked against the latents."""
        most = self._num_frames(num_latents)
        if num_frames is None:
            return most
        if self._num_latents(num_frames) != num_latents:
            raise ValueError(
                f"`num_frames` = {num_frames} needs {self._num_latents(num_frames)} latents, got {num_latents}, which"
                f" decode to {self._num_frames(num_latents - 1) + 1} to {most}."
            )
        return num_frames

    def _cropped(self, name: str, size: int | None, num_latents: int) -> int:
        """The height or width to crop to, checked against the latents."""
        ratio = self.spatial_compression_ratio
        if size is None:
            return num_latents * ratio
        if divide_up(size, ratio) != num_latents:
            raise ValueError(
                f"`{name}` = {size} needs {divide_up(size, ratio)} latents, got {num_latents}, which decode to"
                f" {(num_latents - 1) * ratio + 1} to {num_latents * ratio}."
            )
        return size

    def _check_pixels(self, x: torch.Tensor, check_finite: bool, is_image: bool = False) -> None:
        channels, least = self.config.in_channels, self.spatial_compression_ratio
        if x.ndim != 5 - is_image or x.shape[1] != channels or (not is_image and x.shape[2] < 1):
            axes = f"(batch, {channels}, {'' if is_image else 'frames, '}height, width)"
            raise ValueError(f"Pixels must be {axes}, got {tuple(x.shape)}.")
        if min(x.shape[-2:]) < least:
            raise ValueError(f"Height and width must be at least {least}, got {x.shape[-2]} and {x.shape[-1]}.")
        if not x.is_floating_point():
            raise ValueError(f"Pixels must be floats in [-1, 1], got {x.dtype}.")
        if check_finite:
            _check_finite(x, "Pixels")

    def _check_latents(self, z: torch.Tensor, check_finite: bool, is_image: bool = False) -> None:
        channels = self.config.latent_channels
        if z.ndim != 5 - is_image or z.shape[1] != channels or (not is_image and z.shape[2] < 1):
            axes = f"(batch, {channels}, {'' if is_image else 'frames, '}height, width)"
            raise ValueError(f"Latents must be {axes}, got {tuple(z.shape)}.")
        if check_finite:
            _check_finite(z, "Latents")


def join_clips(clips: list[torch.Tensor]) -> torch.Tensor:
    return clips[0] if len(clips) == 1 else torch.cat(clips)


def _check_tile_axis(axis: str, side: int, stride: int, ratio: int) -> None:
    if side < ratio or side % ratio:
        raise ValueError(f"`tile_sample_min_{axis}` must be a positive multiple of {ratio}, got {side}.")
    if not ratio <= stride <= side or stride % ratio:
        raise ValueError(
            f"`tile_sample_stride_{axis}` must be a multiple of {ratio} from {ratio} to `tile_sample_min_{axis}` ="
            f" {side}, got {stride}."
        )


def _check_same_size(piece: torch.Tensor, first: torch.Tensor) -> None:
    if piece.shape[:2] != first.shape[:2] or piece.shape[3:] != first.shape[3:]:
        raise ValueError(f"All pieces must be of one size, got {tuple(first.shape)} and {tuple(piece.shape)}.")


def _check_finite(values: torch.Tensor, name: str) -> None:
    num_nan = int(torch.isnan(values).sum())
    if num_nan:
        raise ValueError(f"{name} hold NaN: {num_nan} of {values.numel()} values.")
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} hold infinite values.")
