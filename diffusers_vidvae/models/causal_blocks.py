r"""The causal blocks that `AutoencoderKL3D` is built of.

Frames are `(batch, channels, frames, height, width)`. What has parameters in time takes and returns a `State`, so that
a clip in pieces gives the result of the whole clip. A clip starts by repeating its first frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn


# What a layer, block, encoder or decoder remembers: `None` for a whole clip, of which nothing is to be remembered;
# `()` at the start of a stream, and then the last input frames of a convolution, or a tuple of the states of all
# parts. A state can be continued once: its tensors are used again for the next one, unless gradients are recorded.
State = Any


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


def starts_clip(state: State) -> bool:
    """Whether a clip begins here; in words that the compiler knows of tuples."""
    return state is None or len(state) == 0


def split_state(state: State, num_parts: int) -> list[State]:
    """The states of the parts of what has `state`."""
    return [state] * num_parts if starts_clip(state) else list(state)


def causal_pad(
    hidden_states: torch.Tensor, state: State, num_past: int, num_repeats: int | None = None
) -> tuple[torch.Tensor, State]:
    r"""Prepends past frames: those of `state`, or the first frame repeated at the start of a clip.

    A clip of one frame is returned as it is, standing for a still clip.

    Args:
        hidden_states: Frames `(B, C, T, H, W)`.
        state: `None`, `()` or the past frames `(B, C, num_past, H, W)`.
        num_past: Number of past frames.
        num_repeats: Number of repeated first frames, if another.

    Returns:
        The padded frames, channels last, and the past frames for the next call (`None` if `state` is).
    """
    batch_size, channels, num_frames, height, width = hidden_states.shape
    if num_frames == 1 and state is None:
        return hidden_states, None

    continues = isinstance(state, torch.Tensor)
    padding = num_past if continues or num_repeats is None else num_repeats
    if torch.compiler.is_exporting() and state is None:
        # Writes into parts of a tensor become long chains of operators in exported graphs, which choose layouts anew.
        return torch.cat([hidden_states[:, :, :1].expand(-1, -1, padding, -1, -1), hidden_states], dim=2), None
    # Filled in place, since neither `torch.cat` of expanded frames nor `F.pad` keeps the layout on every backend.
    padded = torch.empty(
        (batch_size, channels, padding + num_frames, height, width),
        dtype=hidden_states.dtype,
        device=hidden_states.device,
        memory_format=torch.channels_last_3d,
    )
    padded[:, :, :padding] = state if continues else hidden_states[:, :, :1]
    padded[:, :, padding:] = hidden_states
    if state is None:
        return padded, None
    last = padded[:, :, padding + num_frames - num_past :]
    if continues and not torch.is_grad_enabled():
        return padded, state.copy_(last)
    return padded, last.clone(memory_format=torch.channels_last_3d)


class TimeConv3d(nn.Conv3d):
    """3D convolution, not padded in time; a single frame stands for a still clip."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.shape[2] == 1 and self.kernel_size[0] > 1:
            # Summed anew in every call: cheap beside the convolution, and right while the weights are trained.
            kernel = self.weight.sum(dim=2)
            frame = F.conv2d(hidden_states.squeeze(2), kernel, self.bias, self.stride[1:], self.padding[1:])
            return frame.unsqueeze(2)
        return super().forward(hidden_states)


def make_conv(
    in_channels: int, out_channels: int, kernel_size: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
) -> TimeConv3d:
    """Convolution that is padded with zeros in space."""
    padding = (0, kernel_size // 2, kernel_size // 2)
    return TimeConv3d(in_channels, out_channels, kernel_size, stride, padding)


class CausalConv3d(nn.Module):
    """Convolution that sees the current and past frames only, optionally of normed and activated frames."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, norm: nn.Module | None = None):
        super().__init__()
        self.norm = norm
        self.conv = make_conv(in_channels, out_channels, kernel_size)
        self.num_past = kernel_size - 1

    def forward(self, hidden_states: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        if self.norm is not None:
            hidden_states = activate(self.norm(hidden_states))
        if self.num_past:
            hidden_states, state = causal_pad(hidden_states, state, self.num_past)
        return self.conv(hidden_states), state


class ResnetBlock3D(nn.Module):
    """Norm, SiLU, causal convolution, twice, around a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, shortcut_kernel_size: int, norm: Callable[[int], nn.Module]
    ):
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = make_conv(in_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.conv2 = make_conv(out_channels, out_channels)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = CausalConv3d(in_channels, out_channels, shortcut_kernel_size)

    def forward(self, hidden_states: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        state1, state2, shortcut_state = split_state(state, 3)
        residual = hidden_states  # (B, C, T, H, W)
        # One step a line: each frees the tensor that it replaces before the next allocates.
        hidden_states = activate(self.norm1(hidden_states))
        hidden_states, state1 = causal_pad(hidden_states, state1, num_past=2)  # (B, C, T + 2, H, W)
        hidden_states = self.conv1(hidden_states)  # (B, C', T, H, W)
        hidden_states = activate(self.norm2(hidden_states))
        hidden_states, state2 = causal_pad(hidden_states, state2, num_past=2)
        hidden_states = self.conv2(hidden_states)
        if self.shortcut is not None:
            residual, shortcut_state = self.shortcut(residual, shortcut_state)
        return hidden_states.add_(residual), (state1, state2, shortcut_state)


class FrameAttnProcessor:
    """Attention of `FrameAttention` through diffusers' attention backends."""

    _attention_backend = None

    def __call__(self, attn: FrameAttention, tokens: torch.Tensor) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(tokens).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        query, key, value = (states.unsqueeze(2) for states in (query, key, value))  # (B T, H W, 1, C)
        tokens = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return attn.to_out(tokens.squeeze(2))


class FrameAttention(nn.Module, AttentionModuleMixin):
    """Single-head attention over the positions of each frame."""

    _default_processor_cls = FrameAttnProcessor
    _available_processors = [FrameAttnProcessor]
    processor: FrameAttnProcessor
    to_qkv: nn.Linear  # there while projections are fused

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.use_bias = True
        self.is_cross_attention = False
        self.norm = norm(channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)
        self.processor = FrameAttnProcessor()

    def forward(self, hidden_states: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        batch_size, channels, num_frames, height, width = hidden_states.shape
        tokens = self.norm(hidden_states).permute(0, 2, 3, 4, 1).reshape(-1, height * width, channels)
        tokens = self.processor(self, tokens)
        frames = tokens.reshape(batch_size, num_frames, height, width, channels).permute(0, 4, 1, 2, 3)
        return hidden_states + frames, state


class Downsample3D(nn.Module):
    r"""Halves height and width, and frames if `time`, by a convolution.

    Output frame j of halved frames sees the inputs 2j - 1, 2j and 2j + 1, so that none is passed over; with
    `first_frame_alone` 2j - 2, 2j - 1 and 2j, of which the first output sees the first frame only.
    """

    def __init__(self, channels: int, time: bool, first_frame_alone: bool):
        super().__init__()
        self.time = time
        self.num_past = 1 if time else 2
        self.num_repeats = 2 if first_frame_alone else self.num_past
        self.conv = make_conv(channels, channels, stride=(2 if time else 1, 2, 2))

    def forward(self, hidden_states: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        hidden_states, state = causal_pad(hidden_states, state, self.num_past, self.num_repeats)
        return self.conv(hidden_states), state


class Upsample3D(nn.Module):
    r"""Doubles height and width, and frames if `time`, by repetition and a convolution.

    With `first_frame_alone` a clip's first frame, which the convolution would make two equal ones of, stays one.
    """

    def __init__(self, channels: int, time: bool, first_frame_alone: bool):
        super().__init__()
        self.time = time
        self.first_frame_alone = first_frame_alone
        self.conv = make_conv(channels, channels)

    def forward(self, hidden_states: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        is_still = state is None and hidden_states.shape[2] == 1
        drops_first = self.time and self.first_frame_alone and not (is_still or isinstance(state, torch.Tensor))
        # Padded before the repetition, where frames are small; a repeated past frame makes two.
        hidden_states, state = causal_pad(hidden_states, state, num_past=1 if self.time else 2)
        hidden_states = repeat_nearest(hidden_states, time=self.time and not is_still)
        if drops_first:
            hidden_states = hidden_states[:, :, 1:]
        return self.conv(hidden_states), state


def repeat_nearest(hidden_states: torch.Tensor, time: bool) -> torch.Tensor:
    """Repeats rows, columns and, if `time`, frames twice, in channels-last layout (which `F.interpolate` may lose)."""
    batch_size, channels, num_frames, height, width = hidden_states.shape
    times = 2 if time else 1
    values = hidden_states.permute(0, 2, 3, 4, 1)[:, :, None, :, None, :, None]
    values = values.expand(-1, -1, times, -1, 2, -1, 2, -1)
    values = values.reshape(batch_size, times * num_frames, 2 * height, 2 * width, channels)
    return values.permute(0, 4, 1, 2, 3)


class CheckpointingModule(nn.Module):
    """Base of what runs its blocks with gradient checkpointing when that is enabled."""

    _gradient_checkpointing_func: Callable[..., tuple[torch.Tensor, State]]

    def __init__(self):
        super().__init__()
        self.gradient_checkpointing = False

    def run(self, block: nn.Module, hidden_states: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, hidden_states, state)
        return block(hidden_states, state)

    def run_pieces(
        self, blocks: list[nn.Module], pieces: list[torch.Tensor], state: State
    ) -> tuple[torch.Tensor, State]:
        """Runs consecutive pieces, taken out of their list to be freed, through blocks that have a state together."""
        states = split_state(state, len(blocks))
        outputs = []
        while pieces:
            hidden_states = pieces.pop(0)
            for index, block in enumerate(blocks):
                hidden_states, states[index] = self.run(block, hidden_states, states[index])
            outputs.append(hidden_states)
        return join_frames(outputs), tuple(states)


class Level3D(nn.Module):
    """Residual blocks at one resolution, perhaps an attention after the first, then perhaps a resampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        shortcut_kernel_size: int,
        norm: Callable[[int], nn.Module],
        attention: bool = False,
        resampler: nn.Module | None = None,
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        self.resnets = nn.ModuleList(
            ResnetBlock3D(width_in, width, shortcut_kernel_size, norm)
            for width_in, width in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attention = FrameAttention(out_channels, norm) if attention else None
        self.resampler = resampler
        self.frame_step = 2 if isinstance(resampler, Downsample3D) and resampler.time else 1

    def blocks(self) -> list[nn.Module]:
        r"""Its blocks in the order in which they run.

        A level is not called itself: the caller of a function holds on to the input, here the largest tensor of all.
        """
        blocks: list[nn.Module] = list(self.resnets)
        if self.attention is not None:
            blocks.insert(1, self.attention)
        return blocks if self.resampler is None else [*blocks, self.resampler]


def split_frames(hidden_states: torch.Tensor, num_frames: int | None, first_alone: bool = False) -> list[torch.Tensor]:
    """Pieces of at most `num_frames`, all frames by default, perhaps after one of the first frame."""
    if num_frames is None or hidden_states.shape[2] <= num_frames:
        return [hidden_states]
    if first_alone:
        return [hidden_states[:, :, :1], *hidden_states[:, :, 1:].split(num_frames, dim=2)]
    return list(hidden_states.split(num_frames, dim=2))


def join_frames(pieces: list[torch.Tensor]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


class BlockProjection(nn.Module):
    """Linear in blocks, each of them one position, and those around it in space; the outermost are repeated."""

    def __init__(self, in_channels: int, out_channels: int, context: int):
        super().__init__()
        self.context = context
        # Padded before and not by `padding_mode`, which PEFT's adapters do not copy.
        self.conv = nn.Conv2d(in_channels, out_channels, 2 * context + 1)

    def forward(self, blocks: torch.Tensor) -> torch.Tensor:
        frames = blocks.transpose(1, 2).flatten(0, 1)  # (B T, C, h, w)
        frames = self.conv(F.pad(frames, (self.context,) * 4, mode="replicate") if self.context else frames)
        return frames.unflatten(0, (-1, blocks.shape[2])).transpose(1, 2)

    @torch.no_grad()
    def set_centre(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Makes every block depend on its own position only, by a weight `(out_channels, in_channels)`."""
        nn.init.zeros_(self.conv.weight)
        self.conv.weight[:, :, self.context, self.context] = weight
        self.conv.get_parameter("bias").copy_(bias)


class BlockEncoder(nn.Module):
    """Latents that are linear in blocks of pixels, each as long, high and wide as a latent, and in those around."""

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        block_size: tuple[int, int, int],
        first_frame_alone: bool,
        context: int,
    ):
        super().__init__()
        self.block_size = block_size
        self.first_frame_alone = first_frame_alone
        self.projection = BlockProjection(in_channels * math.prod(block_size), latent_channels, context)

    def forward(self, pixels: torch.Tensor, at_start: bool) -> torch.Tensor:
        length, height, width = self.block_size
        if pixels.shape[2] == 1 or (at_start and self.first_frame_alone):
            pixels = torch.cat([pixels[:, :, :1].expand(-1, -1, length - 1, -1, -1), pixels], dim=2)
        blocks = pixels.unflatten(4, (-1, width)).unflatten(3, (-1, height)).unflatten(2, (-1, length))
        blocks = blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)  # (B, C * length * height * width, T', h, w)
        return self.projection(blocks)


class BlockDecoder(nn.Module):
    """Blocks of pixels that are linear in a latent and those around it, the counterpart of `BlockEncoder`."""

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        block_size: tuple[int, int, int],
        first_frame_alone: bool,
        context: int,
    ):
        super().__init__()
        self.block_size = block_size
        self.num_missing = block_size[0] - 1 if first_frame_alone else 0
        self.projection = BlockProjection(latent_channels, out_channels * math.prod(block_size), context)

    def forward(self, latents: torch.Tensor, at_start: bool) -> torch.Tensor:
        length, height, width = self.block_size
        blocks = self.projection(latents).unflatten(1, (-1, length, height, width))
        pixels = blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)  # (B, C, T, H, W)
        return pixels[:, :, self.num_missing if at_start else 0 :]
