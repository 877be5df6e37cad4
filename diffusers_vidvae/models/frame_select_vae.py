r"""A video autoencoder that learns which frames to keep.

Architecture of https://github.com/floatingtrees/dynamic-frame-compression/blob/2150c20/autoencoder.py, with every
frame accounted for: decoded clips have the length of the clips that were encoded, and clips of one batch do not
influence each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .factored_attention import FactoredAttentionBlock, RotaryEmbedding
from .tiling import TileBlend, TileGrid


SELECTION_MODES = ("systematic", "threshold", "bernoulli", "top_k", "uniform")


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


@dataclass
class PackedFrames(BaseOutput):
    r"""The kept latent frames of each clip, moved to the front.

    Args:
        latents: `(batch, latent_channels, kept, height, width)`; 0 in slots beyond a clip's own count.
        gaps: int64 `(batch, kept)`: the first kept frame's index, then the distance to the previous kept frame.
        mask: bool `(batch, kept)`; True where a slot holds a frame.
        num_frames: Length of each clip, int64 `(batch,)`.
    """

    latents: torch.Tensor
    gaps: torch.Tensor
    mask: torch.Tensor
    num_frames: torch.Tensor


class ClipWindow(NamedTuple):
    """Frames `start` to `stop` of a clip, of which those from `first_new` on are not in the window before."""

    start: int
    stop: int
    first_new: int


def clip_windows(num_frames: int, clip_num_frames: int) -> list[ClipWindow]:
    r"""Cuts a clip into windows of `clip_num_frames`; the last one reaches back so that it is full."""
    windows = []
    for first_new in range(0, num_frames, clip_num_frames):
        stop = min(first_new + clip_num_frames, num_frames)
        windows.append(ClipWindow(max(stop - clip_num_frames, 0), stop, first_new))
    return windows


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
        features = features.permute(0, 6, 1, 2, 4, 3, 5)  # (B, C * u, T, h, p, w, p)
        return features.flatten(5, 6).flatten(3, 4)  # (B, C * u, T, H, W)


class LatentKeepHead(nn.Module):
    r"""Keep logit of a frame from its latent mean, by a weight for every token position."""

    def __init__(self, latent_channels: int, num_tokens: int):
        super().__init__()
        self.token_proj = nn.Linear(latent_channels, 1)
        self.frame_proj = nn.Linear(num_tokens, 1)

    def forward(self, tokens: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        scores = self.token_proj(mean).squeeze(-1)  # (B, T, N)
        return self.frame_proj(scores).squeeze(-1).float() + 1  # (B, T)


class PooledKeepHead(nn.Module):
    r"""Keep logit of a frame from the mean and root mean square of its tokens, whatever their number.

    `trunk_gradient_scale` multiplies the gradient that reaches the tokens, so that a training loop can keep the noise
    of a policy gradient out of the trunk.
    """

    trunk_gradient_scale: float = 1.0

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.linear_1 = nn.Linear(2 * hidden_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, 1)

    def forward(self, tokens: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        if self.trunk_gradient_scale != 1.0:
            tokens = tokens.detach() + self.trunk_gradient_scale * (tokens - tokens.detach())
        tokens = self.norm(tokens)
        mean_square = tokens.float().square().mean(dim=2)  # (B, T, D)
        pooled = torch.cat([tokens.mean(dim=2), (mean_square + 1e-6).sqrt().to(tokens.dtype)], dim=-1)
        return self.linear_2(F.silu(self.linear_1(pooled))).squeeze(-1).float()  # (B, T)


class ChannelCycle(nn.Module):
    r"""Takes turns in what the last latent channels of a frame carry.

    Of the channels of a token, the first are sent with every frame. The rest form `length` groups of `channels`, and
    frame t sends group `t % length` in the last channels of its latent: what changes slowly needs no place in every
    frame, so that detail gets more numbers where frames resemble each other.

    Args:
        latent_channels: Channels of a frame's latent.
        channels: Last channels of the latent that the groups share; 0 for none.
        length: Number of groups, in frames.
    """

    def __init__(self, latent_channels: int, channels: int, length: int):
        super().__init__()
        self.latent_channels = latent_channels
        self.channels = channels
        self.length = length if channels else 0
        self.constant_channels = latent_channels - channels
        self.num_channels = self.constant_channels + self.length * channels
        self.num_fill_features = 2 * self.num_channels + 2 * (1 + self.length)

    def send(self, values: torch.Tensor, first_frame: int) -> torch.Tensor:
        """Picks of all channels `(B, T, N, num_channels)` those that every frame sends, `(B, T, N, C)`."""
        if not self.channels:
            return values
        constant, cycled = values.split([self.constant_channels, self.length * self.channels], dim=-1)
        turns = self.turns(values.shape[1], first_frame, values.device)
        groups = cycled.unflatten(-1, (self.length, self.channels))  # (B, T, N, length, channels)
        sent = groups[:, torch.arange(values.shape[1], device=values.device), :, turns]  # (T, B, N, channels)
        return torch.cat([constant, sent.transpose(0, 1)], dim=-1)

    def turns(self, num_frames: int, first_frame: int, device: torch.device) -> torch.Tensor:
        """The group that each frame sends, int64 `(T,)`."""
        return (first_frame + torch.arange(num_frames, device=device)) % self.length


class FrameSelectEncoder(nn.Module):
    r"""Pixels to latent mean, log-variance and keep logits, all frames of a clip seeing each other."""

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(
        self,
        patch_embed: PatchEmbed,
        blocks: list[FactoredAttentionBlock],
        hidden_size: int,
        cycle: ChannelCycle,
        keep_head: nn.Module,
    ):
        super().__init__()
        self.patch_embed = patch_embed
        self.transformer_blocks = nn.ModuleList(blocks)
        self.cycle = cycle
        self.to_mean = nn.Linear(hidden_size, cycle.num_channels)
        self.to_variance = nn.Linear(hidden_size, cycle.latent_channels)
        self.keep_head = keep_head
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
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(
                    block, tokens, temporal_rotary_emb, spatial_rotary_emb, frame_mask
                )
            else:
                tokens = block(tokens, temporal_rotary_emb, spatial_rotary_emb, frame_mask)

        mean = self.cycle.send(self.to_mean(tokens), first_frame)  # (B, T, N, C)
        variance = F.softplus(self.to_variance(tokens).float()) + 1e-6
        keep_logits = self.keep_head(tokens, mean)  # (B, T)
        parameters = torch.cat([mean, variance.log().to(mean.dtype)], dim=-1)  # (B, T, N, 2 * C)
        return parameters, keep_logits


class FillToken(nn.Module):
    r"""Puts one learned token in the place of every latent of a dropped frame."""

    def __init__(self, latent_channels: int):
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(latent_channels))

    def forward(self, latents: torch.Tensor, keep_mask: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
        token = self.weight.to(latents.dtype)[:, None, None, None]
        return torch.where(keep_mask[:, None, :, None, None], latents, token)  # (B, C, T, h, w)


class InterpolatedFill(nn.Module):
    r"""Puts the blend of the neighbouring kept latents in the place of what a frame does not send.

    Every group of channels is blended between the frames that send it, weighted by distance, and held beyond the first
    and the last of them. The result also has the change from the frame before to the frame after, and the nearness
    `1 / (1 + frames)` of both, 0 where there is none.
    """

    def __init__(self, cycle: ChannelCycle):
        super().__init__()
        self.cycle = cycle

    def forward(self, latents: torch.Tensor, keep_mask: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
        constant, cycled = latents.split([self.cycle.constant_channels, self.cycle.channels], dim=1)
        groups = [self._interpolate(constant, keep_mask)]
        if self.cycle.channels:
            turns = self.cycle.turns(latents.shape[2], first_frame, latents.device)
            groups += [self._interpolate(cycled, keep_mask & (turns == turn)) for turn in range(self.cycle.length)]
        blends, changes, nearness = zip(*groups, strict=True)
        distances = torch.cat(nearness, dim=1)[..., None, None].expand(-1, -1, -1, *latents.shape[3:])
        return torch.cat([*blends, *changes, distances.to(latents.dtype)], dim=1)  # (B, num_fill_features, T, h, w)

    def _interpolate(
        self, latents: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Blend and change of latents `(B, C, T, h, w)` that are known where `(B, T)` says; nearness `(B, 2, T)`."""
        num_frames = known.shape[1]
        time = torch.arange(num_frames, device=known.device)
        before = torch.where(known, time, -1).cummax(dim=1).values  # (B, T)
        after = torch.where(known, time, num_frames).flip(1).cummin(dim=1).values.flip(1)
        nearness = torch.stack([(before >= 0) / (1 + time - before), (after < num_frames) / (1 + after - time)], dim=1)
        before, after = torch.where(before < 0, after, before), torch.where(after == num_frames, before, after)
        weight = (time - before) / (after - before).clamp(min=1)
        # Zeros stand for channels that no frame of the window sends.
        latents = torch.where(known[:, None, :, None, None], latents, 0)
        earlier, later = (self._frames(latents, index.clamp(0, num_frames - 1)) for index in (before, after))
        change = later - earlier
        return earlier + weight.to(latents.dtype)[:, None, :, None, None] * change, change, nearness

    @staticmethod
    def _frames(latents: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return latents.gather(2, index[:, None, :, None, None].expand_as(latents))


class ConvNormAct(nn.Module):
    r"""3x3x3 convolution, group norm over a clip (or over each frame) and SiLU."""

    def __init__(self, in_channels: int, out_channels: int, norm_per_frame: bool):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(min(8, out_channels), out_channels, eps=1e-6)
        self.norm_per_frame = norm_per_frame

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv(hidden_states)  # (B, C, T, H, W)
        if self.norm_per_frame:
            frames = hidden_states.transpose(1, 2)
            hidden_states = self.norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)
        else:
            hidden_states = self.norm(hidden_states)
        return F.silu(hidden_states)


class RefinerDownBlock(nn.Module):
    r"""Two convolutions, whose result is both handed across and halved in height and width."""

    def __init__(self, in_channels: int, out_channels: int, norm_per_frame: bool):
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, out_channels, norm_per_frame)
        self.conv2 = ConvNormAct(out_channels, out_channels, norm_per_frame)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        skip = self.conv2(self.conv1(hidden_states))  # (B, C, T, H, W)
        return F.max_pool3d(skip, kernel_size=(1, 2, 2)), skip


class RefinerUpBlock(nn.Module):
    r"""Doubles height and width and joins what the down block handed across."""

    def __init__(self, in_channels: int, out_channels: int, norm_per_frame: bool):
        super().__init__()
        self.upsample = nn.ConvTranspose3d(in_channels, out_channels, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.conv1 = ConvNormAct(2 * out_channels, out_channels, norm_per_frame)
        self.conv2 = ConvNormAct(out_channels, out_channels, norm_per_frame)

    def forward(self, hidden_states: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        hidden_states = torch.cat([self.upsample(hidden_states), skip], dim=1)  # (B, 2 * C, T, 2 * H, 2 * W)
        return self.conv2(self.conv1(hidden_states))


class Refiner(nn.Module):
    r"""3D U-Net at full resolution that adds what patches cannot show: seams, motion, fine detail."""

    def __init__(self, in_channels: int, out_channels: int, base_channels: int, levels: int, norm_per_frame: bool):
        super().__init__()
        widths = [base_channels * 2**level for level in range(levels + 1)]
        self.patch_mixer = nn.Conv3d(in_channels, in_channels, kernel_size=(3, 7, 7), padding=(1, 3, 3))
        self.down_blocks = nn.ModuleList(
            RefinerDownBlock(width_in, width_out, norm_per_frame)
            for width_in, width_out in zip([in_channels, *widths], widths[:-1], strict=False)
        )
        self.mid_conv1 = ConvNormAct(widths[-2], widths[-1], norm_per_frame)
        self.mid_conv2 = ConvNormAct(widths[-1], widths[-1], norm_per_frame)
        self.up_blocks = nn.ModuleList(
            RefinerUpBlock(width_in, width_out, norm_per_frame)
            for width_in, width_out in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.conv_out = nn.Conv3d(base_channels, out_channels, kernel_size=1)
        # A fresh refiner adds nothing.
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # Few channels at full resolution: convolutions run faster with the channels innermost.
        features = features.contiguous(memory_format=torch.channels_last_3d)
        hidden_states = self.patch_mixer(features)  # (B, C, T, H, W)
        skips = []
        for block in self.down_blocks:
            hidden_states, skip = block(hidden_states)
            skips.append(skip)
        hidden_states = self.mid_conv2(self.mid_conv1(hidden_states))
        for block in self.up_blocks:
            hidden_states = block(hidden_states, skips.pop())
        return self.conv_out(hidden_states)


class FrameSelectDecoder(nn.Module):
    r"""Latents, with the fill token in the place of dropped frames, to pixels."""

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(
        self,
        blocks: list[FactoredAttentionBlock],
        patch_unembed: PatchUnembed,
        refiner: Refiner | None,
        fill_channels: int,
        hidden_size: int,
        unpatched_channels: int,
        out_channels: int,
    ):
        super().__init__()
        self.proj_in = nn.Linear(fill_channels, hidden_size)
        self.transformer_blocks = nn.ModuleList(blocks)
        self.patch_unembed = patch_unembed
        self.to_pixels = nn.Linear(unpatched_channels, out_channels)
        self.refiner = refiner
        self.gradient_checkpointing = False

    def forward(
        self,
        latents: torch.Tensor,
        temporal_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        spatial_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        frame_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        height, width = latents.shape[3:]
        tokens = self.proj_in(latents.flatten(3).permute(0, 2, 3, 1))  # (B, T, N, D)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(
                    block, tokens, temporal_rotary_emb, spatial_rotary_emb, frame_mask
                )
            else:
                tokens = block(tokens, temporal_rotary_emb, spatial_rotary_emb, frame_mask)

        if frame_mask is None:
            return self.refine(self.patch_unembed(tokens, height, width))  # (B, C, T, H, W)
        # Convolutions and norms mix frames, so each clip is refined at its own length.
        clips = [
            self.refine(self.patch_unembed(tokens[clip : clip + 1, :length], height, width))
            for clip, length in enumerate(frame_mask.sum(dim=1).tolist())
        ]
        return _stack_padded(clips, tokens.shape[1])

    def refine(self, features: torch.Tensor) -> torch.Tensor:
        frames = self.to_pixels(features.movedim(1, -1)).movedim(-1, 1)  # (B, C, T, H, W)
        return frames if self.refiner is None else frames + self.refiner(features)


class FrameSelectVAE(
    ModelMixin, AutoencoderMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin, FromOriginalModelMixin
):
    r"""Autoencoder that gives every frame a latent and a keep probability, and decodes clips from kept frames alone.

    Frames that are not kept are replaced by a learned token, and the decoder fills them in from their neighbours.
    Pixels are `(batch, channels, frames, height, width)` in [-1, 1]; latents are
    `(batch, latent_channels, frames, height / patch_size, width / patch_size)`, one latent frame per frame.

    The defaults are the published model of https://github.com/floatingtrees/dynamic-frame-compression
    (170,631,304 parameters). Clips longer than `clip_num_frames` run in windows of that length.

    Args:
        sample_size: Height and width the model was trained at, in pixels; the tile size of `enable_tiling`.
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
            `"pooled"` reads pooled tokens, for any size.
        refiner_norm: Statistics of the refiner's group norms over a `"clip"` or over each `"frame"`.
        fill: What the decoder reads in the place of dropped frames: a learned `"token"`, or `"interpolate"` for the
            blend of the kept frames before and after, with how much they differ and how far they are.
        cycle_channels: Last latent channels whose content takes turns from frame to frame, see `ChannelCycle`; above 0
            needs `fill="interpolate"`.
        cycle_length: Frames after which it is the first group's turn again.
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
    ):
        super().__init__()
        if sample_size % patch_size:
            raise ValueError(f"`sample_size` must be a multiple of `patch_size`, got {sample_size} and {patch_size}.")
        if refiner_levels < 0 or patch_size % 2**refiner_levels:
            raise ValueError(
                f"`patch_size` must be a multiple of 2 ** `refiner_levels`, which is at least 0, got {patch_size} and"
                f" {refiner_levels} levels."
            )
        if clip_num_frames > max_num_frames:
            raise ValueError(
                f"`clip_num_frames` must be at most `max_num_frames`, got {clip_num_frames} and {max_num_frames}."
            )
        if keep_head not in ("latent", "pooled"):
            raise ValueError(f"`keep_head` must be one of ('latent', 'pooled'), got {keep_head!r}.")
        if refiner_norm not in ("clip", "frame"):
            raise ValueError(f"`refiner_norm` must be one of ('clip', 'frame'), got {refiner_norm!r}.")
        if fill not in ("token", "interpolate"):
            raise ValueError(f"`fill` must be one of ('token', 'interpolate'), got {fill!r}.")
        if not 0 <= cycle_channels < latent_channels or cycle_channels and fill != "interpolate":
            raise ValueError(
                f"`cycle_channels` must be below the {latent_channels} latent channels, and 0 unless `fill` is"
                f" 'interpolate', got {cycle_channels} and {fill!r}."
            )
        if cycle_length < 1:
            raise ValueError(f"`cycle_length` must be at least 1, got {cycle_length}.")

        hidden_size = hidden_size or in_channels * patch_size**2
        num_tokens = (sample_size // patch_size) ** 2
        self.spatial_compression_ratio = patch_size
        self.temporal_compression_ratio = 1

        def make_blocks(num_layers: int) -> list[FactoredAttentionBlock]:
            arguments = (hidden_size, num_attention_heads, attention_head_dim, ff_inner_dim)
            return [FactoredAttentionBlock(*arguments) for _ in range(num_layers)]

        cycle = ChannelCycle(latent_channels, cycle_channels, cycle_length)
        self.temporal_rope = RotaryEmbedding(attention_head_dim)
        self.spatial_rope = RotaryEmbedding(attention_head_dim, rope_type)
        self.encoder = FrameSelectEncoder(
            PatchEmbed(patch_size, in_channels, hidden_size, patch_norm),
            make_blocks(num_encoder_layers),
            hidden_size,
            cycle,
            LatentKeepHead(latent_channels, num_tokens) if keep_head == "latent" else PooledKeepHead(hidden_size),
        )
        unpatched_channels = in_channels * unpatch_channels
        refiner = None
        if refiner_levels:
            refiner = Refiner(
                unpatched_channels, in_channels, refiner_channels, refiner_levels, refiner_norm == "frame"
            )
        self.decoder = FrameSelectDecoder(
            make_blocks(num_decoder_layers),
            PatchUnembed(patch_size, in_channels, hidden_size, unpatch_channels),
            refiner,
            cycle.num_fill_features if fill == "interpolate" else latent_channels,
            hidden_size,
            unpatched_channels,
            in_channels,
        )
        self.fill_token = InterpolatedFill(cycle) if fill == "interpolate" else FillToken(latent_channels)

        self.use_slicing = False
        self.use_tiling = False
        self.tile_sample_size = sample_size
        self.tile_overlap = 0.25
        self.tiles_per_batch = 16

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict, **kwargs):
        r"""Loads an original checkpoint (`vae_pytorch.pt` or safetensors); the config is read off its shapes."""
        if kwargs.get("config") is None:
            kwargs.setdefault("original_config", {})
        return super().from_single_file(pretrained_model_link_or_path_or_dict, **kwargs)

    def enable_tiling(
        self,
        tile_sample_size: int | None = None,
        tile_overlap: float = 0.25,
        tiles_per_batch: int = 16,
    ):
        r"""Encodes and decodes frames in overlapping tiles, blended where they meet, so that any size fits the model.

        The latents of all tiles form one map. The keep probability of a frame is the mean over its tiles.

        Args:
            tile_sample_size: Side of a tile in pixels; by default, and best, the size the model was trained at.
            tile_overlap: Overlap of neighbouring tiles as a fraction of the tile, in [0, 1).
            tiles_per_batch: Tiles that run at once; fewer need less memory.
        """
        tile_sample_size = tile_sample_size or self.config.sample_size
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
            sample: Pixels in [-1, 1], `(batch, channels, frames, height, width)`. Height and width are multiples of
                the patch size; a model with a `"latent"` keep head takes `sample_size` only, unless tiling is on.
            frame_mask: Bool `(batch, frames)`, True for real frames, which come first, False for padding.
            return_dict: Whether to return a `FrameSelectEncoderOutput` instead of a tuple.

        Raises:
            ValueError: The shape does not fit the model, or a mask does not fit the clips.
        """
        self._check_sample(sample)
        frame_mask = self._check_frame_mask(frame_mask, sample.shape[0], sample.shape[2])

        parameters, keep_logits = self._map_clips(self._encode_clips, sample, frame_mask)
        keep_probs = keep_logits.sigmoid()
        if frame_mask is not None:
            parameters = parameters * frame_mask[:, None, :, None, None]
            keep_logits = keep_logits * frame_mask
            keep_probs = keep_probs * frame_mask

        latent_dist = DiagonalGaussianDistribution(parameters)
        if not return_dict:
            return latent_dist, keep_probs, keep_logits
        return FrameSelectEncoderOutput(latent_dist=latent_dist, keep_probs=keep_probs, keep_logits=keep_logits)

    def _encode_clips(
        self, sample: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes clips window by window; windows never see each other."""
        if sample.shape[2] <= self.config.clip_num_frames:
            return self._encode_window(sample, frame_mask)
        parameters, keep_logits = [], []
        for window in clip_windows(sample.shape[2], self.config.clip_num_frames):
            window_parameters, window_logits = self._encode_window(
                sample[:, :, window.start : window.stop], first_frame=window.start
            )
            parameters.append(window_parameters[:, :, window.first_new - window.start :])
            keep_logits.append(window_logits[:, window.first_new - window.start :])
        return torch.cat(parameters, dim=2), torch.cat(keep_logits, dim=1)

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
        for tiles in grid.batches(self.tiles_per_batch):
            mask = None if frame_mask is None else frame_mask.repeat(len(tiles), 1)
            pixels = torch.cat([tile.region(sample, ratio) for tile in tiles])
            tile_parameters, tile_logits = self._encode_tile(pixels, mask, first_frame)
            for tile, values in zip(tiles, tile_parameters.chunk(len(tiles)), strict=True):
                blend.add(tile, values)
            probs += tile_logits.sigmoid().unflatten(0, (len(tiles), -1)).sum(dim=0) / len(grid)
        return parameters, torch.logit(probs, eps=1e-6)

    def _encode_tile(
        self, sample: torch.Tensor, frame_mask: torch.Tensor | None = None, first_frame: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = (side // self.config.patch_size for side in sample.shape[3:])
        low, high = self.config.pixel_range
        # Mapped before the cast: half precision is too coarse to shift pixels in.
        sample = ((sample + 1) * ((high - low) / 2) + low).to(self.dtype)
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
        r"""Chooses the frames to keep: at least one of every clip, never padding.

        Args:
            keep_probs: `(batch, frames)`, as `encode` gives them.
            frame_mask: Bool `(batch, frames)`; False for padding.
            mode: `"systematic"` keeps K frames at the mid-quantiles `(i + 1/2) / K` of the cumulative probability,
                at randomly shifted quantiles with a `generator`; `"top_k"` the K most probable frames; `"uniform"` K
                evenly spaced ones; `"threshold"` all above `threshold`; `"bernoulli"` each with its own probability.
            num_frames: K, at least 1 and at most the shortest clip's length.
            rate: K as a fraction of a clip's length, in (0, 1]. With neither, K is the rounded sum of probabilities.
            threshold: Probability, in [0, 1], above which `"threshold"` keeps a frame.
            generator: Source of randomness; a list gives every clip its own.

        Returns:
            Bool `(batch, frames)`, True for kept frames.

        Raises:
            ValueError: An unknown mode, a shape or threshold that does not fit, or a count that a clip or the mode
                does not allow.
        """
        if mode not in SELECTION_MODES:
            raise ValueError(f"`mode` must be one of {SELECTION_MODES}, got {mode!r}.")
        if not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be in [0, 1], got {threshold}.")
        if keep_probs.ndim != 2:
            raise ValueError(f"`keep_probs` must have shape (batch, frames), got {tuple(keep_probs.shape)}.")
        checked_mask = self._check_frame_mask(frame_mask, *keep_probs.shape)
        mask = torch.ones_like(keep_probs, dtype=torch.bool) if checked_mask is None else checked_mask
        probs = keep_probs.float() * mask

        if mode in ("threshold", "bernoulli"):
            if num_frames is not None or rate is not None:
                raise ValueError(f"`num_frames` and `rate` do not apply to mode {mode!r}, which sets its own count.")
            is_bernoulli = mode == "bernoulli"
            level = _uniform_noise(probs.shape, generator, probs.device) if is_bernoulli else threshold
            keep_mask = (probs > level) & mask
            most_probable = F.one_hot(probs.masked_fill(~mask, -1).argmax(dim=1), probs.shape[1]).bool()
            return torch.where(keep_mask.any(dim=1, keepdim=True), keep_mask, most_probable)

        counts = _kept_counts(probs, mask, num_frames, rate)
        if mode == "top_k":
            ranks = probs.masked_fill(~mask, -1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            return ranks < counts[:, None]
        if mode == "uniform":
            return _systematic_mask(mask.float(), mask, counts)
        offsets = None if generator is None else _uniform_noise((len(probs), 1), generator, probs.device)
        return _systematic_mask(probs, mask, counts, offsets)

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
        batch_size, _, num_frames = latents.shape[:3]
        keep_mask, checked_mask = self._check_masks(keep_mask, frame_mask, batch_size, num_frames)
        counts = keep_mask.sum(dim=1)
        num_kept = int(counts.max())
        positions = keep_mask.int().argsort(dim=1, descending=True, stable=True)[:, :num_kept]  # (B, K)
        mask = torch.arange(num_kept, device=latents.device) < counts[:, None]

        index = positions[:, None, :, None, None].expand(-1, latents.shape[1], -1, *latents.shape[3:])
        packed = latents.gather(2, index) * mask[:, None, :, None, None].to(latents.dtype)
        gaps = positions.diff(dim=1, prepend=positions.new_zeros(batch_size, 1)) * mask
        lengths = positions.new_full((batch_size,), num_frames) if checked_mask is None else checked_mask.sum(dim=1)
        return PackedFrames(latents=packed, gaps=gaps, mask=mask, num_frames=lengths)

    def unpack_frames(self, packed: PackedFrames) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        r"""Inverse of `pack_frames` on kept frames; dropped frames come back as zeros.

        Returns:
            latents `(batch, latent_channels, frames, height, width)`, keep_mask and frame_mask `(batch, frames)`.

        Raises:
            ValueError: Gaps lead beyond the end of their clip.
        """
        num_frames = int(packed.num_frames.max())
        positions = packed.gaps.cumsum(dim=1)
        out_of_range = packed.mask & (positions >= packed.num_frames[:, None])
        if out_of_range.any():
            raise ValueError(
                f"`gaps` lead to frame {int(positions[out_of_range].max())} of a clip of"
                f" {packed.num_frames.tolist()} frames."
            )
        # Empty slots are written behind the last frame and cut off.
        positions = positions.masked_fill(~packed.mask, num_frames)
        batch_size, channels, _, height, width = packed.latents.shape
        index = positions[:, None, :, None, None].expand(-1, channels, -1, height, width)
        latents = packed.latents.new_zeros(batch_size, channels, num_frames + 1, height, width)
        latents = latents.scatter(2, index, packed.latents)[:, :, :-1]
        keep_mask = packed.mask.new_zeros(batch_size, num_frames + 1).scatter(1, positions, True)[:, :-1]
        frame_mask = torch.arange(num_frames, device=positions.device) < packed.num_frames[:, None]
        return latents, keep_mask, frame_mask

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
        keep_mask, frame_mask = self._check_masks(keep_mask, frame_mask, latents.shape[0], latents.shape[2])
        (sample,) = self._map_clips(self._decode_clips, latents.to(self.dtype), frame_mask, keep_mask)
        if frame_mask is not None:
            sample = sample * frame_mask[:, None, :, None, None]
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _decode_clips(
        self, latents: torch.Tensor, frame_mask: torch.Tensor | None, keep_mask: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Decodes clips window by window; windows never see each other."""
        if latents.shape[2] <= self.config.clip_num_frames:
            return (self._decode_window(latents, frame_mask, keep_mask),)
        frames = []
        for window in clip_windows(latents.shape[2], self.config.clip_num_frames):
            window_frames = self._decode_window(
                latents[:, :, window.start : window.stop],
                None,
                keep_mask[:, window.start : window.stop],
                first_frame=window.start,
            )
            frames.append(window_frames[:, :, window.first_new - window.start :])
        return (torch.cat(frames, dim=2),)

    def _decode_window(
        self,
        latents: torch.Tensor,
        frame_mask: torch.Tensor | None,
        keep_mask: torch.Tensor,
        first_frame: int = 0,
    ) -> torch.Tensor:
        latents = self.fill_token(latents, keep_mask, first_frame)
        if not self.use_tiling:
            return self._decode_tile(latents, frame_mask)

        ratio = self.config.patch_size
        grid = self._tile_grid(*latents.shape[3:])
        shape = (latents.shape[0], self.config.in_channels, latents.shape[2], *(side * ratio for side in grid.size))
        sample = latents.new_empty(shape)
        blend = TileBlend(grid, sample, scale=ratio)
        for tiles in grid.batches(self.tiles_per_batch):
            mask = None if frame_mask is None else frame_mask.repeat(len(tiles), 1)
            pixels = self._decode_tile(torch.cat([tile.region(latents) for tile in tiles]), mask)
            for tile, values in zip(tiles, pixels.chunk(len(tiles)), strict=True):
                blend.add(tile, values)
        return sample

    def _decode_tile(self, latents: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
        num_frames, height, width = latents.shape[2:]
        temporal_rotary_emb, spatial_rotary_emb = self._rotary_embeddings(num_frames, height, width, latents.device)
        low, high = self.config.pixel_range
        sample = self.decoder(latents, temporal_rotary_emb, spatial_rotary_emb, frame_mask)
        return (sample - low) * (2 / (high - low)) - 1

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

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        r"""Brings latents to zero mean and unit variance per channel; the identity without `latents_mean`."""
        mean, std = self._latent_statistics(latents)
        return (latents - mean) / std

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        r"""Inverse of `normalize_latents`."""
        mean, std = self._latent_statistics(latents)
        return latents * std + mean

    def _latent_statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = self.config.latent_channels
        mean = latents.new_tensor(self.config.latents_mean or [0.0] * channels)
        std = latents.new_tensor(self.config.latents_std or [1.0] * channels)
        return mean[:, None, None, None], std[:, None, None, None]

    def _map_clips(
        self,
        function: Callable[..., tuple[torch.Tensor, ...]],
        clips: torch.Tensor,
        frame_mask: torch.Tensor | None,
        *masks: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Runs a batch at once, or clip by clip when slicing, or where clips of different lengths need windows."""
        batch_size, _, num_frames = clips.shape[:3]
        ragged_windows = frame_mask is not None and num_frames > self.config.clip_num_frames
        if batch_size == 1 and frame_mask is None or not (self.use_slicing or ragged_windows):
            return function(clips, frame_mask, *masks)
        lengths = [num_frames] * batch_size if frame_mask is None else frame_mask.sum(dim=1).tolist()
        results = [
            function(clips[i : i + 1, :, :length], None, *(mask[i : i + 1, :length] for mask in masks))
            for i, length in enumerate(lengths)
        ]
        return tuple(_stack_padded(parts, num_frames) for parts in zip(*results, strict=True))

    def _rotary_embeddings(self, num_frames: int, height: int, width: int, device: torch.device) -> tuple:
        return self.temporal_rope(1, num_frames, device), self.spatial_rope(height, width, device)

    def _tile_grid(self, height: int, width: int) -> TileGrid:
        """Tiles of a map of `height` x `width` tokens."""
        side = self.tile_sample_size // self.config.patch_size
        overlap = min(round(self.tile_overlap * side), side - 1)
        return TileGrid((height, width), (side, side), (overlap, overlap))

    # Checks

    def _check_sample(self, sample: torch.Tensor):
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

    def _check_latents(self, latents: torch.Tensor):
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels or 0 in latents.shape:
            raise ValueError(
                f"`latents` must have shape (batch, {self.config.latent_channels}, frames, height, width), got"
                f" {tuple(latents.shape)}."
            )
        self._check_size(*(side * self.config.patch_size for side in latents.shape[3:]))

    def _check_size(self, height: int, width: int):
        if self.config.keep_head == "pooled":
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

    def _check_frame_mask(
        self, frame_mask: torch.Tensor | None, batch_size: int, num_frames: int
    ) -> torch.Tensor | None:
        """Returns the mask, or None where it hides nothing."""
        if frame_mask is None:
            return None
        if frame_mask.shape != (batch_size, num_frames):
            raise ValueError(
                f"`frame_mask` must have shape (batch, frames) = {(batch_size, num_frames)}, got"
                f" {tuple(frame_mask.shape)}."
            )
        frame_mask = frame_mask.bool()
        if not frame_mask[:, 0].all() or (frame_mask.int().diff(dim=1) > 0).any():
            raise ValueError("`frame_mask` must start every row with at least one real frame and end it with padding.")
        return None if frame_mask.all() else frame_mask

    def _check_masks(
        self,
        keep_mask: torch.Tensor,
        frame_mask: torch.Tensor | None,
        batch_size: int,
        num_frames: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        frame_mask = self._check_frame_mask(frame_mask, batch_size, num_frames)
        if keep_mask.shape != (batch_size, num_frames):
            raise ValueError(
                f"`keep_mask` must have shape (batch, frames) = {(batch_size, num_frames)}, got"
                f" {tuple(keep_mask.shape)}."
            )
        keep_mask = keep_mask.bool() if frame_mask is None else keep_mask.bool() & frame_mask
        if not keep_mask.any(dim=1).all():
            empty = int((~keep_mask.any(dim=1)).nonzero()[0])
            raise ValueError(f"`keep_mask` must keep at least one real frame of every clip, clip {empty} keeps none.")
        return keep_mask, frame_mask


def _kept_counts(probs: torch.Tensor, mask: torch.Tensor, num_frames: int | None, rate: float | None) -> torch.Tensor:
    """Number of frames to keep of every clip, int64 `(batch,)`."""
    lengths = mask.sum(dim=1)
    if num_frames is not None and rate is not None:
        raise ValueError(f"Give `num_frames` or `rate`, not both, got {num_frames} and {rate}.")
    if num_frames is not None:
        if not 1 <= num_frames <= int(lengths.min()):
            raise ValueError(
                f"`num_frames` must be from 1 to the shortest clip's {int(lengths.min())} frames, got {num_frames}."
            )
        return torch.full_like(lengths, num_frames)
    if rate is not None:
        if not 0 < rate <= 1:
            raise ValueError(f"`rate` must be in (0, 1], got {rate}.")
        return (rate * lengths).round().long().clamp(min=1)
    return torch.minimum(probs.sum(dim=1).round().long().clamp(min=1), lengths)


def _systematic_mask(
    probs: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor, offsets: torch.Tensor | None = None
) -> torch.Tensor:
    """Keeps `counts` frames at equal steps of the cumulative probability, starting at `offsets` of a step."""
    batch_size, num_frames = probs.shape
    lengths = mask.sum(dim=1, keepdim=True)
    has_mass = probs.sum(dim=1, keepdim=True) > 0
    cumulative = torch.where(has_mass, probs, mask.float()).cumsum(dim=1)
    slots = torch.arange(int(counts.max()), device=probs.device).expand(batch_size, -1)  # (B, K)
    valid = slots < counts[:, None]

    quantiles = (slots + (0.5 if offsets is None else offsets)) / counts[:, None] * cumulative[:, -1:]
    positions = torch.searchsorted(cumulative, quantiles.contiguous(), right=True)
    positions = torch.minimum(positions, lengths - 1)

    # Frames asked for twice spread to both sides: halfway between pushing them only later and only earlier.
    later = (positions - slots).cummax(dim=1).values + slots
    later = torch.minimum(later, lengths - counts[:, None] + slots)
    earlier = (positions - slots).masked_fill(~valid, num_frames).flip(1).cummin(dim=1).values.flip(1) + slots
    earlier = torch.maximum(earlier, slots)
    positions = torch.div(later + earlier, 2, rounding_mode="floor")

    keep_mask = torch.zeros(batch_size, num_frames + 1, dtype=torch.bool, device=probs.device)
    return keep_mask.scatter(1, positions.masked_fill(~valid, num_frames), True)[:, :-1]


def _uniform_noise(
    shape: tuple[int, ...], generator: torch.Generator | list[torch.Generator] | None, device: torch.device
) -> torch.Tensor:
    """Uniform numbers in [0, 1), drawn on the generator's device; a list of generators gives a row each."""
    if generator is None:
        return torch.rand(shape, device=device)
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, device=generator.device).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"A list of generators must have one for each of the {shape[0]} clips, got {len(generator)}.")
    return torch.cat([_uniform_noise((1, *shape[1:]), row_generator, device) for row_generator in generator])


def _stack_padded(clips: Sequence[torch.Tensor], num_frames: int) -> torch.Tensor:
    """Stacks one-clip batches of different lengths, `(1, frames)` or `(1, C, frames, H, W)`, padded with zeros."""
    dim = 1 if clips[0].ndim == 2 else 2
    shape = list(clips[0].shape)
    shape[0], shape[dim] = len(clips), num_frames
    stacked = clips[0].new_zeros(shape)
    for clip, values in enumerate(clips):
        stacked[clip].narrow(dim - 1, 0, values.shape[dim]).copy_(values[0])
    return stacked
