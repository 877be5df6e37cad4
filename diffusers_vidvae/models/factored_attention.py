r"""The space-time block that `FrameSelectVAE` and `GapDiT` are built of.

Attention over the frames of one token position, then over the tokens of one frame, each followed by an MLP, as in
https://github.com/floatingtrees/dynamic-frame-compression/blob/2150c20/layers.py.

Tokens stay `(batch, frames, tokens, dim)` throughout, so that every product reads contiguous rows: attention over
frames takes the heads of all token positions for heads of one long row, and neither attention moves a token. Where no
gradients are recorded, what a block made itself is overwritten in place, since fresh memory costs a CPU more than the
arithmetic done in it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from .text_attention import TextAttention


ROPE_TYPES = ("raster", "axial")

# shift, scale and gate for each of the four sub-layers of a block
NUM_MODULATIONS = 12

# GPUs launch attention for at most so many heads at once.
MAX_HEADS = 65535


class RotaryEmbedding(nn.Module):
    r"""Cosines and sines of rotary positions (https://arxiv.org/abs/2104.09864) for a grid of tokens.

    Args:
        head_dim: Channels of one attention head; a multiple of 2, of 4 for `"axial"`.
        rope_type: `"raster"` numbers the tokens row by row and rotates by that one number; `"axial"` rotates one half
            of the channels by the row and the other half by the column.
        base: Wavelength base; frequencies run from 1 down to `1 / base`.
    """

    def __init__(self, head_dim: int, rope_type: str = "raster", base: float = 10000.0):
        super().__init__()
        if rope_type not in ROPE_TYPES:
            raise ValueError(f"`rope_type` must be one of {ROPE_TYPES}, got {rope_type!r}.")
        divisor = 2 if rope_type == "raster" else 4
        if head_dim % divisor:
            raise ValueError(f"`head_dim` must be a multiple of {divisor} for {rope_type} positions, got {head_dim}.")
        self.head_dim = head_dim
        self.rope_type = rope_type
        self.base = base

    def forward(self, height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cosines, and sines with the first half negated, float32, each `(height * width, head_dim)`."""
        if self.rope_type == "raster":
            angles = self._angles(torch.arange(height * width, device=device), self.head_dim)  # (N, head_dim / 2)
        else:
            row_angles = self._angles(torch.arange(height, device=device), self.head_dim // 2)
            column_angles = self._angles(torch.arange(width, device=device), self.head_dim // 2)
            row_angles = row_angles[:, None].expand(-1, width, -1)
            column_angles = column_angles[None].expand(height, -1, -1)
            angles = torch.cat([row_angles, column_angles], dim=-1).flatten(0, 1)  # (N, head_dim / 2)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)  # (N, head_dim)

    def _angles(self, positions: torch.Tensor, channels: int) -> torch.Tensor:
        exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=positions.device) / channels
        return positions.float()[:, None] * self.base**-exponents


def apply_rotary(hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates `(batch, tokens, heads, head_dim)` by half-split pairs: channel i with channel i + head_dim / 2.

    Where no gradients are recorded, `hidden_states` are overwritten if they are float32.
    """
    cos, signed_sin = (table[None, :, None] for table in rotary_emb)  # (1, N, 1, head_dim)
    first, second = hidden_states.chunk(2, dim=-1)
    swapped = torch.cat([second, first], dim=-1)
    # Half precision is multiplied in float32: rounded angles would mix up distant positions.
    if torch.is_grad_enabled():
        return torch.addcmul(hidden_states * cos, swapped, signed_sin).to(hidden_states.dtype)
    rotated = hidden_states.mul_(cos) if hidden_states.dtype == cos.dtype else hidden_states * cos
    return rotated.addcmul_(swapped, signed_sin).to(hidden_states.dtype)


class FactoredAttnProcessor:
    """Attention of `FactoredAttention` through diffusers' attention backends."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: FactoredAttention,
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)

        query, key, value = (attn.split_heads(states) for states in (query, key, value))
        query = apply_rotary(attn.norm_q(query), rotary_emb)  # (sequences, length, heads, head_dim)
        key = apply_rotary(attn.norm_k(key), rotary_emb)

        heads = [(query, key, value)]
        # Exported graphs run on CPUs and other runtimes, and do not know how many heads there will be.
        if not torch.compiler.is_exporting():
            heads = list(zip(*(states.split(MAX_HEADS, dim=2) for states in heads[0]), strict=True))
        parts = [
            dispatch_attention_fn(
                *some_heads,
                attn_mask=attention_mask,
                backend=self._attention_backend,
                parallel_config=None if attn.over_frames else self._parallel_config,
            )
            for some_heads in heads
        ]
        states = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        states = attn.join_heads(states.to(query.dtype), hidden_states)  # (B, T, N, heads * head_dim)
        return attn.to_out[1](attn.to_out[0](states))


class FactoredAttention(nn.Module, AttentionModuleMixin):
    r"""Multi-head self-attention with rotary positions and a layer norm on each head's queries and keys.

    Args:
        dim: Width of the tokens.
        heads: Number of heads.
        dim_head: Channels of one head.
        over_frames: Whether a token attends to those at its position in other frames, or to those of its frame.
            Context parallelism may split the tokens of a frame, never the frames.
    """

    _default_processor_cls = FactoredAttnProcessor
    _available_processors = [FactoredAttnProcessor]
    processor: FactoredAttnProcessor
    to_qkv: nn.Linear  # there while projections are fused

    def __init__(self, dim: int, heads: int, dim_head: int, over_frames: bool):
        super().__init__()
        self.heads = heads
        self.dim_head = dim_head
        self.use_bias = True
        self.is_cross_attention = False
        self.over_frames = over_frames

        inner_dim = heads * dim_head
        self.to_q = nn.Linear(dim, inner_dim)
        self.to_k = nn.Linear(dim, inner_dim)
        self.to_v = nn.Linear(dim, inner_dim)
        self.norm_q = nn.LayerNorm(dim_head, eps=1e-6, bias=False)
        self.norm_k = nn.LayerNorm(dim_head, eps=1e-6, bias=False)
        linear_out = nn.Linear(inner_dim, dim)
        self.to_out = nn.ModuleList([linear_out, nn.Dropout(0.0)])
        self.processor = FactoredAttnProcessor()
        # A hundredth of the usual variance on what joins the residual stream keeps a deep stack near the identity.
        nn.init.normal_(linear_out.weight, std=0.1 * inner_dim**-0.5)
        nn.init.zeros_(linear_out.bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, rotary_emb, attention_mask)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        r"""Views `(batch, frames, tokens, heads * head_dim)` as `(sequences, length, heads, head_dim)`.

        Over frames the sequences are the clips, and every token position has heads of its own.
        """
        if not self.over_frames:
            return states.flatten(0, 1).unflatten(-1, (self.heads, self.dim_head))
        return states.unflatten(-1, (self.heads, self.dim_head)).flatten(2, 3)

    def join_heads(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        r"""Inverse of `split_heads`; `tokens` are `(batch, frames, tokens, dim)`."""
        return states.reshape(*tokens.shape[:3], self.heads * self.dim_head)


class FactoredFeedForward(nn.Module):
    r"""Linear, SiLU, Linear.

    Args:
        dim: Width of the tokens.
        inner_dim: Inner width.
        convolution: Whether every inner channel also takes a 3x3 convolution over the frame's tokens before SiLU
            (https://arxiv.org/abs/2105.15203); a new one adds nothing.
    """

    def __init__(self, dim: int, inner_dim: int, convolution: bool = False):
        super().__init__()
        self.linear_1 = nn.Linear(dim, inner_dim)
        self.conv = (
            nn.Conv2d(inner_dim, inner_dim, 3, padding=1, groups=inner_dim, bias=False) if convolution else None
        )
        if self.conv is not None:
            nn.init.zeros_(self.conv.weight)
        self.linear_2 = nn.Linear(inner_dim, dim)
        nn.init.normal_(self.linear_2.weight, std=0.1 * inner_dim**-0.5)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, hidden_states: torch.Tensor, grid_size: tuple[int, int] | None = None) -> torch.Tensor:
        states = self.linear_1(hidden_states)  # (B, T, N, inner_dim)
        if self.conv is not None:
            grid = states.flatten(0, 1).unflatten(1, grid_size).permute(0, 3, 1, 2)  # (B * T, inner_dim, h, w)
            states = states + self.conv(grid).permute(0, 2, 3, 1).reshape(states.shape)
        return self.linear_2(F.silu(states, inplace=not torch.is_grad_enabled()))


class FactoredAttentionBlock(nn.Module):
    r"""Temporal attention, temporal MLP, spatial attention, spatial MLP, each pre-normed and residual.

    Args:
        dim: Width of the tokens.
        num_attention_heads: Number of heads of both attentions.
        attention_head_dim: Channels of one head.
        ff_inner_dim: Inner width of both MLPs.
        adaptive: Whether every sub-layer is shifted, scaled and gated by a modulation given to `forward`
            (adaLN-single, https://arxiv.org/abs/2310.00426); such a block starts as the identity.
        text_dim: Channels of text embeddings that tokens attend to after spatial attention; None for no text.
        ff_convolution: Whether the spatial MLP sees the tokens around its own.
    """

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        ff_inner_dim: int,
        adaptive: bool = False,
        text_dim: int | None = None,
        ff_convolution: bool = False,
    ):
        super().__init__()
        self.temporal_attn_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=not adaptive)
        self.temporal_attn = FactoredAttention(dim, num_attention_heads, attention_head_dim, over_frames=True)
        self.temporal_ff_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=not adaptive)
        self.temporal_ff = FactoredFeedForward(dim, ff_inner_dim)
        self.spatial_attn_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=not adaptive)
        self.spatial_attn = FactoredAttention(dim, num_attention_heads, attention_head_dim, over_frames=False)
        self.text_attn = None
        if text_dim is not None:
            self.text_attn = TextAttention(dim, num_attention_heads, attention_head_dim, text_dim)
        self.spatial_ff_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=not adaptive)
        self.spatial_ff = FactoredFeedForward(dim, ff_inner_dim, ff_convolution)
        self.scale_shift_table = nn.Parameter(torch.zeros(NUM_MODULATIONS, dim)) if adaptive else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        temporal_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        spatial_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        frame_mask: torch.Tensor | None = None,
        modulation: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        r"""
        Args:
            hidden_states: Tokens, `(batch, frames, tokens, dim)`.
            temporal_rotary_emb: Cosines and sines of the frames, each `(frames, head_dim)`.
            spatial_rotary_emb: Cosines and sines of the tokens, each `(tokens, head_dim)`.
            frame_mask: Bool `(batch, frames)`; frames that are False are not attended to.
            modulation: `(batch, 12, dim)`, for an adaptive block.
            encoder_hidden_states: Text embeddings, `(batch, text_tokens, text_dim)`, for a block with text.
            encoder_attention_mask: Bool `(batch, text_tokens)`, False for padding.
            grid_size: Rows and columns of the tokens, for a block with `ff_convolution`.
        """
        shifts, scales, gates = self._modulations(modulation)
        temporal_mask = None if frame_mask is None else frame_mask[:, None, None]  # (B, 1, 1, T)

        states = _modulate(self.temporal_attn_norm(hidden_states), shifts[0], scales[0])  # (B, T, N, D)
        states = self.temporal_attn(states, temporal_rotary_emb, temporal_mask)
        hidden_states = _add_gated(hidden_states, states, gates[0], is_own=False)

        states = self.temporal_ff(_modulate(self.temporal_ff_norm(hidden_states), shifts[1], scales[1]))
        hidden_states = _add_gated(hidden_states, states, gates[1])

        states = _modulate(self.spatial_attn_norm(hidden_states), shifts[2], scales[2])
        states = self.spatial_attn(states, spatial_rotary_emb)
        hidden_states = _add_gated(hidden_states, states, gates[2])

        if self.text_attn is not None and encoder_hidden_states is not None:
            hidden_states = self.text_attn(hidden_states, encoder_hidden_states, encoder_attention_mask)

        states = _modulate(self.spatial_ff_norm(hidden_states), shifts[3], scales[3])
        states = self.spatial_ff(states, grid_size)
        return _add_gated(hidden_states, states, gates[3])

    def _modulations(self, modulation: torch.Tensor | None) -> tuple:
        """Shift, scale and gate of the four sub-layers, each `(batch, 1, 1, dim)`, or None for a plain block."""
        if self.scale_shift_table is None:
            return (None,) * 4, (None,) * 4, (None,) * 4
        if modulation is None:
            raise ValueError("An adaptive block needs `modulation`, got None.")
        values = (self.scale_shift_table + modulation)[:, :, None, None].unbind(1)  # 12 x (B, 1, 1, D)
        return values[0:4], values[4:8], values[8:12]


def embed_latents(latents: torch.Tensor, proj_in: nn.Linear, context: nn.Conv2d | None) -> torch.Tensor:
    r"""Tokens `(batch, frames, tokens, dim)` of `(batch, channels, frames, height, width)`.

    Args:
        latents: The latents.
        proj_in: Makes a token of one latent.
        context: Adds what the latents around it say; None for nothing.
    """
    tokens = proj_in(latents.flatten(3).permute(0, 2, 3, 1).contiguous())  # (B, T, N, D)
    if context is None:
        return tokens
    frames = context(latents.transpose(1, 2).flatten(0, 1))  # (B * T, D, h, w)
    return tokens + frames.flatten(2).mT.unflatten(0, tokens.shape[:2])


def run_blocks(model: Any, hidden_states: torch.Tensor, *arguments: Any) -> torch.Tensor:
    r"""Runs tokens `(batch, frames, tokens, dim)` through `model.transformer_blocks`, checkpointed if asked for.

    Args:
        model: A module with `transformer_blocks`, `gradient_checkpointing` and diffusers' function for it.
        hidden_states: The tokens.
        arguments: What every block takes besides.
    """
    for block in model.transformer_blocks:
        if torch.is_grad_enabled() and model.gradient_checkpointing:
            hidden_states = model._gradient_checkpointing_func(block, hidden_states, *arguments)
        else:
            hidden_states = block(hidden_states, *arguments)
    return hidden_states


def _modulate(hidden_states: torch.Tensor, shift: torch.Tensor | None, scale: torch.Tensor | None) -> torch.Tensor:
    return hidden_states if shift is None or scale is None else torch.addcmul(shift, hidden_states, 1 + scale)


def _add_gated(
    hidden_states: torch.Tensor, states: torch.Tensor, gate: torch.Tensor | None, is_own: bool = True
) -> torch.Tensor:
    """Adds to the residual stream, in place if it is the block's own and no gradient needs it."""
    if torch.is_grad_enabled() or not is_own:
        return hidden_states + states if gate is None else torch.addcmul(hidden_states, gate, states)
    return hidden_states.add_(states) if gate is None else hidden_states.addcmul_(gate, states)
