r"""A flow-matching transformer that generates the kept frames of a video together with the gaps between them.

Architecture of https://github.com/floatingtrees/dynamic-frame-compression/blob/2150c20/diffusion.py, in the time and
sign convention of diffusers: sigma 1 is noise, 0 is data, `timestep = 1000 * sigma`, the output is noise - data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput, apply_lora_scale
from torch import nn

from .factored_attention import NUM_MODULATIONS, FactoredAttentionBlock, RotaryEmbedding, embed_latents, run_blocks
from .latent_normalization import LatentNormalizationMixin
from .single_file import SingleFileMixin


TIME_EMBEDDINGS = ("linear", "adaptive")
GAP_MODES = ("regression", "flow")

# distance to the previous and to the next kept frame
NUM_GAP_CHANNELS = 2


@dataclass
class GapDiTOutput(BaseOutput):
    r"""Output of `GapDiT.forward`.

    Args:
        sample: Velocity, noise - data, of the shape of the input.
        gaps: Estimate of each latent frame's distance to the one before, in frames, not rounded, float32
            `(batch, kept)`; the first is the first frame's index.
        tail: Estimate of the number of frames after the last latent frame, float32 `(batch,)`; None from a model that
            regresses gaps, which knows no tail.
    """

    sample: torch.Tensor
    gaps: torch.Tensor
    tail: torch.Tensor | None = None


def gaps_to_channels(
    gaps: torch.Tensor,
    num_frames: torch.Tensor,
    frame_mask: torch.Tensor | None = None,
    log_mean: float = 0.0,
    log_std: float = 1.0,
) -> torch.Tensor:
    r"""Log-distances of each kept frame to its neighbours, as a flow can integrate them.

    Args:
        gaps: `(batch, kept)`: the first kept frame's index, then distances to the previous kept frame.
        num_frames: Length of each clip, `(batch,)`.
        frame_mask: Bool `(batch, kept)`, True for kept frames, which come first, False for padding.
        log_mean: Mean of log(1 + distance) over a data set.
        log_std: Standard deviation of the same.

    Returns:
        `(batch, 2, kept)`: normalised log(1 + distance) to the previous kept frame (of the first: its index) and to
        the next one (of the last: the number of frames after it); 0 for padding.
    """
    if frame_mask is None:
        frame_mask = torch.ones_like(gaps, dtype=torch.bool)
    to_previous = gaps.float() * frame_mask
    tail = num_frames - 1 - to_previous.sum(dim=1)
    to_next = torch.where(_last_slot(frame_mask), tail[:, None], F.pad(to_previous[:, 1:], (0, 1)))
    channels = torch.stack([to_previous, to_next], dim=1)  # (B, 2, K)
    return (torch.log1p(channels) - log_mean) / log_std * frame_mask[:, None]


def channels_to_gaps(
    channels: torch.Tensor,
    frame_mask: torch.Tensor | None = None,
    log_mean: float = 0.0,
    log_std: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Inverse of `gaps_to_channels`: gaps `(batch, kept)` and tails `(batch,)`, float, not rounded.

    A distance between two kept frames is told by both of them; the two are averaged as logarithms.
    """
    if frame_mask is None:
        frame_mask = torch.ones_like(channels[:, 0], dtype=torch.bool)
    logs = channels.float() * log_std + log_mean  # (B, 2, K)
    to_previous, to_next = logs.unbind(1)
    first, between = to_previous[:, :1], (to_previous[:, 1:] + to_next[:, :-1]) / 2
    gaps = torch.expm1(torch.cat([first, between], dim=1)) * frame_mask
    tail = torch.expm1((to_next * _last_slot(frame_mask)).sum(dim=1))
    return gaps, tail


def share_noise(noise: torch.Tensor, shared: torch.Tensor, part: float) -> torch.Tensor:
    r"""Noise of unit variance, of which neighbouring frames have a part in common (https://arxiv.org/abs/2305.10474).

    Args:
        noise: Of each frame alone, `(..., channels, kept, height, width)`.
        shared: Of all frames, `(..., channels, 1, height, width)`.
        part: Part of the variance that is shared, in [0, 1).
    """
    return (1 - part) ** 0.5 * noise + part**0.5 * shared


def linear_velocity(
    latents: torch.Tensor, sigma: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""What noisy Gaussian channels alone say of their velocity, after https://arxiv.org/abs/2206.00364.

    Args:
        latents: Noisy latents `(batch, channels, ...)`.
        sigma: Noise levels `(batch,)`, in [0, 1].
        variance: Of the clean channels, `(channels,)`.

    Returns:
        The best linear estimate of noise - data, of the latents' shape; the deviation of its error, and one over that
        of the latents, both broadcastable to them.
    """
    sigma = sigma.view(-1, *[1] * (latents.ndim - 1)).float()
    variance = variance.view(1, -1, *[1] * (latents.ndim - 2)).float()
    total = sigma**2 + (1 - sigma) ** 2 * variance
    estimate = (sigma - (1 - sigma) * variance) / total * latents
    return estimate.to(latents.dtype), (variance / total).sqrt().to(latents.dtype), total.rsqrt().to(latents.dtype)


def _last_slot(frame_mask: torch.Tensor) -> torch.Tensor:
    """True at the last real frame of each row of a left-aligned mask."""
    return frame_mask & ~F.pad(frame_mask[:, 1:], (0, 1))


class AdaptiveTimeEmbedding(nn.Module):
    r"""Sinusoids and an MLP, and from them one modulation for all blocks (adaLN-single, arXiv:2310.00426)."""

    def __init__(self, hidden_size: int, frequency_channels: int = 256):
        super().__init__()
        self.frequencies = Timesteps(frequency_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.mlp = TimestepEmbedding(frequency_channels, hidden_size)
        self.modulation = nn.Linear(hidden_size, NUM_MODULATIONS * hidden_size)
        # A fresh model's blocks are the identity.
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, timestep: torch.Tensor, dtype: torch.dtype, condition: torch.Tensor | float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The embedding `(batch, dim)` of times and whatever else is given as `(batch, dim)`, and the modulation."""
        embedding = F.silu(self.mlp(self.frequencies(timestep).to(dtype)) + condition)  # (B, D)
        return embedding, self.modulation(embedding).unflatten(1, (NUM_MODULATIONS, -1))  # (B, 12, D)


class PositionTable(nn.Module):
    r"""A learned embedding of every place of a square of tokens, interpolated for other sizes."""

    def __init__(self, size: int, hidden_size: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(hidden_size, size, size))

    def forward(self, height: int, width: int) -> torch.Tensor:
        """Embeddings `(height * width, dim)`."""
        table: torch.Tensor = self.table
        if table.shape[1:] != (height, width):
            table = F.interpolate(table[None], (height, width), mode="bilinear")[0]
        return table.flatten(1).mT  # (N, D)


class FrameTable(nn.Module):
    r"""Learned embeddings of how many latent frames come before and after each.

    Attention over frames rotates by distances only: without these, no frame knows that it is the first.
    """

    def __init__(self, max_num_frames: int, hidden_size: int):
        super().__init__()
        self.before = nn.Parameter(torch.zeros(max_num_frames, hidden_size))
        self.after = nn.Parameter(torch.zeros(max_num_frames, hidden_size))

    def forward(self, num_frames: int, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings `(batch or 1, kept, 1, dim)`."""
        index = torch.arange(num_frames, device=self.before.device)
        counts = num_frames if frame_mask is None else frame_mask.sum(dim=1, keepdim=True)
        after = (counts - 1 - index).clamp(min=0)  # (K,) or (B, K)
        return (self.before[index] + self.after[after]).view(-1, num_frames, 1, self.before.shape[1])


class OutputNorm(nn.Module):
    r"""Layer norm shifted and scaled by the time embedding; passes tokens through in a model that is not adaptive.

    Both heads read its output, so context parallelism gathers the tokens here.
    """

    def __init__(self, hidden_size: int, adaptive: bool):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False) if adaptive else None
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size) if adaptive else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: torch.Tensor, time_embedding: torch.Tensor | None = None) -> torch.Tensor:
        if self.norm is None or self.modulation is None:
            return tokens
        shift, scale = self.modulation(time_embedding)[:, None, None].chunk(2, dim=-1)  # 2 x (B, 1, 1, D)
        return self.norm(tokens) * (1 + scale) + shift


class GapDiT(
    ModelMixin,
    ConfigMixin,
    AttentionMixin,
    SingleFileMixin,
    PeftAdapterMixin,
    CacheMixin,
    LatentNormalizationMixin,
):
    r"""Transformer that denoises the latent frames of a `FrameSelectVAE` and says how far apart they are.

    The defaults are the published model of https://github.com/floatingtrees/dynamic-frame-compression
    (504,208,738 parameters). Any flow-matching scheduler of diffusers can drive it.

    Args:
        sample_size: Height and width of the latents the model was trained at. With `gap_mode="regression"` the only
            size it takes.
        in_channels: Latent channels, gap channels not counted.
        hidden_size: Width of the tokens.
        num_layers: Number of blocks.
        num_attention_heads: Heads of every attention.
        attention_head_dim: Channels of a head.
        ff_inner_dim: Inner width of the MLPs.
        max_num_frames: Most latent frames the model takes.
        rope_type: `"raster"` numbers tokens row by row; `"axial"` rotates by row and column.
        time_embedding: `"linear"` adds a linear map of the time to the tokens; `"adaptive"` shifts, scales and gates
            every sub-layer by an embedding of it.
        gap_mode: `"regression"` predicts gaps from the tokens of a frame; `"flow"` denoises them with the latents, as
            `num_gap_channels` further input channels, see `gaps_to_channels`.
        gap_log_mean: Mean of log(1 + distance) over the training data, for `gap_mode="flow"`.
        gap_log_std: Standard deviation of the same.
        text_dim: Channels of text embeddings, to which all tokens attend and whose mean joins the time embedding; None
            for a model without text.
        condition_on_gaps: Whether the model can be told gaps that are known.
        shared_noise: Part of the noise's variance that the latent frames of a clip have in common, see `share_noise`.
        frame_step: Latent frames of the training data lie at multiples of so many frames, and so do generated ones.
        latents_mean: Per-channel mean, over the training data, of latents that the autoencoder has normalised; for a
            model of other data than the autoencoder's statistics are of.
        latents_std: Per-channel standard deviation, likewise.
        latents_variance: Variance of each channel of the normalised latents. The blocks then only learn what a channel
            alone does not say of its velocity, see `linear_velocity`; None has them learn all of it.
        input_context: Whether a token is made of the 3x3 latents around it instead of one.
        absolute_positions: Whether tokens also know where in frame and clip they are, see `PositionTable` and
            `FrameTable`.
        ff_convolution: Whether the MLPs over tokens see the 3x3 tokens around theirs, see `FactoredFeedForward`. Such
            a model cannot be split by context parallelism.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["FactoredAttentionBlock"]
    _repeated_blocks = ["FactoredAttentionBlock"]
    # A weight of one column, which quantizers cannot group.
    _keep_in_fp32_modules = ["time_proj"]
    _skip_layerwise_casting_patterns = [
        "norm",
        "time_proj",
        "time_embed",
        "proj_in",
        "proj_out",
        "context",
        "pos_embed",
        "frame_embed",
        "gap_proj",
        "gap_pool",
        "gap_condition",
        "text_pool",
    ]
    _cp_plan: dict[str, Any] | None = {
        "spatial_rope": {
            0: ContextParallelInput(split_dim=0, expected_dims=2, split_output=True),
            1: ContextParallelInput(split_dim=0, expected_dims=2, split_output=True),
        },
        "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=2, expected_dims=4)},
        "norm_out": ContextParallelOutput(gather_dim=2, expected_dims=4),
    }

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        in_channels: int = 96,
        hidden_size: int = 1024,
        num_layers: int = 30,
        num_attention_heads: int = 8,
        attention_head_dim: int = 128,
        ff_inner_dim: int = 2048,
        max_num_frames: int = 64,
        rope_type: str = "raster",
        time_embedding: str = "linear",
        gap_mode: str = "regression",
        gap_log_mean: float = 0.0,
        gap_log_std: float = 1.0,
        text_dim: int | None = None,
        condition_on_gaps: bool = False,
        shared_noise: float = 0.0,
        frame_step: int = 1,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        latents_variance: list[float] | None = None,
        input_context: bool = False,
        absolute_positions: bool = False,
        ff_convolution: bool = False,
    ):
        super().__init__()
        if time_embedding not in TIME_EMBEDDINGS:
            raise ValueError(f"`time_embedding` must be one of {TIME_EMBEDDINGS}, got {time_embedding!r}.")
        if gap_mode not in GAP_MODES:
            raise ValueError(f"`gap_mode` must be one of {GAP_MODES}, got {gap_mode!r}.")
        if gap_log_std <= 0:
            raise ValueError(f"`gap_log_std` must be positive, got {gap_log_std}.")
        if not 0 <= shared_noise < 1:
            raise ValueError(f"`shared_noise` must be in [0, 1), got {shared_noise}.")
        if frame_step < 1:
            raise ValueError(f"`frame_step` must be at least 1, got {frame_step}.")
        statistics = {"latents_mean": latents_mean, "latents_std": latents_std, "latents_variance": latents_variance}
        for name, values in statistics.items():
            if values is not None and len(values) != in_channels:
                raise ValueError(f"`{name}` must have a number for each of the {in_channels} channels, got {values}.")
        if latents_variance is not None and min(latents_variance) <= 0:
            raise ValueError(f"`latents_variance` must be positive, got {min(latents_variance)}.")
        adaptive = time_embedding == "adaptive"
        self.num_gap_channels = NUM_GAP_CHANNELS if gap_mode == "flow" else 0
        channels = in_channels + self.num_gap_channels

        self.temporal_rope = RotaryEmbedding(attention_head_dim)
        self.spatial_rope = RotaryEmbedding(attention_head_dim, rope_type)
        self.proj_in = nn.Linear(channels, hidden_size)
        self.context = nn.Conv2d(channels, hidden_size, 3, padding=1, bias=False) if input_context else None
        self.pos_embed = PositionTable(sample_size, hidden_size) if absolute_positions else None
        self.frame_embed = FrameTable(max_num_frames, hidden_size) if absolute_positions else None
        self.time_proj = None if adaptive else nn.Linear(1, hidden_size)
        self.time_embed = AdaptiveTimeEmbedding(hidden_size) if adaptive else None
        self.transformer_blocks = nn.ModuleList(
            FactoredAttentionBlock(
                hidden_size,
                num_attention_heads,
                attention_head_dim,
                ff_inner_dim,
                adaptive,
                text_dim,
                ff_convolution,
            )
            for _ in range(num_layers)
        )
        self.norm_out = OutputNorm(hidden_size, adaptive)
        self.proj_out = nn.Linear(hidden_size, channels)
        self.gap_proj = None if self.num_gap_channels else nn.Linear(hidden_size, 1)
        self.gap_pool = None if self.num_gap_channels else nn.Linear(sample_size**2, 1)

        self.text_pool = None if text_dim is None else nn.Linear(text_dim, hidden_size)
        # values and which of them are known
        self.gap_condition = nn.Linear(2 * NUM_GAP_CHANNELS, hidden_size, bias=False) if condition_on_gaps else None

        # A new model does not yet heed its conditions.
        for projection in (self.time_proj, self.text_pool, self.gap_condition):
            if projection is not None:
                nn.init.zeros_(projection.weight)
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)
        if self.context is not None:
            nn.init.zeros_(self.context.weight)
        if ff_convolution:
            self._cp_plan = None
        self.gradient_checkpointing = False

    def enable_cache(self, config: Any) -> None:
        r"""Skips computation between sampling steps, see `diffusers.CacheMixin.enable_cache`.

        Temporal and spatial attention are told apart by `temporal_attn` and `spatial_attn` in a cache's block
        identifiers. The model takes no guidance, so FasterCache needs `is_guidance_distilled=True`.
        """
        # Registering takes diffusers a second of imports, which only users of a cache need to pay.
        metadata = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
        TransformerBlockRegistry.register(FactoredAttentionBlock, metadata)
        super().enable_cache(config)

    def encode_gaps(
        self, gaps: torch.Tensor, num_frames: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""Clean gap channels `(batch, 2, kept)` in this model's normalisation, see `gaps_to_channels`."""
        return gaps_to_channels(gaps, num_frames, frame_mask, self.config.gap_log_mean, self.config.gap_log_std)

    def decode_gaps(
        self, channels: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Inverse of `encode_gaps`: gaps `(batch, kept)` and tails `(batch,)`, not rounded."""
        return channels_to_gaps(channels, frame_mask, self.config.gap_log_mean, self.config.gap_log_std)

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor | float,
        frame_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        known_gaps: torch.Tensor | None = None,
        known_gaps_mask: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> GapDiTOutput | tuple[torch.Tensor, ...]:
        r"""Predicts the velocity, noise - data, of noisy latents and how far apart their frames are.

        Args:
            hidden_states: Noisy latents `(batch, in_channels + num_gap_channels, kept, height, width)`. Gap channels
                come last and are constant over height and width.
            timestep: 1000 times the noise level, in [0, 1000]; a number or one for each clip, `(batch,)`.
            frame_mask: Bool `(batch, kept)`, True for real latent frames, which come first, False for padding.
            encoder_hidden_states: Text embeddings `(batch, text_tokens, text_dim)`, for a model with text.
            encoder_attention_mask: Bool `(batch, text_tokens)`, False for padding; at least one is True.
            known_gaps: Clean gap channels `(batch, 2, kept)` as `encode_gaps` gives them, for a model that takes them.
            known_gaps_mask: Bool `(batch, 2, kept)`, True where they are known; by default everywhere.
            attention_kwargs: `{"scale": weight}` sets the weight of active LoRAs.
            return_dict: Whether to return a `GapDiTOutput` instead of a tuple.

        Raises:
            ValueError: A shape does not fit the model, there are more latent frames than it takes, or a condition that
                it does not know.
        """
        self._check_inputs(hidden_states, frame_mask)
        self._check_conditions(hidden_states, encoder_hidden_states, encoder_attention_mask, known_gaps)
        batch_size, _, num_frames, height, width = hidden_states.shape
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=hidden_states.device).expand(batch_size)
        temporal_rotary_emb = self.temporal_rope(1, num_frames, hidden_states.device)
        spatial_rotary_emb = self.spatial_rope(height, width, hidden_states.device)

        latents, estimate, deviation = self._precondition(hidden_states, timestep / 1000)  # 2 x (B, C, K, h, w)
        tokens = self._embed_latents(latents, frame_mask)  # (B, K, N, D)
        if self.gap_condition is not None and known_gaps is not None:
            tokens = tokens + self._embed_gaps(known_gaps, known_gaps_mask).to(tokens.dtype)
        pooled_text = self._pool_text(encoder_hidden_states, encoder_attention_mask)  # (B, D) or 0
        time_embedding = modulation = None
        if self.time_proj is not None:
            signal_level = 1 - timestep[:, None] / 1000
            condition = self.time_proj(signal_level.to(self.time_proj.weight.dtype)) + pooled_text  # (B, D)
            tokens = tokens + condition[:, None, None].to(tokens.dtype)
        if self.time_embed is not None:
            time_embedding, modulation = self.time_embed(timestep, tokens.dtype, pooled_text)  # (B, D), (B, 12, D)

        conditions = (frame_mask, modulation, encoder_hidden_states, encoder_attention_mask, (height, width))
        tokens = run_blocks(self, tokens, temporal_rotary_emb, spatial_rotary_emb, *conditions)

        tokens = self.norm_out(tokens, time_embedding)  # (B, K, N, D)
        velocity = self.proj_out(tokens).permute(0, 3, 1, 2)  # (B, C, K, N)
        if estimate is not None and deviation is not None:
            velocity = torch.addcmul(estimate.flatten(3), deviation.flatten(3), velocity)
        if self.gap_proj is not None and self.gap_pool is not None:
            gaps, tail = self.gap_pool(self.gap_proj(tokens).squeeze(-1)).squeeze(-1).float(), None  # (B, K)
        else:
            velocity = self._pool_gap_velocity(velocity)
            gaps, tail = self.estimate_gaps(hidden_states, velocity, timestep, frame_mask)
        sample = velocity.unflatten(3, (height, width))  # (B, C, K, h, w)

        if not return_dict:
            return (sample, gaps) if tail is None else (sample, gaps, tail)
        return GapDiTOutput(sample=sample, gaps=gaps, tail=tail)

    def _precondition(
        self, latents: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Latents of unit variance, and velocity that follows from channels alone with the deviation of its error."""
        if self.config.latents_variance is None:
            return latents, None, None
        # Gap channels are normalised.
        variance = latents.new_tensor([*self.config.latents_variance, *[1.0] * self.num_gap_channels])
        estimate, deviation, scale = linear_velocity(latents, sigma, variance)
        return latents * scale, estimate, deviation

    def _embed_latents(self, latents: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """Tokens `(batch, kept, tokens, dim)` of `(batch, channels, kept, height, width)`."""
        tokens = embed_latents(latents, self.proj_in, self.context)
        if self.pos_embed is not None and self.frame_embed is not None:
            tokens = tokens + self.pos_embed(*latents.shape[3:]) + self.frame_embed(latents.shape[2], frame_mask)
        return tokens

    def _embed_gaps(self, known_gaps: torch.Tensor, known_gaps_mask: torch.Tensor | None) -> torch.Tensor:
        """What is known of the gaps of each frame, `(batch, kept, 1, dim)`."""
        assert self.gap_condition is not None
        if known_gaps_mask is None:
            known_gaps_mask = torch.ones_like(known_gaps, dtype=torch.bool)
        known = known_gaps_mask.to(self.gap_condition.weight.dtype)
        channels = torch.cat([known_gaps.to(known.dtype) * known, known], dim=1)  # (B, 4, K)
        return self.gap_condition(channels.transpose(1, 2))[:, :, None]

    def _pool_text(self, embeddings: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor | float:
        """Projected mean of text embeddings, `(batch, dim)`; 0 without text."""
        if self.text_pool is None or embeddings is None:
            return 0.0
        if mask is None:
            return self.text_pool(embeddings.mean(dim=1))
        weights = mask.to(embeddings.dtype)[..., None]
        return self.text_pool((embeddings * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1))

    def _pool_gap_velocity(self, velocity: torch.Tensor) -> torch.Tensor:
        """Makes the gap channels of `(batch, channels, kept, tokens)` the same for all tokens of a frame."""
        latents, gap_channels = velocity.tensor_split([self.config.in_channels], dim=1)
        return torch.cat([latents, gap_channels.mean(dim=3, keepdim=True).expand_as(gap_channels)], dim=1)

    def estimate_gaps(
        self,
        hidden_states: torch.Tensor,
        velocity: torch.Tensor,
        timestep: torch.Tensor,
        frame_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Gaps `(batch, kept)` and tails `(batch,)` of the data that a state and a velocity point to.

        Args:
            hidden_states: The state, as `forward` takes it.
            velocity: `(batch, channels, kept, ...)`, gap channels last and constant over what follows.
            timestep: `(batch,)`.
            frame_mask: Bool `(batch, kept)`.
        """
        channels = hidden_states[:, self.config.in_channels :].flatten(3).float().mean(dim=3)  # (B, 2, K)
        sigma = timestep[:, None, None] / 1000
        return self.decode_gaps(
            channels - sigma * velocity[:, self.config.in_channels :].flatten(3)[..., 0].float(), frame_mask
        )

    def _check_inputs(self, hidden_states: torch.Tensor, frame_mask: torch.Tensor | None) -> None:
        channels = self.config.in_channels + self.num_gap_channels
        if hidden_states.ndim != 5 or hidden_states.shape[1] != channels:
            raise ValueError(
                f"`hidden_states` must have shape (batch, {channels}, kept, height, width), got"
                f" {tuple(hidden_states.shape)}."
            )
        batch_size, _, num_frames, height, width = hidden_states.shape
        if not 1 <= num_frames <= self.config.max_num_frames:
            raise ValueError(
                f"`hidden_states` must have from 1 to {self.config.max_num_frames} latent frames, got {num_frames}."
            )
        size = self.config.sample_size
        if self.gap_pool is not None and (height, width) != (size, size):
            raise ValueError(f"A model that regresses gaps takes {size}x{size} latents, got {height}x{width}.")
        if frame_mask is not None and frame_mask.shape != (batch_size, num_frames):
            raise ValueError(
                f"`frame_mask` must have shape (batch, kept) = {(batch_size, num_frames)}, got"
                f" {tuple(frame_mask.shape)}."
            )

    def _check_conditions(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        known_gaps: torch.Tensor | None,
    ) -> None:
        batch_size, _, num_frames, _, _ = hidden_states.shape
        text_dim = self.config.text_dim
        if (encoder_hidden_states is None) != (text_dim is None):
            given = "got none" if encoder_hidden_states is None else "but `encoder_hidden_states` were given"
            needs = "takes no text" if text_dim is None else f"needs text embeddings of {text_dim} channels"
            raise ValueError(f"This model {needs}, {given}.")
        if encoder_hidden_states is not None:
            shape = tuple(encoder_hidden_states.shape)
            if len(shape) != 3 or shape[0] != batch_size or shape[2] != text_dim:
                raise ValueError(
                    f"`encoder_hidden_states` must have shape (batch, text_tokens, text_dim) = ({batch_size}, any,"
                    f" {text_dim}), got {shape}."
                )
            if encoder_attention_mask is not None and tuple(encoder_attention_mask.shape) != shape[:2]:
                raise ValueError(
                    f"`encoder_attention_mask` must have shape {shape[:2]}, got {tuple(encoder_attention_mask.shape)}."
                )
        if known_gaps is not None and self.gap_condition is None:
            raise ValueError("This model cannot be told gaps, but `known_gaps` were given.")
        if known_gaps is not None and tuple(known_gaps.shape) != (batch_size, NUM_GAP_CHANNELS, num_frames):
            raise ValueError(
                f"`known_gaps` must have shape {(batch_size, NUM_GAP_CHANNELS, num_frames)}, got"
                f" {tuple(known_gaps.shape)}."
            )
