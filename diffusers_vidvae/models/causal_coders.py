r"""The two halves of `AutoencoderKL3D`: pixels to the distribution of latents, and latents to pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import cast

import torch
from torch import nn

from .causal_blocks import (
    BlockDecoder,
    BlockEncoder,
    CausalConv3d,
    CheckpointingModule,
    Downsample3D,
    Level3D,
    State,
    Upsample3D,
    join_frames,
    split_frames,
    split_state,
    starts_clip,
)


class Encoder3D(CheckpointingModule):
    r"""Pixels to the parameters of the latent distribution; see `AutoencoderKL3D` for the arguments.

    Args:
        norm: Makes a norm of a number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: Sequence[int],
        mid_block_layers: int,
        mid_block_attention: bool,
        temporal_downsample: Sequence[bool],
        shortcut_kernel_size: int,
        norm: Callable[[int], nn.Module],
        first_frame_alone: bool,
        linear_path: bool,
        linear_path_context: int,
    ):
        super().__init__()
        widths = block_out_channels
        make_level = partial(Level3D, shortcut_kernel_size=shortcut_kernel_size, norm=norm)
        self.first_frame_alone = first_frame_alone
        self.conv_in = CausalConv3d(in_channels, widths[0])
        # Not a `ModuleList`, whose members would be offloaded in groups that may run only once.
        self.down_blocks = nn.ModuleDict()
        levels = zip_longest((widths[0], *widths[:-1]), widths, layers_per_block, temporal_downsample)
        for index, (width_in, width, num_layers, time) in enumerate(levels):
            resampler = None if time is None else Downsample3D(width, time, first_frame_alone)
            self.down_blocks[str(index)] = make_level(width_in, width, num_layers, resampler=resampler)
        self.mid_block = make_level(widths[-1], widths[-1], mid_block_layers, attention=mid_block_attention)
        self.conv_out = CausalConv3d(widths[-1], 2 * latent_channels, norm=norm(widths[-1]))
        self.linear_path = None
        if linear_path:
            layout = compression_ratios(temporal_downsample), first_frame_alone, linear_path_context
            self.linear_path = BlockEncoder(in_channels, latent_channels, *layout)

    def forward(
        self, hidden_states: torch.Tensor, state: State = None, full_resolution_frames: int | None = None
    ) -> tuple[torch.Tensor, State]:
        r"""Encodes a clip, or the next piece of a stream.

        Args:
            hidden_states: Pixels `(B, C, T, H, W)`: one frame, which stands for a still clip, or a multiple of the
                temporal compression ratio, and one more at the start with `first_frame_alone`.
            state: `None` for a whole clip, `()` at the start of a stream, then what the last call returned.
            full_resolution_frames: Frames that the first level takes at a time; every next one takes twice as many.

        Returns:
            Distribution parameters `(B, 2 * latent_channels, T', h, w)` and the state for the next piece.
        """
        pixels, at_start = hidden_states, starts_clip(state)
        if full_resolution_frames and state is None and pixels.shape[2] > 1:
            state = ()
        levels = [cast(Level3D, level) for level in self.down_blocks.values()]
        states = split_state(state, len(levels) + 1)
        for index, level in enumerate(levels):
            step = full_resolution_frames and divide_up(full_resolution_frames << index, level.frame_step)
            step = step and step * level.frame_step
            pieces = split_frames(hidden_states, step, at_start and self.first_frame_alone)
            blocks = [self.conv_in, *level.blocks()] if index == 0 else level.blocks()
            del hidden_states
            hidden_states, states[index] = self.run_pieces(blocks, pieces, states[index])  # (B, C_i, T_i, H_i, W_i)
        blocks = [*self.mid_block.blocks(), self.conv_out]
        hidden_states, states[-1] = self.run_pieces(blocks, [hidden_states], states[-1])  # (B, C, T', h, w)
        if self.linear_path is not None:
            mean, logvar = hidden_states.chunk(2, dim=1)
            hidden_states = torch.cat([mean + self.linear_path(pixels, at_start), logvar], dim=1)
        return hidden_states, tuple(states)


class Decoder3D(CheckpointingModule):
    r"""Latents to pixels; see `AutoencoderKL3D` for the arguments.

    Args:
        norm: Makes a norm of a number of channels.
    """

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: Sequence[int],
        mid_block_layers: int,
        mid_block_attention: bool,
        temporal_downsample: Sequence[bool],
        shortcut_kernel_size: int,
        norm: Callable[[int], nn.Module],
        first_frame_alone: bool,
        linear_path: bool,
        linear_path_context: int,
    ):
        super().__init__()
        widths = block_out_channels
        make_level = partial(Level3D, shortcut_kernel_size=shortcut_kernel_size, norm=norm)
        self.conv_in = CausalConv3d(latent_channels, widths[-1])
        self.mid_block = make_level(widths[-1], widths[-1], mid_block_layers, attention=mid_block_attention)
        self.up_blocks = nn.ModuleDict()  # as `Encoder3D.down_blocks`
        levels = list(zip_longest((*widths[1:], widths[-1]), widths, layers_per_block, temporal_downsample))
        for index, (width_in, width, num_layers, time) in enumerate(reversed(levels)):
            resampler = None if time is None else Upsample3D(width, time, first_frame_alone)
            self.up_blocks[str(index)] = make_level(width_in, width, num_layers, resampler=resampler)
        self.conv_out = CausalConv3d(widths[0], out_channels, norm=norm(widths[0]))
        self.linear_path = None
        if linear_path:
            layout = compression_ratios(temporal_downsample), first_frame_alone, linear_path_context
            self.linear_path = BlockDecoder(latent_channels, out_channels, *layout)

    def forward(
        self, hidden_states: torch.Tensor, state: State = None, full_resolution_frames: int | None = None
    ) -> tuple[torch.Tensor, State]:
        r"""Decodes a clip, or the next piece of a stream.

        Args:
            hidden_states: Latents `(B, latent_channels, T', h, w)`.
            state: `None` for a whole clip, `()` at the start of a stream, then what the last call returned.
            full_resolution_frames: Frames that the last level takes at a time; every one before takes twice as many.

        Returns:
            Pixels `(B, C, T, H, W)`, one frame if it stands for all, and the state for the next piece.
        """
        latents, at_start = hidden_states, starts_clip(state)
        if full_resolution_frames and state is None and latents.shape[2] > 1:
            state = ()
        states = split_state(state, len(self.up_blocks) + 2)
        blocks = [self.conv_in, *self.mid_block.blocks()]
        hidden_states, states[0] = self.run_pieces(blocks, [hidden_states], states[0])  # (B, C_n, T', h, w)
        pieces = split_frames(hidden_states, self._step(0, full_resolution_frames))
        del hidden_states
        hidden_states = self._run_levels(pieces, states, 0, full_resolution_frames)  # (B, C, T, H, W)
        if self.linear_path is not None:
            hidden_states = hidden_states + self.linear_path(latents, at_start)
        return hidden_states, tuple(states)

    def _step(self, index: int, full_resolution_frames: int | None) -> int | None:
        """Frames that a level takes at a time."""
        return full_resolution_frames and full_resolution_frames << max(0, len(self.up_blocks) - 1 - index)

    def _run_levels(
        self, pieces: list[torch.Tensor], states: list[State], index: int, full_resolution_frames: int | None
    ) -> torch.Tensor:
        """Runs the levels from `index` on, and makes pixels of one piece, taken out of the list, before the next."""
        if index == len(self.up_blocks):
            pixels, states[-1] = self.run_pieces([self.conv_out], pieces, states[-1])
            return pixels
        blocks = cast(Level3D, self.up_blocks[str(index)]).blocks()
        outputs = []
        while pieces:
            piece, states[1 + index] = self.run_pieces(
                blocks, [pieces.pop(0)], states[1 + index]
            )  # (B, C_i, t_i, ...)
            parts = split_frames(piece, self._step(index + 1, full_resolution_frames))
            del piece
            outputs.append(self._run_levels(parts, states, index + 1, full_resolution_frames))
        return join_frames(outputs)


def compression_ratios(temporal_downsample: Sequence[bool]) -> tuple[int, int, int]:
    """Frames, rows and columns that a latent stands for."""
    spatial = 2 ** len(temporal_downsample)
    return 2 ** sum(temporal_downsample), spatial, spatial


def divide_up(value: int, divisor: int) -> int:
    """Quotient, rounded up; of symbolic sizes, too."""
    return -(-value // divisor)
