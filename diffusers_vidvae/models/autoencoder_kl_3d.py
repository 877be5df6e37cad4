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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import FromOriginalModelMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn


# The state of a block: `None` when a whole clip is given and nothing is to be remembered, `()` at the start of a
# stream, afterwards the last input frames of its convolutions. The state of an encoder or decoder is a dict of them.
BlockState = Any
State = dict[str, BlockState]


@dataclass
class AutoencoderKL3DOutput(BaseOutput):
    r"""Output of `AutoencoderKL3D.forward`.

    Args:
        sample: Reconstruction, shaped as the input.
        latent_dist: Posterior of the latents, if asked for.
    """

    sample: torch.Tensor
    latent_dist: DiagonalGaussianDistribution | None = None


class RMSNorm3d(nn.Module):
    """Root-mean-square norm over the channels of each position."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # A norm needs no copy of its input, unlike the mean of squares.
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        norm = torch.linalg.vector_norm(hidden_states, dim=1, keepdim=True, dtype=dtype)
        scale = torch.rsqrt(norm.square() / hidden_states.shape[1] + self.eps).to(hidden_states.dtype)
        weight = self.weight[:, None, None, None]
        if torch.is_grad_enabled():
            return hidden_states * scale * weight
        return (hidden_states * scale).mul_(weight)


class FrameGroupNorm(nn.GroupNorm):
    """Group norm with statistics of single frames, so that a frame does not depend on its neighbours."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        batch_size, channels, num_frames, height, width = hidden_states.shape
        frames = hidden_states.transpose(1, 2).reshape(-1, channels, height, width)
        return super().forward(frames).view(batch_size, num_frames, channels, height, width).transpose(1, 2)


def make_norm(norm_type: str, num_groups: int, eps: float, channels: int) -> nn.Module:
    return RMSNorm3d(channels, eps) if norm_type == "rms" else FrameGroupNorm(num_groups, channels, eps)


def activate(hidden_states: torch.Tensor) -> torch.Tensor:
    return F.silu(hidden_states, inplace=not torch.is_grad_enabled())


def causal_pad(
    hidden_states: torch.Tensor, state: BlockState, padding: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""Prepends `padding` past frames: those of `state`, or the first frame repeated at the start of a clip.

    A clip of one frame is returned as it is, standing for a still clip.

    Args:
        hidden_states: Frames `(B, C, T, H, W)`.
        state: `None`, `()` or the past frames `(B, C, padding, H, W)`.
        padding: Number of past frames.

    Returns:
        The padded frames, channels last, and the past frames for the next call (`None` if `state` is), which take the
        place of `state` unless gradients are recorded.
    """
    batch_size, channels, num_frames, height, width = hidden_states.shape
    if num_frames == 1 and state is None:
        return hidden_states, None

    # Filled in place, since neither `torch.cat` of expanded frames nor `F.pad` keeps the layout on every backend.
    padded = torch.empty(
        (batch_size, channels, num_frames + padding, height, width),
        dtype=hidden_states.dtype,
        device=hidden_states.device,
        memory_format=torch.channels_last_3d,
    )
    padded[:, :, :padding] = state if isinstance(state, torch.Tensor) else hidden_states[:, :, :1]
    padded[:, :, padding:] = hidden_states
    if state is None:
        return padded, None
    last = padded[:, :, num_frames:]
    if isinstance(state, torch.Tensor) and not torch.is_grad_enabled():
        return padded, state.copy_(last)
    return padded, last.clone(memory_format=torch.channels_last_3d)


class TimeConv3d(nn.Conv3d):
    """3D convolution, zero-padded in space and not at all in time; a single frame stands for a still clip."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ):
        padding = (0, kernel_size // 2, kernel_size // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.shape[2] == 1 and self.kernel_size[0] > 1:
            # Summed anew in every call: cheap beside the convolution, and right while the weights are trained.
            kernel = self.weight.sum(dim=2)
            frame = F.conv2d(hidden_states.squeeze(2), kernel, self.bias, self.stride[1:], self.padding[1:])
            return frame.unsqueeze(2)
        return super().forward(hidden_states)


class CausalConv3d(nn.Module):
    """Convolution that sees the current and past frames only, optionally of normed and activated frames."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, norm: nn.Module | None = None):
        super().__init__()
        self.norm = norm
        self.conv = TimeConv3d(in_channels, out_channels, kernel_size)
        self.time_padding = kernel_size - 1

    def forward(self, hidden_states: torch.Tensor, state: BlockState = None) -> tuple[torch.Tensor, BlockState]:
        if self.norm is not None:
            hidden_states = activate(self.norm(hidden_states))
        if self.time_padding:
            hidden_states, state = causal_pad(hidden_states, state, self.time_padding)
        return self.conv(hidden_states), state


class ResnetBlock3D(nn.Module):
    """Norm, SiLU, causal convolution, twice, around a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, shortcut_kernel_size: int, norm: Callable[[int], nn.Module]
    ):
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = TimeConv3d(in_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.conv2 = TimeConv3d(out_channels, out_channels)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = CausalConv3d(in_channels, out_channels, shortcut_kernel_size)

    def forward(self, hidden_states: torch.Tensor, state: BlockState = None) -> tuple[torch.Tensor, BlockState]:
        state1, state2, shortcut_state = state if state else (state, state, state)
        residual = hidden_states  # (B, C, T, H, W)
        # One step a line: each frees the tensor that it replaces before the next allocates.
        hidden_states = activate(self.norm1(hidden_states))
        hidden_states, state1 = causal_pad(hidden_states, state1, padding=2)  # (B, C, T + 2, H, W)
        hidden_states = self.conv1(hidden_states)  # (B, C', T, H, W)
        hidden_states = activate(self.norm2(hidden_states))
        hidden_states, state2 = causal_pad(hidden_states, state2, padding=2)
        hidden_states = self.conv2(hidden_states)
        if self.shortcut is not None:
            residual, shortcut_state = self.shortcut(residual, shortcut_state)
        return hidden_states.add_(residual), (state1, state2, shortcut_state)


class FrameAttention(nn.Module):
    """Single-head attention over the positions of each frame."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.norm = norm(channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, hidden_states: torch.Tensor, state: BlockState = None) -> tuple[torch.Tensor, BlockState]:
        batch_size, channels, num_frames, height, width = hidden_states.shape
        tokens = self.norm(hidden_states).permute(0, 2, 3, 4, 1).reshape(-1, 1, height * width, channels)
        query, key, value = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)  # (B T, 1, H W, C)
        tokens = self.to_out(F.scaled_dot_product_attention(query, key, value))
        frames = tokens.reshape(batch_size, num_frames, height, width, channels).permute(0, 4, 1, 2, 3)
        return hidden_states + frames, state


class Downsample3D(nn.Module):
    """Halves height and width, and frames if `time`, by a convolution."""

    def __init__(self, channels: int, time: bool):
        super().__init__()
        self.time = time
        self.conv = TimeConv3d(channels, channels, stride=(2 if time else 1, 2, 2))

    def forward(self, hidden_states: torch.Tensor, state: BlockState = None) -> tuple[torch.Tensor, BlockState]:
        # Output j of a halved axis sees inputs 2j - 1, 2j and 2j + 1: one past frame, and no input is passed over.
        hidden_states, state = causal_pad(hidden_states, state, padding=1 if self.time else 2)
        return self.conv(hidden_states), state


class Upsample3D(nn.Module):
    """Doubles height and width, and frames if `time`, by repetition and a convolution."""

    def __init__(self, channels: int, time: bool):
        super().__init__()
        self.time = time
        self.conv = TimeConv3d(channels, channels)

    def forward(self, hidden_states: torch.Tensor, state: BlockState = None) -> tuple[torch.Tensor, BlockState]:
        # Padded before the repetition, where frames are small; a repeated past frame makes two.
        hidden_states, state = causal_pad(hidden_states, state, padding=1 if self.time else 2)
        still = hidden_states.shape[2] == 1
        hidden_states = repeat_nearest(hidden_states, time=self.time and not still)
        return self.conv(hidden_states), state


def repeat_nearest(hidden_states: torch.Tensor, time: bool) -> torch.Tensor:
    """Repeats rows, columns and, if `time`, frames twice, in channels-last layout (which `F.interpolate` may lose)."""
    batch_size, channels, num_frames, height, width = hidden_states.shape
    times = 2 if time else 1
    values = hidden_states.permute(0, 2, 3, 4, 1)[:, :, None, :, None, :, None]
    values = values.expand(-1, -1, times, -1, 2, -1, 2, -1)
    values = values.reshape(batch_size, times * num_frames, 2 * height, 2 * width, channels)
    return values.permute(0, 4, 1, 2, 3)


class Level3D(nn.Module):
    """Residual blocks at one resolution, perhaps an attention after the first, then perhaps a resampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        make_resnet: Callable[[int, int], ResnetBlock3D],
        resampler: nn.Module | None = None,
        attention: FrameAttention | None = None,
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        self.resnets = nn.ModuleList(map(make_resnet, widths[:-1], widths[1:]))
        self.attention = attention
        self.resampler = resampler
        self.frame_step = 2 if getattr(resampler, "time", False) else 1

    def blocks(self, prefix: str) -> list[tuple[str, nn.Module]]:
        """Its blocks in the order in which they run, with names."""
        blocks = [(f"{prefix}.resnets.{index}", resnet) for index, resnet in enumerate(self.resnets)]
        if self.attention is not None:
            blocks.insert(1, (f"{prefix}.attention", self.attention))
        if self.resampler is not None:
            blocks.append((f"{prefix}.resampler", self.resampler))
        return blocks


def number_levels(levels: Iterable[Level3D]) -> nn.ModuleDict:
    """Levels under their numbers. Offloading hooks the members of a `ModuleList`, and it is their blocks that run."""
    return nn.ModuleDict({str(index): level for index, level in enumerate(levels)})


class Stage(NamedTuple):
    """Blocks that run together on `frames_in` frames or a multiple, of which they make `frames_out`."""

    blocks: list[tuple[str, nn.Module]]
    coarseness: int
    frames_in: int = 1
    frames_out: int = 1


class Coder3D(nn.Module):
    """Base of encoder and decoder: stages of blocks that run one after another."""

    _gradient_checkpointing_func: Callable[..., tuple[torch.Tensor, BlockState]]

    def __init__(self):
        super().__init__()
        self.gradient_checkpointing = False

    def stages(self) -> list[Stage]:
        """The stages in the order in which they run."""
        raise NotImplementedError

    def forward(
        self, hidden_states: torch.Tensor, state: State | None = None, full_resolution_frames: int | None = None
    ) -> torch.Tensor:
        r"""Runs a clip, or the next piece of a stream.

        Args:
            hidden_states: Pixels or latents `(B, C, T, H, W)`. The encoder takes one frame, which stands for a still
                clip, or a multiple of the temporal compression ratio.
            state: `None` for a whole clip; a dict, empty at the start of a stream, which is updated in place.
            full_resolution_frames: Frames that the full-resolution stage takes at a time; the next twice as many.

        Returns:
            Distribution parameters or pixels; one frame that stands for all if given a whole clip of one.
        """
        stages = self.stages()
        if full_resolution_frames is None:
            return self._run([block for stage in stages for block in stage.blocks], hidden_states, state)
        state = {} if state is None and hidden_states.shape[2] > 1 else state
        for stage in stages:
            step = max(stage.frames_in, stage.frames_out)
            groups = math.ceil(full_resolution_frames * 2**stage.coarseness / step)
            hidden_states = self._run_in_pieces(stage, hidden_states, state, groups * stage.frames_in)
        return hidden_states

    def _run(
        self, blocks: list[tuple[str, nn.Module]], hidden_states: torch.Tensor, state: State | None
    ) -> torch.Tensor:
        for name, block in blocks:
            block_state = None if state is None else state.pop(name, ())
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states, block_state = self._gradient_checkpointing_func(block, hidden_states, block_state)
            else:
                hidden_states, block_state = block(hidden_states, block_state)
            if state is not None:
                state[name] = block_state
        return hidden_states

    def _run_in_pieces(
        self, stage: Stage, hidden_states: torch.Tensor, state: State | None, piece_frames: int
    ) -> torch.Tensor:
        """Runs a stage on a few frames at a time, which bounds its memory and changes nothing in the result."""
        num_frames = hidden_states.shape[2]
        if num_frames <= piece_frames:
            return self._run(stage.blocks, hidden_states, state)
        output: torch.Tensor | None = None
        stop = 0
        for piece in hidden_states.split(piece_frames, dim=2):
            piece = self._run(stage.blocks, piece, state)
            if output is None:
                shape = (*piece.shape[:2], num_frames * stage.frames_out // stage.frames_in, *piece.shape[3:])
                layout = torch.channels_last_3d
                output = torch.empty(shape, dtype=piece.dtype, device=piece.device, memory_format=layout)
            start, stop = stop, stop + piece.shape[2]
            output[:, :, start:stop] = piece
        return cast(torch.Tensor, output)


class Encoder3D(Coder3D):
    """Pixels to the parameters of the latent distribution."""

    def __init__(
        self, conv_in: CausalConv3d, down_blocks: Iterable[Level3D], mid_block: Level3D, conv_out: CausalConv3d
    ):
        super().__init__()
        self.conv_in = conv_in
        self.down_blocks = number_levels(down_blocks)
        self.mid_block = mid_block
        self.conv_out = conv_out

    def stages(self) -> list[Stage]:
        stages = [
            Stage(level.blocks(f"down_blocks.{index}"), index, frames_in=level.frame_step)
            for index, level in enumerate(cast(Iterable[Level3D], self.down_blocks.values()))
        ]
        stages[0].blocks.insert(0, ("conv_in", self.conv_in))
        stages.append(Stage([*self.mid_block.blocks("mid_block"), ("conv_out", self.conv_out)], len(stages) - 1))
        return stages


class Decoder3D(Coder3D):
    """Latents to pixels."""

    def __init__(
        self, conv_in: CausalConv3d, mid_block: Level3D, up_blocks: Iterable[Level3D], conv_out: CausalConv3d
    ):
        super().__init__()
        self.conv_in = conv_in
        self.mid_block = mid_block
        self.up_blocks = number_levels(up_blocks)
        self.conv_out = conv_out

    def stages(self) -> list[Stage]:
        coarsest = len(self.up_blocks) - 1
        stages = [
            Stage(level.blocks(f"up_blocks.{index}"), coarsest - index, frames_out=level.frame_step)
            for index, level in enumerate(cast(Iterable[Level3D], self.up_blocks.values()))
        ]
        stages[-1].blocks.append(("conv_out", self.conv_out))
        return [Stage([("conv_in", self.conv_in), *self.mid_block.blocks("mid_block")], coarsest), *stages]


class Tile(NamedTuple):
    """A rectangle of the latent map, and the blending weight of its values; `None` if it is the whole map."""

    rows: slice
    columns: slice
    weight: torch.Tensor | None

    def region(self, values: torch.Tensor, scale: int = 1) -> torch.Tensor:
        """The part of `(..., H, W)`, `scale` times as dense as the latents, that the tile covers."""
        rows, columns = (slice(axis.start * scale, axis.stop * scale) for axis in (self.rows, self.columns))
        return values[..., rows, columns]

    def add_to(self, total: torch.Tensor, values: torch.Tensor, scale: int = 1):
        """Adds weighted values to their region of `total`, which may crop them; one frame is repeated."""
        region = self.region(total, scale)
        height, width = region.shape[3:]
        values = values[:, :, : region.shape[2], :height, :width]
        if self.weight is None:
            region.copy_(values)
        else:
            region.add_(values * self.weight[:height, :width].to(values))


def tile_spans(length: int, tile_length: int, overlap: int) -> list[tuple[int, int]]:
    """Evenly spread intervals of `tile_length` that cover `length` and overlap by at least `overlap`."""
    if length <= tile_length:
        return [(0, length)]
    steps = math.ceil((length - tile_length) / (tile_length - overlap))
    starts = [index * (length - tile_length) // steps for index in range(steps + 1)]
    return [(start, start + tile_length) for start in starts]


def blend_weights(spans: list[tuple[int, int]], margin: int) -> list[torch.Tensor]:
    r"""Weights of overlapping intervals, which sum to one everywhere.

    Values near an interval's inner ends suffer from the zeros beyond it: weights are zero within `margin` of them
    where the overlap is at least `2 * margin`, else within a quarter of the overlap. Smooth ramps lie between.
    """
    weights = torch.zeros(len(spans), spans[-1][1])
    for index, (start, stop) in enumerate(spans):
        positions = torch.arange(start, stop) + 0.5
        ramp = torch.ones(stop - start)
        if index > 0:
            ramp = ramp * _ramp(positions - start, spans[index - 1][1] - start, margin)
        if index + 1 < len(spans):
            ramp = ramp * _ramp(stop - positions, stop - spans[index + 1][0], margin)
        weights[index, start:stop] = ramp
    weights /= weights.sum(dim=0)
    return [weights[index, start:stop] for index, (start, stop) in enumerate(spans)]


def _ramp(distances: torch.Tensor, overlap: int, margin: int) -> torch.Tensor:
    ignored = margin if overlap >= 2 * margin else overlap / 4
    ramp = ((distances - ignored) / max(overlap - 2 * ignored, 1e-3)).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def edge_pad(sample: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    """Repeats the last entry of an axis up to `length`."""
    last = sample.shape[dim] - 1
    if last + 1 == length:
        return sample
    return sample.index_select(dim, torch.arange(length, device=sample.device).clamp(max=last))


def kl_per_element(latent_dist: DiagonalGaussianDistribution) -> torch.Tensor:
    r"""Divergence of a posterior from the standard normal in nats per latent value, `(B,)`."""
    kl = 0.5 * (latent_dist.mean.square() + latent_dist.var - 1 - latent_dist.logvar)
    return kl.flatten(1).mean(dim=1)


class AutoencoderKL3D(ModelMixin, AutoencoderMixin, ConfigMixin, FromOriginalModelMixin):
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
    ):
        super().__init__()
        self._check_config()
        self.spatial_compression_ratio = 2 ** len(temporal_downsample)
        self.temporal_compression_ratio = 2 ** sum(temporal_downsample)

        widths = tuple(block_out_channels)
        encoder_layers = self._per_level(layers_per_block)
        decoder_layers = self._per_level(decoder_layers_per_block or layers_per_block)
        time_flags = [*temporal_downsample] + [None] * (len(widths) - len(temporal_downsample))
        norm = partial(make_norm, norm_type, norm_num_groups, norm_eps)
        make_resnet = partial(ResnetBlock3D, shortcut_kernel_size=shortcut_kernel_size, norm=norm)

        def make_levels(
            resampler: Callable[[int, bool], nn.Module], widths_in: Iterable[int], layers: tuple[int, ...]
        ) -> Iterator[Level3D]:
            for width_in, width, num_layers, time in zip(widths_in, widths, layers, time_flags, strict=True):
                resample = None if time is None else resampler(width, time)
                yield Level3D(width_in, width, num_layers, make_resnet, resample)

        def make_mid_block() -> Level3D:
            attention = FrameAttention(widths[-1], norm) if mid_block_attention else None
            return Level3D(widths[-1], widths[-1], mid_block_layers, make_resnet, attention=attention)

        self.encoder = Encoder3D(
            CausalConv3d(in_channels, widths[0]),
            make_levels(Downsample3D, (widths[0], *widths[:-1]), encoder_layers),
            make_mid_block(),
            CausalConv3d(widths[-1], 2 * latent_channels, norm=norm(widths[-1])),
        )
        self.decoder = Decoder3D(
            CausalConv3d(latent_channels, widths[-1]),
            make_mid_block(),
            reversed(list(make_levels(Upsample3D, (*widths[1:], widths[-1]), decoder_layers))),
            CausalConv3d(widths[0], out_channels, norm=norm(widths[0])),
        )
        self._set_reach(encoder_layers, decoder_layers)

        self.use_slicing = False
        self.use_tiling = False
        self.tile_sample_size = (256, 256)
        self.tile_overlap = 0.25
        self.exact_tiling = False
        self.chunk_frames: int | None = None
        self.full_resolution_frames: int | None = None

    def _per_level(self, layers: int | tuple[int, ...]) -> tuple[int, ...]:
        num_levels = len(self.config.block_out_channels)
        return (layers,) * num_levels if isinstance(layers, int) else tuple(layers)

    def _check_config(self):
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
        if config.shortcut_kernel_size not in (1, 3):
            raise ValueError(f"`shortcut_kernel_size` must be 1 or 3, got {config.shortcut_kernel_size}.")
        for name in ("latents_mean", "latents_std"):
            if config[name] is not None and len(config[name]) != config.latent_channels:
                raise ValueError(
                    f"`{name}` must have an entry for each of the {config.latent_channels} latent channels, got"
                    f" {len(config[name])}."
                )

    def _set_reach(self, encoder_layers: tuple[int, ...], decoder_layers: tuple[int, ...]):
        """Finds how far from a tile's edge values differ: latents of the encoder, pixels of the decoder."""
        num_resamplers = len(self.config.temporal_downsample)
        mid_reach = 2 * self.config.mid_block_layers
        reach = 1
        for index, num_layers in enumerate(encoder_layers):
            reach += 2 * num_layers
            if index < num_resamplers:
                reach = math.ceil((reach + 1) / 2)
        self.encoder_reach = reach + mid_reach + 1
        reach = 1 + mid_reach
        for index, num_layers in reversed(list(enumerate(decoder_layers))):
            reach += 2 * num_layers
            if index < num_resamplers:
                reach = 2 * reach + 1
        self.decoder_reach = reach + 1

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict, **kwargs):
        r"""Loads a checkpoint of another layout; the configuration is found from its shapes, or refused."""
        kwargs.setdefault("original_config", {})
        return super().from_single_file(pretrained_model_link_or_path_or_dict, **kwargs)

    # Settings: none changes a result by more than float rounding, except tiles that overlap too little.

    def enable_temporal_chunking(self, chunk_frames: int = 24, full_resolution_frames: int | None = None):
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

    def disable_temporal_chunking(self):
        r"""Encodes and decodes clips whole."""
        self.chunk_frames = None
        self.full_resolution_frames = None

    def enable_tiling(self, tile_sample_size: int | tuple[int, int] = 256, tile_overlap: float | str = 0.25):
        r"""Encodes and decodes frames larger than a tile in overlapping tiles, blended where they meet.

        Args:
            tile_sample_size: Side, or height and width, of a tile in pixels, multiples of the spatial ratio (8).
            tile_overlap: Least overlap of neighbours as a fraction of the tile, in [0, 1); or `"exact"` for
                `exact_tile_overlap` pixels, with which tiles change nothing.
        """
        ratio = self.spatial_compression_ratio
        sides = (tile_sample_size,) * 2 if isinstance(tile_sample_size, int) else tuple(tile_sample_size)
        if len(sides) != 2 or any(side < ratio or side % ratio for side in sides):
            raise ValueError(f"`tile_sample_size` must be positive multiples of {ratio}, got {tile_sample_size}.")
        exact = tile_overlap == "exact"
        if exact and min(sides) <= self.exact_tile_overlap:
            raise ValueError(
                f"Tiles must be larger than their exact overlap of {self.exact_tile_overlap} pixels, got {sides}."
            )
        if not exact and (isinstance(tile_overlap, str) or not 0 <= tile_overlap < 1):
            raise ValueError(f"`tile_overlap` must be in [0, 1) or 'exact', got {tile_overlap!r}.")
        super().enable_tiling()
        self.tile_sample_size = sides
        self.exact_tiling = exact
        self.tile_overlap = 0.0 if exact else float(tile_overlap)

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
            x: Pixels in [-1, 1], `(B, C, T, H, W)`.
            return_dict: Whether to return an output object instead of a tuple.
            check_finite: Whether to refuse NaN and infinite pixels, which costs a pass over them.

        Returns:
            The distribution of the latents `(B, latent_channels, ceil(T / 4), ceil(H / 8), ceil(W / 8))`.

        Raises:
            ValueError: The shape or dtype does not fit, or values are not finite.
        """
        self._check_pixels(x, check_finite)
        clips = x.split(1) if self.use_slicing else [x]
        parameters = [self._encode_frames(clip) for clip in clips]
        posterior = DiagonalGaussianDistribution(parameters[0] if len(clips) == 1 else torch.cat(parameters))
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
        ratio = self.temporal_compression_ratio
        states: dict[int, State] = {}
        rest = None
        for piece in pieces:
            self._check_pixels(piece, check_finite)
            if rest is not None:
                _check_same_size(piece, rest)
                piece = torch.cat([rest, piece], dim=2)
            num_ready = piece.shape[2] // ratio * ratio
            # Copied, so that a few frames do not hold on to a long piece.
            rest = piece[:, :, num_ready:].clone()
            if num_ready:
                yield self._encode_frames(piece[:, :, :num_ready], states)
        if rest is not None and rest.shape[2]:
            yield self._encode_frames(rest, states)

    def _encode_frames(self, x: torch.Tensor, states: dict[int, State] | None = None) -> torch.Tensor:
        """Encodes a clip to distribution parameters, or the next frames of a stream, whose tiles have `states`."""
        ratio = self.temporal_compression_ratio
        _, num_latents, height, width = self.latent_shape(*x.shape[2:])
        tiles = self._plan_tiles(height, width, 1, self.encoder_reach)
        chunks = self._plan_chunks(num_latents)
        is_image = x.shape[2] == 1 and not states
        whole = is_image or (states is None and len(chunks) == 1)
        if whole and len(tiles) == 1:
            return self._encode_tile(x, tiles[0], None, 1 if is_image else num_latents * ratio).contiguous()

        shape = (x.shape[0], 2 * self.config.latent_channels, num_latents, height, width)
        parameters = x.new_zeros(shape, dtype=self.encoder.conv_in.conv.weight.dtype)
        for index, tile in enumerate(tiles):
            state = None if whole else {} if states is None else states.setdefault(index, {})
            for start, stop in chunks:
                frames = x[:, :, start * ratio : stop * ratio]
                values = self._encode_tile(frames, tile, state, 1 if is_image else (stop - start) * ratio)
                tile.add_to(parameters[:, :, start:stop], values)
        return parameters

    def _encode_tile(self, frames: torch.Tensor, tile: Tile, state: State | None, num_frames: int) -> torch.Tensor:
        """Encodes a tile of a few frames, padded to `num_frames`."""
        ratio = self.spatial_compression_ratio
        low, high = self.config.pixel_range
        frames = tile.region(frames, ratio)
        # Mapped before the cast, which would else lose levels.
        frames = ((frames + 1) * ((high - low) / 2) + low).to(self.encoder.conv_in.conv.weight.dtype)
        height, width = ((axis.stop - axis.start) * ratio for axis in (tile.rows, tile.columns))
        for dim, length in ((2, num_frames), (3, height), (4, width)):
            frames = edge_pad(frames, dim, length)
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
            z: Latents as `encode` gives them, not normalised, `(B, latent_channels, T', h, w)`.
            num_frames: Frames of the clip, of which its last latent frame may hold fewer than 4; by default `4 * T'`.
            height: Height to crop to; by default `8 * h`.
            width: Width to crop to; by default `8 * w`.
            return_dict: Whether to return an output object instead of a tuple.
            check_finite: Whether to refuse NaN and infinite latents.

        Returns:
            Pixels `(B, C, num_frames, height, width)`, in [-1, 1] but for the model's errors: they are not clamped.

        Raises:
            ValueError: The latents' shape does not fit the model or the given size, or values are not finite.
        """
        self._check_latents(z, check_finite)
        num_frames = self._cropped("num_frames", num_frames, z.shape[2], self.temporal_compression_ratio)
        height = self._cropped("height", height, z.shape[3], self.spatial_compression_ratio)
        width = self._cropped("width", width, z.shape[4], self.spatial_compression_ratio)
        clips = z.split(1) if self.use_slicing else [z]
        samples = [self._decode_latents(clip, num_frames, height, width) for clip in clips]
        sample = samples[0] if len(clips) == 1 else torch.cat(samples)
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
            num_frames: Frames of the whole clip; by default 4 for each latent frame.
            height: Height to crop to; by default `8 * h`.
            width: Width to crop to; by default `8 * w`.
            check_finite: Whether to refuse NaN and infinite latents.

        Yields:
            Pixels `(B, C, t, height, width)` of every piece; put together, those of `decode`.

        Raises:
            ValueError: A shape does not fit, or the pieces hold more or fewer latent frames than `num_frames` needs.
        """
        ratio = self.temporal_compression_ratio
        num_latents = None if num_frames is None else math.ceil(num_frames / ratio)
        states: dict[int, State] = {}
        seen = 0
        first = None
        for piece in pieces:
            self._check_latents(piece, check_finite)
            first = piece[:, :, :1].clone() if first is None else first
            _check_same_size(piece, first)
            start, seen = seen, seen + piece.shape[2]
            if num_latents is not None and seen > num_latents:
                raise ValueError(f"{num_frames} frames have {num_latents} latent frames, got {seen} or more.")
            frames = seen * ratio if num_frames is None else min(seen * ratio, num_frames)
            piece_height = self._cropped("height", height, piece.shape[3], self.spatial_compression_ratio)
            piece_width = self._cropped("width", width, piece.shape[4], self.spatial_compression_ratio)
            yield self._decode_latents(piece, frames - start * ratio, piece_height, piece_width, states)
        if num_latents is not None and seen < num_latents:
            raise ValueError(f"{num_frames} frames have {num_latents} latent frames, got {seen}.")

    def _decode_latents(
        self, z: torch.Tensor, num_frames: int, height: int, width: int, states: dict[int, State] | None = None
    ) -> torch.Tensor:
        """Decodes a clip and crops it, or the next latents of a stream, whose tiles have `states`."""
        ratio, scale = self.temporal_compression_ratio, self.spatial_compression_ratio
        tiles = self._plan_tiles(z.shape[3], z.shape[4], scale, self.decoder_reach)
        chunks = self._plan_chunks(z.shape[2])
        whole = states is None and len(chunks) == 1
        if whole and len(tiles) == 1:
            sample = self._decode_tile(z, tiles[0], None)[:, :, :num_frames, :height, :width]
            return sample.expand(-1, -1, num_frames, -1, -1).contiguous()

        shape = (z.shape[0], self.config.out_channels, num_frames, height, width)
        sample = z.new_zeros(shape, dtype=self.decoder.conv_in.conv.weight.dtype)
        for index, tile in enumerate(tiles):
            state = None if whole else {} if states is None else states.setdefault(index, {})
            for start, stop in chunks:
                values = self._decode_tile(z[:, :, start:stop], tile, state)
                tile.add_to(sample[:, :, start * ratio : stop * ratio], values, scale)
        return sample

    def _decode_tile(self, latents: torch.Tensor, tile: Tile, state: State | None) -> torch.Tensor:
        """Decodes a tile of a few latents; one frame stands for a still clip."""
        low, high = self.config.pixel_range
        latents = tile.region(latents).to(self.decoder.conv_in.conv.weight.dtype)
        latents = latents.contiguous(memory_format=torch.channels_last_3d)
        sample = self.decoder(latents, state, self.full_resolution_frames)
        return (sample - low) * (2 / (high - low)) - 1

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

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        r"""Shape `(latent_channels, T', h, w)` of the latents of a clip."""
        return (
            self.config.latent_channels,
            math.ceil(num_frames / self.temporal_compression_ratio),
            math.ceil(height / self.spatial_compression_ratio),
            math.ceil(width / self.spatial_compression_ratio),
        )

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        r"""Brings latents to zero mean and a deviation of `scaling_factor` per channel, given their statistics."""
        mean, std = self._latent_statistics(latents)
        return (latents - mean) * (self.config.scaling_factor / std)

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        r"""Inverse of `normalize_latents`."""
        mean, std = self._latent_statistics(latents)
        return latents * (std / self.config.scaling_factor) + mean

    def _latent_statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = self.config.latent_channels
        mean = latents.new_tensor(self.config.latents_mean or [0.0] * channels)
        std = latents.new_tensor(self.config.latents_std or [1.0] * channels)
        return mean[:, None, None, None], std[:, None, None, None]

    # Geometry and checks

    def _plan_chunks(self, num_latents: int) -> list[tuple[int, int]]:
        step = self.chunk_frames // self.temporal_compression_ratio if self.chunk_frames else num_latents
        return [(start, min(start + step, num_latents)) for start in range(0, num_latents, step)]

    def _plan_tiles(self, height: int, width: int, scale: int, margin: int) -> list[Tile]:
        """Tiles of a latent map, with weights for values `scale` times as dense, bad within `margin` of a seam."""
        ratio = self.spatial_compression_ratio
        tile_height, tile_width = (side // ratio for side in self.tile_sample_size)
        if not self.use_tiling or (height <= tile_height and width <= tile_width):
            return [Tile(slice(0, height), slice(0, width), None)]
        axes = []
        for length, tile_length in ((height, tile_height), (width, tile_width)):
            overlap = min(math.ceil(self.tile_overlap * tile_length), tile_length - 1)
            if self.exact_tiling:
                overlap = self.exact_tile_overlap // ratio
            spans = tile_spans(length, tile_length, overlap)
            weights = blend_weights([(start * scale, stop * scale) for start, stop in spans], margin)
            axes.append([(slice(*span), weight) for span, weight in zip(spans, weights, strict=True)])
        return [
            Tile(rows, columns, row_weight[:, None] * column_weight)
            for rows, row_weight in axes[0]
            for columns, column_weight in axes[1]
        ]

    def _cropped(self, name: str, size: int | None, num_latents: int, ratio: int) -> int:
        """The size to crop to, checked against the latents."""
        if size is None:
            return num_latents * ratio
        if math.ceil(size / ratio) != num_latents:
            raise ValueError(
                f"`{name}` = {size} needs {math.ceil(size / ratio)} latents, got {num_latents}, which decode to"
                f" {(num_latents - 1) * ratio + 1} to {num_latents * ratio}."
            )
        return size

    def _check_pixels(self, x: torch.Tensor, check_finite: bool):
        channels, least = self.config.in_channels, self.spatial_compression_ratio
        if x.ndim != 5 or x.shape[1] != channels or x.shape[2] < 1:
            raise ValueError(f"Pixels must be (batch, {channels}, frames, height, width), got {tuple(x.shape)}.")
        if min(x.shape[3:]) < least:
            raise ValueError(f"Height and width must be at least {least}, got {x.shape[3]} and {x.shape[4]}.")
        if not x.is_floating_point():
            raise ValueError(f"Pixels must be floats in [-1, 1], got {x.dtype}.")
        if check_finite:
            _check_finite(x, "Pixels")

    def _check_latents(self, z: torch.Tensor, check_finite: bool):
        channels = self.config.latent_channels
        if z.ndim != 5 or z.shape[1] != channels or z.shape[2] < 1:
            raise ValueError(f"Latents must be (batch, {channels}, frames, height, width), got {tuple(z.shape)}.")
        if check_finite:
            _check_finite(z, "Latents")


def _check_same_size(piece: torch.Tensor, first: torch.Tensor):
    if piece.shape[:2] != first.shape[:2] or piece.shape[3:] != first.shape[3:]:
        raise ValueError(f"All pieces must be of one size, got {tuple(first.shape)} and {tuple(piece.shape)}.")


def _check_finite(values: torch.Tensor, name: str):
    num_nan = int(torch.isnan(values).sum())
    if num_nan:
        raise ValueError(f"{name} hold NaN: {num_nan} of {values.numel()} values.")
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} hold infinite values.")
