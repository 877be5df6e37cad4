"""Training losses, as pure functions on tensors.

Pixels are `(batch, channels, frames, height, width)` in [-1, 1]; losses on pixels are in the units of [0, 1] pixels.
`frame_mask` is bool `(batch, frames)`, True for real frames; padding never counts. Losses are float32 and per clip,
`(batch,)`, unless said otherwise.

The recipe is that of https://github.com/floatingtrees/video-VAE, with these differences: the KL term is normalised
once and covers all real frames, the policy gradient compares the two masks of one clip and is scaled by the running
spread of such differences, and the logit penalty acts on the logits themselves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


def frame_mean(values: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of `(batch, channels, frames, height, width)` or `(batch, frames)` over a clip's real frames."""
    if values.ndim == 5:
        values = values.float().mean(dim=(1, 3, 4))
    if frame_mask is None:
        return values.float().mean(dim=1)
    mask = frame_mask.float()
    return (values.float() * mask).sum(dim=1) / mask.sum(dim=1)


def mse_loss(sample: torch.Tensor, target: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of [0, 1] pixels."""
    return frame_mean((sample.float() - target.float()).square() / 4, frame_mask)


def mae_loss(sample: torch.Tensor, target: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean absolute error of [0, 1] pixels."""
    return frame_mean((sample.float() - target.float()).abs() / 2, frame_mask)


def kl_loss(mean: torch.Tensor, logvar: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
    """KL divergence from the posterior to a standard normal, per latent value, averaged over real frames."""
    mean, logvar = mean.float(), logvar.float()
    return frame_mean(0.5 * (mean.square() + logvar.exp() - 1 - logvar), frame_mask)


def keep_rate(keep_mask: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Fraction of a clip's real frames that is kept."""
    return frame_mean(keep_mask.float(), frame_mask)


def mask_log_prob(
    keep_logits: torch.Tensor, drawn_mask: torch.Tensor, frame_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Log-probability of a mask whose frames were drawn independently with the given logits."""
    signed_logits = torch.where(drawn_mask, keep_logits, -keep_logits).float()
    log_probs = F.logsigmoid(signed_logits)  # (B, T)
    return (log_probs if frame_mask is None else log_probs * frame_mask).sum(dim=1)


def leave_one_out_advantages(clip_losses: torch.Tensor) -> torch.Tensor:
    """Loss under each of a clip's masks, `(masks, batch)`, less the mean loss under its other masks."""
    losses = clip_losses.detach().float()
    return (losses - losses.mean(dim=0)) * (len(losses) / (len(losses) - 1))


def policy_gradient_loss(
    keep_logits: torch.Tensor,
    drawn_masks: torch.Tensor,
    advantages: torch.Tensor,
    frame_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""A term whose gradient estimates that of the expected loss under the keep probabilities.

    REINFORCE with two or more samples, each compared with the others (https://openreview.net/forum?id=r1lgTGL5DE):
    unbiased, and zero where all masks are equal. The value itself means nothing.

    Args:
        keep_logits: Logits of independent frames, `(batch, frames)`.
        drawn_masks: Masks drawn with them, bool `(masks, batch, frames)`.
        advantages: `leave_one_out_advantages`, `(masks, batch)`.
        frame_mask: Bool `(batch, frames)`.
    """
    log_probs = torch.stack([mask_log_prob(keep_logits, mask, frame_mask) for mask in drawn_masks])
    return (advantages * log_probs).mean(dim=0)


def logit_penalty(
    keep_logits: torch.Tensor, limit: float = 4.0, frame_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """How far logits exceed `limit` in magnitude, so that no decision becomes final."""
    return frame_mean(F.relu(keep_logits.float().abs() - limit), frame_mask)


def motion_density(sample: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
    r"""How densely frames should be kept where a clip moves as it does, up to a factor, `(batch, frames)`.

    Blending over a gap of g frames costs about e * g ** 2, where e is the squared change from frame to frame, so that
    the sum of error and price of a frame is least for a density in proportion to e ** (1 / 3). Changes are those of
    4x4 pixel means two frames before and after; what is finer is lost in coding or noise.
    """
    num_frames = sample.shape[2]
    means = F.avg_pool3d(sample.float(), (1, 4, 4))
    time = torch.arange(num_frames, device=sample.device).expand(len(sample), -1)
    last = torch.full_like(time[:, :1], num_frames - 1) if frame_mask is None else frame_mask.sum(1, keepdim=True) - 1
    before, after = (time - 2).clamp(min=0), torch.minimum(time + 2, last)
    index = torch.arange(len(sample), device=sample.device)[:, None]
    frames = means.transpose(1, 2)  # (B, T, C, H / 4, W / 4)
    change = (frames[index, after] - frames[index, before]).square().mean(dim=(2, 3, 4))  # (B, T)
    return (change / (after - before).clamp(min=1).square()) ** (1 / 3)


def keep_guide_loss(
    keep_logits: torch.Tensor, target: torch.Tensor, frame_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of keep probabilities with given ones, `(batch, frames)`; least where both are equal."""
    return frame_mean(F.binary_cross_entropy_with_logits(keep_logits.float(), target, reduction="none"), frame_mask)


class RunningScale(nn.Module):
    """Root of the running mean square of values, known only once values were seen."""

    mean_square: torch.Tensor
    weight: torch.Tensor

    def __init__(self, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean_square", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def update(self, values: torch.Tensor) -> torch.Tensor:
        """Takes in values and returns the root mean square so far, values included."""
        if values.numel():
            self.mean_square.lerp_(values.float().square().mean(), 1 - self.decay)
            self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)
        return (self.mean_square / self.weight.clamp(min=1e-12)).sqrt().clamp(min=1e-12)


class KeepCostController(nn.Module):
    r"""Price of a kept frame that steers the mean keep rate to a target.

    After every step the price is multiplied by `exp(speed * (rate - target) / target)`.

    Args:
        target_rate: The mean keep rate to reach, in (0, 1).
        initial: Price to start from.
        speed: How fast the price follows.
        limits: Lowest and highest price.
    """

    price: torch.Tensor

    def __init__(self, target_rate: float, initial: float, speed: float, limits: tuple[float, float] = (1e-6, 10.0)):
        super().__init__()
        self.target_rate = target_rate
        self.speed = speed
        self.limits = limits
        self.register_buffer("price", torch.tensor(initial, dtype=torch.float32))

    @torch.no_grad()
    def update(self, rate: torch.Tensor) -> None:
        """Takes in the mean keep rate of a step, a scalar in [0, 1]."""
        factor = torch.exp(self.speed * (rate.float() - self.target_rate) / self.target_rate)
        self.price.mul_(factor).clamp_(*self.limits)


def flow_matching_loss(
    velocity: torch.Tensor, noise: torch.Tensor, data: torch.Tensor, frame_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared error of a velocity, noise - data, per value; https://arxiv.org/abs/2210.02747."""
    return frame_mean((velocity.float() - (noise - data).float()).square(), frame_mask)


def gap_regression_loss(
    predicted: torch.Tensor, gaps: torch.Tensor, frame_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared error of gaps in frames, `(batch, kept)` each."""
    return frame_mean((predicted.float() - gaps.float()).square(), frame_mask)


def hinge_discriminator_loss(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """Hinge loss of a discriminator, a scalar; real above 1, fake below -1 cost nothing."""
    return 0.5 * (F.relu(1 - real_scores.float()).mean() + F.relu(1 + fake_scores.float()).mean())


def hinge_generator_loss(fake_scores: torch.Tensor) -> torch.Tensor:
    """What a generator minimises against a hinge discriminator, a scalar."""
    return -fake_scores.float().mean()


class PatchDiscriminator3D(nn.Module):
    """A few strided 3D convolutions that score overlapping patches of a clip, high where it looks real.

    Args:
        in_channels: Pixel channels.
        channels: Width of the first layer; each of the next ones is twice as wide.
        num_layers: Layers that halve height and width.
    """

    def __init__(self, in_channels: int = 3, channels: int = 32, num_layers: int = 3):
        super().__init__()
        widths = [channels * 2**i for i in range(num_layers)]
        layers: list[nn.Module] = []
        for i, (width_in, width_out) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            # Time is halved once: clips may have a single latent frame.
            stride = (2 if i == 1 else 1, 2, 2)
            layers += [nn.Conv3d(width_in, width_out, 3, stride, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv3d(widths[-1], 1, 3, padding=1))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.layers(sample)  # (B, 1, t, h, w)


class PerceptualLoss(nn.Module):
    r"""Squared distance of VGG16 features (relu1_1, relu1_2, relu2_1), needs torchvision and its weights.

    Features of every frame, averaged per layer and summed over the layers, as the original recipe has them
    (https://arxiv.org/abs/1603.08155).
    """

    layers = (1, 3, 6)
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, pretrained: bool = True):
        super().__init__()
        try:
            from torchvision.models import VGG16_Weights, vgg16
        except ImportError as error:
            raise ValueError(
                "A perceptual weight above 0 needs torchvision: `pip install torchvision`, or set it to 0."
            ) from error
        weights = VGG16_Weights.IMAGENET1K_FEATURES if pretrained else None
        self.features = vgg16(weights=weights).features[: self.layers[-1] + 1].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(
        self, sample: torch.Tensor, target: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        sample_frames, target_frames = (self._normalized_frames(pixels) for pixels in (sample, target))
        loss = torch.zeros(sample.shape[0], device=sample.device)
        for index, layer in enumerate(self.features):
            sample_frames, target_frames = layer(sample_frames), layer(target_frames)
            if index in self.layers:
                distance = (sample_frames.float() - target_frames.float()).square().mean(dim=(1, 2, 3))
                loss = loss + frame_mean(distance.unflatten(0, (sample.shape[0], -1)), frame_mask)
        return loss

    def _normalized_frames(self, pixels: torch.Tensor) -> torch.Tensor:
        frames = rearrange(pixels, "b c t h w -> (b t) c h w")
        return (frames / 2 + 0.5 - self.mean) / self.std
