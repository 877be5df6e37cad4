"""Attention of a clip's tokens to those of a text."""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn


class TextAttention(nn.Module):
    r"""Cross-attention to text embeddings, pre-normed and residual; a new one is the identity.

    Args:
        dim: Width of the tokens.
        num_attention_heads: Number of heads.
        attention_head_dim: Channels of one head.
        text_dim: Channels of the text embeddings.
    """

    def __init__(self, dim: int, num_attention_heads: int, attention_head_dim: int, text_dim: int):
        super().__init__()
        inner_dim = num_attention_heads * attention_head_dim
        self.heads = num_attention_heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.to_q = nn.Linear(dim, inner_dim)
        self.to_k = nn.Linear(text_dim, inner_dim)
        self.to_v = nn.Linear(text_dim, inner_dim)
        self.norm_q = nn.LayerNorm(attention_head_dim, eps=1e-6, bias=False)
        self.norm_k = nn.LayerNorm(attention_head_dim, eps=1e-6, bias=False)
        self.to_out = nn.Linear(inner_dim, dim)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""
        Args:
            hidden_states: Tokens, `(batch, frames, tokens, dim)`.
            encoder_hidden_states: Text embeddings, `(batch, text_tokens, text_dim)`.
            encoder_attention_mask: Bool `(batch, text_tokens)`, False for padding.
        """
        query = self.to_q(self.norm(hidden_states)).flatten(1, 2)  # (B, T * N, heads * head_dim)
        key, value = self.to_k(encoder_hidden_states), self.to_v(encoder_hidden_states)
        query, key, value = (states.unflatten(-1, (self.heads, -1)) for states in (query, key, value))
        mask = None if encoder_attention_mask is None else encoder_attention_mask[:, None, None]  # (B, 1, 1, L)
        states = dispatch_attention_fn(self.norm_q(query), self.norm_k(key), value, attn_mask=mask)
        states = states.flatten(2, 3).to(query.dtype).unflatten(1, hidden_states.shape[1:3])  # (B, T, N, ...)
        return hidden_states + self.to_out(states)
