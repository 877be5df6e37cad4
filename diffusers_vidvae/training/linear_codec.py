"""The codec without a network that every trained one has to beat, and models that start from it.

The linear codec keeps the first principal components of every patch, and blends dropped frames between the kept ones
before and after them. It has a closed form, so a model that starts there has only the rest to learn.
"""

from __future__ import annotations

import torch
from torch import nn

from diffusers_vidvae.models.factored_attention import FactoredAttentionBlock
from diffusers_vidvae.models.frame_select_vae import ChannelCycle, FrameSelectVAE, InterpolatedFill

from .data import ClipDataset
from .principal_components import ComponentsEstimator, PrincipalComponents, frame_patches, frames_of_patches


# Directions of less variance are noise of 8-bit pixels; scaled up to unit variance, they would drown the others.
MIN_DEVIATION = 0.01
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


def dataset_components(dataset: ClipDataset, num_clips: int, patch_size: int) -> PrincipalComponents:
    """Principal components of the patches of a training set's first clips."""
    estimator = ComponentsEstimator(3 * patch_size**2)
    for draw in range(num_clips):
        item = dataset[draw]
        estimator.update(frame_patches(item["sample"][:, item["frame_mask"]][None], patch_size))
    return estimator.components()


@torch.no_grad()
def start_as_linear_codec(model: FrameSelectVAE, components: PrincipalComponents) -> None:
    r"""Gives a new model the weights with which it computes what the linear codec does, blocks being the identity.

    The latents are the first components, scaled to unit variance; channels that take turns carry the components after
    those that are always sent, dealt out to the groups in turn. Tokens are components divided by the square root of
    their deviation, halfway between pixels and unit variance: in pixels the blocks would hardly see detail, at unit
    variance their first steps would blur what is already right. In the decoder, what is left of a token's width holds
    how much the neighbouring kept frames differ and how near they are.

    Args:
        model: Without patch norm, with `fill="interpolate"`; its pixel range must be [-1, 1].
        components: Of single-frame patches.

    Raises:
        ValueError: The model has another patch norm, fill, pixel range or fewer channels than this takes.
    """
    _check_can_start(model)
    encoder, decoder, cycle = model.encoder, model.decoder, model.encoder.cycle
    width = min(encoder.to_mean.in_features, len(components.variances))
    deviation = components.variances[:width].sqrt().clamp(min=MIN_DEVIATION)
    scale = deviation.sqrt()
    basis = components.components[:, :width]

    _set_linear(encoder.patch_embed.proj, (basis / scale).T, -(components.mean @ basis) / scale)
    order = _channel_order(cycle)
    _set_linear(encoder.to_mean, torch.diag(1 / scale)[order])  # (num_channels, width)
    nn.init.zeros_(encoder.to_variance.weight)
    nn.init.constant_(encoder.to_variance.bias, POSTERIOR_LOGIT)

    channels, extra = cycle.num_channels, cycle.num_fill_features - cycle.num_channels
    shown = min(width, decoder.proj_in.out_features - extra)
    _set_linear(decoder.proj_in, torch.diag(scale)[order].T)  # (width, num_channels)
    decoder.proj_in.weight[shown:, channels:] = torch.eye(decoder.proj_in.out_features - shown, extra)
    decoder.proj_in.weight[shown : shown + channels, channels : 2 * channels] *= scale[order][:, None]
    _set_linear(decoder.patch_unembed.linear, torch.eye(shown))
    copies = model.config.unpatch_channels
    _set_linear(
        decoder.patch_unembed.upsample,
        (basis * scale)[:, :shown].repeat_interleave(copies, dim=0),
        components.mean.repeat_interleave(copies),
    )
    mix = torch.eye(model.config.in_channels).repeat_interleave(copies, dim=1) / copies
    _set_linear(decoder.to_pixels, mix)
    for block in (*encoder.transformer_blocks, *decoder.transformer_blocks):
        silence(block)


def silence(block: FactoredAttentionBlock) -> None:
    """Makes a block the identity."""
    for linear in (
        block.temporal_attn.to_out[0],
        block.temporal_ff.linear_2,
        block.spatial_attn.to_out[0],
        block.spatial_ff.linear_2,
    ):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def _channel_order(cycle: ChannelCycle) -> list[int]:
    """The component that each channel of a cycle carries."""
    constant = list(range(cycle.constant_channels))
    groups = [
        cycle.constant_channels + i * cycle.length + turn
        for turn in range(cycle.length)
        for i in range(cycle.channels)
    ]
    return constant + groups


def _set_linear(layer: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Sets the corner of a layer that a smaller weight covers, and the rest to zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    layer.weight[: weight.shape[0], : weight.shape[1]] = weight
    if bias is not None:
        layer.bias[: len(bias)] = bias


def _check_can_start(model: FrameSelectVAE) -> None:
    config = model.config
    if config.fill != "interpolate" or config.patch_norm or tuple(config.pixel_range) != (-1.0, 1.0):
        raise ValueError(
            "To start as the linear codec, a model needs `fill` 'interpolate', `patch_norm` false and `pixel_range`"
            f" [-1, 1], got {config.fill!r}, {config.patch_norm} and {list(config.pixel_range)}."
        )
    width, features = model.encoder.to_mean.in_features, model.encoder.cycle.num_fill_features
    if width < features:
        raise ValueError(f"To start as the linear codec, `hidden_size` must be at least {features}, got {width}.")
