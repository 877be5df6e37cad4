r"""The two halves of `FrameSelectVAE`: pixels to latents and keep logits, and latents to pixels.

Architecture of https://github.com/floatingtrees/dynamic-frame-compression/blob/2150c20/autoencoder.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .clip_windows import stack_padded
from .factored_attention import FactoredAttentionBlock, embed_latents, run_blocks
from .frame_fill import ChannelCycle, TemporalFilter, clip_lengths
from .refiner import Refiner


class PatchEmbed(nn.Module):
    r"""Frames to tokens; a patch's pixels are laid out `(row, column, channel)`."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int, patch_norm: bool):
        super().__init__()
        patch_dim = in_channels * patch_size**2
        self.patch_size = patch_size
        self.norm = nn.LayerNorm(patch_dim, eps=1e-6) if patch_norm else nn.Identity()
        self.proj = nn.Linear(patch_dim, hidden_size)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        patches = frames.unflatten(4, (-1, self.patch_size)).unflatten(3, (-1, self.patch_size))  # (B,C,T,h,p,w,p)
        patches = patches.permute(0, 2, 3, 5, 4, 6, 1).flatten(4, 6).flatten(2, 3)  # (B, T, N, p * p * C)
        return self.proj(self.norm(patches))  # (B, T, N, D)


class PatchUnembed(nn.Module):
    r"""Tokens to full-resolution features; a token's features are laid out `(row, column, channel, feature)`."""

    def __init__(self, patch_size: int, out_channels: int, hidden_size: int, unpatch_channels: int):
        super().__init__()
        self.patch_size = patch_size
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.upsample = nn.Linear(hidden_size, out_channels * patch_size**2 * unpatch_channels)

    def forward(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        features = self.upsample(self.linear(tokens))  # (B, T, N, p * p * C * u)
        features = features.unflatten(3, (self.patch_size, self.patch_size, -1))
        features = features.unflatten(2, (height, width))  # (B, T, h, w, p, p, C * u)
        features = features.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)  # (B, T, H, W, C * u)
        return features.permute(0, 4, 1, 2, 3)  # (B, C * u, T, H, W), channels innermost


class LatentKeepHead(nn.Module):
    r"""Keep logit of a frame from its latent mean, by a weight for every token position."""

    def __init__(self, latent_channels: int, num_tokens: int):
        super().__init__()
        self.token_proj = nn.Linear(latent_channels, 1)
        self.frame_proj = nn.Linear(num_tokens, 1)

    def forward(
        self, tokens: torch.Tensor, mean: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        scores = self.token_proj(mean).squeeze(-1)  # (B, T, N)
        return self.frame_proj(scores).squeeze(-1).float() + 1  # (B, T)


class PooledKeepHead(nn.Module):
    r"""Keep logit of a frame from the mean and root mean square of its tokens, whatever their number."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.linear_1 = nn.Linear(2 * hidden_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, 1)

    def forward(
        self, tokens: torch.Tensor, mean: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        tokens = self.norm(tokens)
        mean_square = tokens.float().square().mean(dim=2)  # (B, T, D)
        pooled = torch.cat([tokens.mean(dim=2), (mean_square + 1e-6).sqrt().to(tokens.dtype)], dim=-1)
        return self.linear_2(F.silu(self.linear_1(pooled))).squeeze(-1).float()  # (B, T)


class MotionKeepHead(nn.Module):
    r"""Keep logit of a frame from how much its tokens change to those of the frames before and after it.

    It is linear in the logarithms of the mean squared changes per frame, over each of `reaches` frames to both sides,
    of channels that are scaled by a weight each.
    """

    reaches = (2, 4)
    # Still film changes by so much, in squared units of scaled tokens: less is rounding.
    floor = 1e-6

    def __init__(self, hidden_size: int):
        super().__init__()
        self.channel_scale = nn.Parameter(torch.ones(hidden_size))
        self.linear = nn.Linear(len(self.reaches), 1)

    def forward(
        self, tokens: torch.Tensor, mean: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        num_frames = tokens.shape[1]
        tokens = tokens * self.channel_scale
        time = torch.arange(num_frames, device=tokens.device)
        last = clip_lengths(frame_mask, len(tokens), num_frames, tokens.device)[:, None] - 1
        clip = torch.arange(len(tokens), device=tokens.device)[:, None]
        changes = []
        for reach in self.reaches:
            before, after = (time - reach).clamp(min=0), torch.minimum(time + reach, last)
            difference = tokens[clip, after] - tokens[:, before]  # (B, T, N, D)
            change = difference.float().square().mean(dim=(2, 3)) / (after - before).clamp(min=1).square()
            changes.append((change + self.floor).log())
        return self.linear(torch.stack(changes, dim=-1).to(tokens.dtype)).squeeze(-1).float()  # (B, T)


class FrameSelectEncoder(nn.Module):
    r"""Pixels to latent mean, log-variance and keep logits, all frames of a clip seeing each other."""

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        patch_norm: bool,
        hidden_size: int,
        num_layers: int,
        num_attention_heads: int,
        attention_head_dim: int,
        ff_inner_dim: int,
        latent_channels: int,
        cycle_channels: int,
        cycle_length: int,
        filter_size: int,
        keep_head: str,
        num_tokens: int,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, in_channels, hidden_size, patch_norm)
        self.transformer_blocks = nn.ModuleList(
            FactoredAttentionBlock(hidden_size, num_attention_heads, attention_head_dim, ff_inner_dim)
            for _ in range(num_layers)
        )
        self.cycle = ChannelCycle(latent_channels, cycle_channels, cycle_length)
        self.to_mean = nn.Linear(hidden_size, self.cycle.num_channels)
        self.temporal_filter = TemporalFilter(self.cycle.num_channels, filter_size) if filter_size > 1 else None
        self.to_variance = nn.Linear(hidden_size, latent_channels)
        self.keep_head: LatentKeepHead | PooledKeepHead | MotionKeepHead
        if keep_head == "latent":
            self.keep_head = LatentKeepHead(latent_channels, num_tokens)
        else:
            self.keep_head = PooledKeepHead(hidden_size) if keep_head == "pooled" else MotionKeepHead(hidden_size)
        self.gradient_checkpointing = False
        # A standard deviation near 0.1 lets a fresh decoder see the latents through the noise.
        nn.init.zeros_(self.to_variance.weight)
        nn.init.constant_(self.to_variance.bias, -4.5)

    def forward(
        self,
        frames: torch.Tensor,
        temporal_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        spatial_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        frame_mask: torch.Tensor | None = None,
        first_frame: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.patch_embed(frames)  # (B, T, N, D)
        tokens = run_blocks(self, tokens, temporal_rotary_emb, spatial_rotary_emb, frame_mask)

        mean = self.to_mean(tokens)
        if self.temporal_filter is not None:
            lengths = clip_lengths(frame_mask, frames.shape[0], frames.shape[2], frames.device)
            mean = self.temporal_filter(mean, lengths)
        mean = self.cycle.send(mean, first_frame)  # (B, T, N, C)
        variance = F.softplus(self.to_variance(tokens).float()) + 1e-6
        keep_logits = self.keep_head(tokens, mean, frame_mask)  # (B, T)
        parameters = torch.cat([mean, variance.log().to(mean.dtype)], dim=-1)  # (B, T, N, 2 * C)
        return parameters, keep_logits

    def filter_matrix(self, lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
        """What the latents of clips with `lengths` `(B,)` were filtered by, float32 `(B, num_channels, T, T)`."""
        if self.temporal_filter is not None:
            return self.temporal_filter.matrix(lengths, num_frames)
        identity = torch.eye(num_frames, device=lengths.device)
        return identity.expand(len(lengths), self.cycle.num_channels, -1, -1)


class FrameSelectDecoder(nn.Module):
    r"""Latents, with the fill token in the place of dropped frames, to pixels."""

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(
        self,
        fill_channels: int,
        context: bool,
        hidden_size: int,
        num_layers: int,
        num_attention_heads: int,
        attention_head_dim: int,
        ff_inner_dim: int,
        out_channels: int,
        patch_size: int,
        unpatch_channels: int,
        refiner_channels: int,
        refiner_levels: int,
        refiner_norm: str,
    ):
        super().__init__()
        self.proj_in = nn.Linear(fill_channels, hidden_size)
        self.context = None
        if context:
            self.context = nn.Conv2d(fill_channels, hidden_size, kernel_size=3, padding=1, bias=False)
            nn.init.zeros_(self.context.weight)
        self.transformer_blocks = nn.ModuleList(
            FactoredAttentionBlock(hidden_size, num_attention_heads, attention_head_dim, ff_inner_dim)
            for _ in range(num_layers)
        )
        self.patch_unembed = PatchUnembed(patch_size, out_channels, hidden_size, unpatch_channels)
        unpatched_channels = out_channels * unpatch_channels
        self.to_pixels = nn.Linear(unpatched_channels, out_channels)
        self.refiner = None
        if refiner_levels:
            self.refiner = Refiner(
                unpatched_channels, out_channels, refiner_channels, refiner_levels, refiner_norm == "frame"
            )
        self.gradient_checkpointing = False

    def forward(
        self,
        latents: torch.Tensor,
        temporal_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        spatial_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        frame_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        height, width = latents.shape[3:]
        tokens = embed_latents(latents, self.proj_in, self.context)  # (B, T, N, D)
        tokens = run_blocks(self, tokens, temporal_rotary_emb, spatial_rotary_emb, frame_mask)

        if frame_mask is None:
            return self.refine(self.patch_unembed(tokens, height, width))  # (B, C, T, H, W)
        # Convolutions and norms mix frames, so each clip is refined at its own length.
        clips = [
            self.refine(self.patch_unembed(tokens[clip : clip + 1, :length], height, width))
            for clip, length in enumerate(frame_mask.sum(dim=1).tolist())
        ]
        return stack_padded(clips, tokens.shape[1])

    def refine(self, features: torch.Tensor) -> torch.Tensor:
        frames = self.to_pixels(features.movedim(1, -1)).movedim(-1, 1)  # (B, C, T, H, W)
        return frames if self.refiner is None else frames + self.refiner(features)
