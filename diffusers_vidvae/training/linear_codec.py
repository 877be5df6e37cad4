"""The codec without a network that every trained one has to beat, and models that start from it.

The linear codec keeps the first principal components of every patch, and blends dropped frames between the kept ones
before and after them. It has a closed form, so a model that starts there has only the rest to learn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn

from diffusers_vidvae.models.factored_attention import FactoredAttentionBlock
from diffusers_vidvae.models.frame_fill import ChannelCycle, InterpolatedFill, TemporalFilter, WienerFill
from diffusers_vidvae.models.frame_select_coders import MotionKeepHead
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE

from .principal_components import ComponentsEstimator, PrincipalComponents, frame_patches, frames_of_patches


# Directions of less variance are noise of 8-bit pixels; scaled up to unit variance, they would drown the others.
MIN_DEVIATION = 0.01
# Every n-th frame is kept, and how much the logarithm of the error then counts.
KEEP_RATES = ((1, 1.0), (2, 2.0), (4, 3.0), (8, 3.0))
# Two entries of every token hold this constant and its negative, so that layer norms hardly change with the content.
ANCHOR = 8.0
# Blending over a gap costs about the square of the gap's motion, so that the sum of error and price of frames is least
# for keep probabilities in proportion to some power of the squared motion.
MOTION_POWER = 1 / 3
MOTION_COMPONENTS = 16
START_KEEP_RATE = 0.27
# Logits of the posterior's variance at the start: a standard deviation of 0.01 beside latents of 1.
POSTERIOR_LOGIT = -9.0


class LinearCodec:
    r"""Principal components of single-frame patches as a codec.

    Args:
        components: Of patches as `frame_patches` cuts them.
        patch_size: Side of a patch, in pixels.
        num_components: Numbers kept of every patch.
    """

    def __init__(self, components: PrincipalComponents, patch_size: int, num_components: int):
        self.mean = components.mean
        self.basis = components.components[:, :num_components]
        self.patch_size = patch_size
        self.fill = InterpolatedFill(ChannelCycle(num_components, 0, 1))

    def encode(self, sample: torch.Tensor) -> torch.Tensor:
        """Latents `(B, num_components, T, h, w)` of pixels `(B, C, T, H, W)` in [-1, 1]."""
        latents = (frame_patches(sample, self.patch_size) - self.mean) @ self.basis
        return latents.movedim(-1, 1)

    def decode(self, latents: torch.Tensor, keep_mask: torch.Tensor) -> torch.Tensor:
        """Pixels of all frames from the latents of those in `keep_mask`, bool `(B, T)`."""
        blended = self.fill(latents, keep_mask)[:, : latents.shape[1]].movedim(1, -1)
        return frames_of_patches(blended @ self.basis.T + self.mean, self.patch_size)


def dataset_components(clips: Iterable[torch.Tensor], patch_size: int) -> PrincipalComponents:
    """Principal components of the patches of clips `(C, T, H, W)` in [-1, 1]."""
    estimator = ComponentsEstimator(3 * patch_size**2)
    for clip in clips:
        estimator.update(frame_patches(clip[None], patch_size))
    return estimator.components()


@torch.no_grad()
def start_as_linear_codec(model: FrameSelectVAE, clips: Sequence[torch.Tensor]) -> PrincipalComponents:
    r"""Gives a new model the weights of the best linear codec of its kind for some clips; its blocks are the identity.

    The latents are the first principal components of patches, scaled to unit variance; channels that take turns carry
    the components after those that are always sent. With `fill="wiener"`, correlations over time are those of the
    clips, and which component is always sent and how it is filtered is what gives the least error over many and few
    kept frames. With `decoder_context`, its weights are those of least squares.

    Tokens are components divided by the square root of their deviation, halfway between pixels and unit variance: in
    pixels the blocks would hardly see detail, at unit variance their first steps would blur what is already right.
    What is left of a token's width in the decoder holds the other features of the fill.

    Args:
        model: Without patch norm, with a `fill` other than "token"; its pixel range must be [-1, 1].
        clips: Clips `(C, T, H, W)` in [-1, 1], of one size and at least as many patches as components.

    Returns:
        The components of the clips' patches.

    Raises:
        ValueError: The model has another patch norm, fill, pixel range or fewer channels than this takes, or the clips
            are too few.
    """
    _check_can_start(model)
    components = dataset_components(clips, model.config.patch_size)
    cycle = model.encoder.cycle
    order = _channel_order(cycle)
    if isinstance(model.fill_token, WienerFill):
        correlation = component_correlation(clips, components, model.config.patch_size, model.fill_token.num_lags)
        filter_size = model.encoder.temporal_filter.weight.shape[1] if model.encoder.temporal_filter else 1
        plan = plan_channels(cycle, components.variances, correlation, filter_size)
        order = plan.order
        model.fill_token.correlation.copy_(correlation[order])
        if model.encoder.temporal_filter is not None:
            model.encoder.temporal_filter.weight.copy_(plan.taps)
    _set_projections(model, components, order)
    for block in (*model.encoder.transformer_blocks, *model.decoder.transformer_blocks):
        silence(block)
    if model.decoder.context is not None:
        fit_context(model, clips)
    if isinstance(model.encoder.keep_head, MotionKeepHead):
        set_keep_rate(model, clips)
    return components


@torch.no_grad()
def set_keep_rate(model: FrameSelectVAE, clips: Sequence[torch.Tensor], rate: float = START_KEEP_RATE) -> None:
    r"""Makes keep probabilities a power of the motion around a frame, `rate` on average over some clips.

    Motion is the change of pixels as far as the first components show it; finer detail would add noise.

    Args:
        model: A model that starts as the linear codec, with a "motion" keep head.
        clips: Clips `(C, T, H, W)` in [-1, 1].
        rate: Mean keep probability to reach, in (0, 1).
    """
    scale = model.decoder.patch_unembed.upsample.weight.norm(dim=0)[:MOTION_COMPONENTS]
    keep_head = cast(MotionKeepHead, model.encoder.keep_head)
    nn.init.zeros_(keep_head.channel_scale)
    keep_head.channel_scale[:MOTION_COMPONENTS] = scale / model.config.unpatch_channels**0.5
    head = keep_head.linear
    nn.init.constant_(head.weight, MOTION_POWER / head.in_features)
    nn.init.zeros_(head.bias)
    logits = torch.cat([model.encode(clip[None]).keep_logits.flatten() for clip in clips])
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if (logits + middle).sigmoid().mean() > rate else (middle, high)
    nn.init.constant_(head.bias, (low + high) / 2)


def _set_projections(model: FrameSelectVAE, components: PrincipalComponents, order: list[int]) -> None:
    """First and last layers of both halves, where channel i carries component `order[i]`."""
    encoder, decoder = model.encoder, model.decoder
    hidden, features = decoder.proj_in.weight.shape
    channels = len(order)
    # Components in a token of the encoder, and in one of the decoder beside the other features of the fill.
    width = min(hidden - 2, len(components.variances))
    shown = min(width, hidden - 2 - (features - channels))
    deviation = components.variances[:width].sqrt().clamp(min=MIN_DEVIATION)
    scale, basis = deviation.sqrt(), components.components[:, :width]
    anchors = torch.tensor([ANCHOR, -ANCHOR])

    _set_linear(encoder.patch_embed.proj, (basis / scale).T, -(components.mean @ basis) / scale)
    encoder.patch_embed.proj.bias[-2:] = anchors
    _set_linear(encoder.to_mean, torch.diag(1 / scale)[order])  # (num_channels, width)
    nn.init.zeros_(encoder.to_variance.weight)
    nn.init.constant_(encoder.to_variance.bias, POSTERIOR_LOGIT)

    _set_linear(decoder.proj_in, torch.diag(scale)[order].T)  # (width, num_channels)
    decoder.proj_in.weight[shown:-2, channels:] = torch.eye(hidden - 2 - shown, features - channels)
    decoder.proj_in.bias[-2:] = anchors
    _set_linear(decoder.patch_unembed.linear, torch.eye(shown))
    copies = model.config.unpatch_channels
    _set_linear(
        decoder.patch_unembed.upsample,
        (basis * scale)[:, :shown].repeat_interleave(copies, dim=0),
        components.mean.repeat_interleave(copies),
    )
    _set_linear(decoder.to_pixels, torch.eye(model.config.in_channels).repeat_interleave(copies, dim=1) / copies)


def silence(block: FactoredAttentionBlock) -> None:
    """Makes a block the identity."""
    for linear in (
        block.temporal_attn.to_out[0],
        block.temporal_ff.linear_2,
        block.spatial_attn.to_out[0],
        block.spatial_ff.linear_2,
    ):
        for parameter in linear.parameters():
            nn.init.zeros_(parameter)


def component_correlation(
    clips: Sequence[torch.Tensor], components: PrincipalComponents, patch_size: int, num_lags: int
) -> torch.Tensor:
    """Correlation of every component with itself some frames later, `(dim, num_lags)`; 1 at lag 0."""
    total = torch.zeros(len(components.variances), num_lags, dtype=torch.float64)
    counts = torch.zeros(num_lags, dtype=torch.float64)
    for clip in clips:
        values = (frame_patches(clip[None], patch_size)[0] - components.mean) @ components.components  # (T, h, w, dim)
        for lag in range(min(num_lags, len(values))):
            products = values[: len(values) - lag] * values[lag:]
            total[:, lag] += products.sum(dim=(0, 1, 2)).double()
            counts[lag] += products[..., 0].numel()
    mean = total / counts.clamp(min=1)
    return (mean / mean[:, :1].clamp(min=1e-12)).float()


class ChannelPlan(NamedTuple):
    r"""What the channels of a latent carry.

    Args:
        order: The component of every channel.
        taps: Weights of its temporal filter, `(num_channels, filter_size)`.
    """

    order: list[int]
    taps: torch.Tensor


@torch.no_grad()
def plan_channels(
    cycle: ChannelCycle, variances: torch.Tensor, correlation: torch.Tensor, filter_size: int
) -> ChannelPlan:
    r"""Chooses which components are always sent and how each is filtered, for the least error over all keep rates.

    The sum of the logarithms of the errors at `KEEP_RATES` is minimised, a round at a time: given their derivatives,
    components are independent of each other.

    Args:
        cycle: How many components are always sent, and how many take turns.
        variances: Of all components, `(dim,)`.
        correlation: Of the components over time, `(dim, num_lags)`.
        filter_size: Frames in a filter.
    """
    taps = _candidate_filters(filter_size)  # (F, filter_size)
    sent = cycle.num_channels
    errors = {  # shares of a component's variance that are lost, (F, sent, rates)
        period: torch.stack([_lost_share(taps, correlation[:sent], step, period) for step, _ in KEEP_RATES], dim=-1)
        for period in {1, cycle.length or 1}
    }
    always, in_turn = (variances[:sent, None] * errors[period] for period in (1, cycle.length or 1))
    importance = torch.tensor([weight for _, weight in KEEP_RATES])
    slopes = torch.ones(len(KEEP_RATES))
    for _ in range(4):
        costs = [(values @ slopes).min(dim=0) for values in (always, in_turn)]
        gain = costs[1].values - costs[0].values
        constant = gain.argsort(descending=True)[: cycle.constant_channels].sort().values
        others = torch.tensor([k for k in range(sent) if k not in set(constant.tolist())], dtype=torch.long)
        losses = always[costs[0].indices[constant], constant].sum(0) + variances[sent:].sum()
        losses = losses + in_turn[costs[1].indices[others], others].sum(0)
        slopes = importance / losses
    # Groups take the components in turn, so that all matter alike.
    dealt = torch.cat([others[turn :: cycle.length] for turn in range(cycle.length)]) if cycle.length else others
    filters = torch.cat([costs[0].indices[constant], costs[1].indices[dealt]])
    return ChannelPlan([*constant.tolist(), *dealt.tolist()], taps[filters])


def _candidate_filters(size: int) -> torch.Tensor:
    """Means over 1, 3, 5... frames, mixed with the frame itself, `(filters, size)`."""
    itself = torch.zeros(size)
    itself[size // 2] = 1
    filters = [itself]
    for reach in range(1, size // 2 + 1):
        mean = torch.zeros(size)
        mean[size // 2 - reach : size // 2 + reach + 1] = 1 / (2 * reach + 1)
        filters += [share * mean + (1 - share) * itself for share in (0.3, 0.5, 0.7, 0.85, 1.0)]
    return torch.stack(filters)


def _lost_share(taps: torch.Tensor, correlation: torch.Tensor, step: int, period: int) -> torch.Tensor:
    """Share of components' variance that is lost if every `step`-th frame is kept and sends them every `period`-th.

    Returns:
        `(filters, components)`, the mean over where the first frame is and over turns.
    """
    num_filters, num_components, num_frames = len(taps), len(correlation), correlation.shape[1]
    temporal_filter = TemporalFilter(num_filters, taps.shape[1])
    temporal_filter.weight.copy_(taps)
    matrix = temporal_filter.matrix(torch.tensor([num_frames]), num_frames)[0]  # (F, T, T)
    matrix = matrix[:, None].expand(-1, num_components, -1, -1)
    fill = WienerFill(ChannelCycle(num_components, 0, 1), num_frames)
    fill.correlation.copy_(correlation)
    time = torch.arange(num_frames)
    lost = []
    for first in sorted({0, step // 2, step - 1}):
        for turn in range(period):
            known = ((time % step == first) & (time % period == turn)).float()
            _, unknown = fill.estimator(known.expand(num_filters, num_components, -1), matrix)
            lost.append(unknown.mean(dim=-1))
    return torch.stack(lost).mean(dim=0)


@torch.no_grad()
def fit_context(model: FrameSelectVAE, clips: Sequence[torch.Tensor]) -> None:
    r"""Fits what the latents around a token say of it, by least squares over many and few kept frames.

    Args:
        model: A model that is the linear codec, with `decoder_context`.
        clips: Clips `(C, T, H, W)` in [-1, 1], of one size.
    """
    encoder, decoder = model.encoder, model.decoder
    channels = encoder.cycle.num_channels
    shown = int((decoder.patch_unembed.linear.weight.diagonal() != 0).sum())
    gram, moment = torch.zeros(()), torch.zeros(())
    for index, clip in enumerate(clips):
        step, weight = KEEP_RATES[index % len(KEEP_RATES)]
        keep_mask = (torch.arange(clip.shape[1]) % step == index // len(KEEP_RATES) % step)[None]
        latents = model.encode(clip[None]).latent_dist.mode()
        filled = model.fill(latents, keep_mask)  # (1, F, T, h, w)
        estimates = filled[0, :channels].transpose(0, 1)  # (T, channels, h, w)
        features = nn.functional.unfold(estimates, 3, padding=1).mT.flatten(0, 1)  # (T * h * w, channels * 9)
        target = encoder.patch_embed(clip[None])[0, :, :, :shown].flatten(0, 1)
        target = target - decoder.proj_in(filled.flatten(3).permute(0, 2, 3, 1))[0, :, :, :shown].flatten(0, 1)
        # Errors of few kept frames are as much larger as they are fewer.
        weight = weight / step
        gram = gram + weight * (features.T @ features)
        moment = moment + weight * (features.T @ target)
    ridge = 1e-3 * gram.diagonal().mean()
    solution = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), moment)  # (channels * 9, shown)
    context = cast(nn.Conv2d, decoder.context)
    context.weight.zero_()
    context.weight[:shown, :channels] = solution.T.unflatten(1, (channels, 3, 3))


def _channel_order(cycle: ChannelCycle) -> list[int]:
    """The component that each channel of a cycle carries."""
    constant = list(range(cycle.constant_channels))
    turns = [i * cycle.length + turn for turn in range(cycle.length) for i in range(cycle.channels)]
    return constant + [cycle.constant_channels + index for index in turns]


def _set_linear(layer: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Sets the corner of a layer that a smaller weight covers, and the rest to zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    layer.weight[: weight.shape[0], : weight.shape[1]] = weight
    if bias is not None:
        layer.bias[: len(bias)] = bias


def _check_can_start(model: FrameSelectVAE) -> None:
    config = model.config
    if config.fill == "token" or config.patch_norm or tuple(config.pixel_range) != (-1.0, 1.0):
        raise ValueError(
            "To start as the linear codec, a model needs another `fill` than 'token', `patch_norm` false and"
            f" `pixel_range` [-1, 1], got {config.fill!r}, {config.patch_norm} and {list(config.pixel_range)}."
        )
    hidden, needed = model.decoder.proj_in.out_features, model.decoder.proj_in.in_features + 2
    if hidden < needed:
        raise ValueError(f"To start as the linear codec, `hidden_size` must be at least {needed}, got {hidden}.")
