r"""Trains a FrameSelectVAE.

    accelerate launch -m diffusers_vidvae.training.train_frame_select_vae --config FILE [section.key=value ...]

Two minutes on a CPU, on procedural clips:

    accelerate launch --cpu -m diffusers_vidvae.training.train_frame_select_vae --config frame_select_vae_cpu.yaml

A name without a folder is looked up in `diffusers_vidvae/training/configs`. One's own videos:

    ... --config frame_select_vae.yaml 'data.folders=[my_videos]' data.procedural_share=0

The recipe: the encoder and its keep head run once for a clip; two masks of frames to keep are drawn from the keep
probabilities, and one draw of the latents is decoded under both. Pixel, KL and logit terms train by backpropagation.
Which frames to keep cannot, so the difference of the two reconstruction losses, each with the price of its kept
frames, trains the keep head by policy gradient. At first, while the decoder learns to fill in frames, all masks are
random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
from accelerate.utils import gather

from diffusers_vidvae.media import clip_sheet, save_image
from diffusers_vidvae.metrics import clip_psnr
from diffusers_vidvae.models.clip_windows import clip_windows
from diffusers_vidvae.models.frame_select_coders import PooledKeepHead
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE

from .block_codec import COMPONENTS_FILE, remembered
from .config import TrainConfig, check_range, load_config
from .data import ClipDataset, HeldOutClips, whole_clips
from .draws import draw_latents, torch_generators, uniform_noise
from .latent_terms import LatentTerms, LatentTermsConfig
from .launch import config_path, run_from_command_line
from .linear_codec import LinearCodec, dataset_components, start_as_linear_codec
from .losses import (
    KeepCostController,
    PerceptualLoss,
    RunningScale,
    keep_guide_loss,
    keep_rate,
    kl_loss,
    leave_one_out_advantages,
    logit_penalty,
    mae_loss,
    motion_density,
    mse_loss,
    policy_gradient_loss,
)
from .optimization import scale_input_gradient
from .pretrained import starting_model, starts_as_linear_codec
from .trainer import Batch, Objective, Trainer, make_accelerator


@dataclass
class LossConfig(LatentTermsConfig):
    """Weights of the loss, besides those of `LatentTermsConfig`.

    Args:
        mae_weight: Of the mean absolute error; the mean squared error has weight 1.
        perceptual_weight: Of VGG features; above 0 needs torchvision.
        kl_weight: Of the KL divergence.
        logit_weight: Of keep logits beyond `logit_limit`.
        logit_limit: Largest magnitude of a free logit.
        policy_weight: Of the policy gradient.
        masks_per_clip: Masks drawn for every clip, at least 2; more of them make the policy gradient less noisy.
        trained_masks: How many of them the decoder learns from, a divisor of `masks_per_clip`; the others are decoded
            without a backward pass.
        trunk_gradient_scale: Factor of the keep head's gradient into the encoder (pooled keep heads only).
        target_keep_rate: Mean keep rate that the price of a frame is steered to, in (0, 1).
        initial_keep_price: Price of keeping all frames of a clip, to start from.
        keep_price_speed: How fast the price follows the keep rate.
        random_phase: Share of the training with random masks only.
        random_share: Share of clips that keep random masks afterwards, so that the decoder meets all kinds.
        full_share: Share of random masks that keep everything.
        spaced_share: Share of the other random masks that are spaced evenly, from a random offset on.
        rate_power: Power of a mask's keep rate that its pixel loss is multiplied by. With 1, the small errors of many
            frames weigh as much as the larger ones of few.
        motion_weight: Of the difference between keep probabilities and what the motion of a clip suggests.
    """

    mae_weight: float = 0.05
    perceptual_weight: float = 0.0
    kl_weight: float = 1e-4
    logit_weight: float = 0.01
    logit_limit: float = 4.0
    policy_weight: float = 0.01
    masks_per_clip: int = 2
    trained_masks: int = 2
    trunk_gradient_scale: float = 0.1
    target_keep_rate: float = 0.3
    initial_keep_price: float = 0.01
    keep_price_speed: float = 0.03
    random_phase: float = 0.25
    random_share: float = 0.25
    full_share: float = 0.25
    spaced_share: float = 0.0
    rate_power: float = 0.0
    motion_weight: float = 0.0

    def __post_init__(self) -> None:
        self.check_latent_terms()
        check_range("loss.target_keep_rate", self.target_keep_rate, 1e-3, 1)
        check_range("loss.masks_per_clip", self.masks_per_clip, 2)
        if self.trained_masks < 1 or self.masks_per_clip % self.trained_masks:
            raise ValueError(
                f"`loss.trained_masks` must divide `loss.masks_per_clip` = {self.masks_per_clip}, got"
                f" {self.trained_masks}."
            )
        for name in ("random_phase", "random_share", "full_share", "spaced_share"):
            check_range(f"loss.{name}", getattr(self, name), 0, 1)


@dataclass
class TrainFrameSelectVAEConfig(TrainConfig):
    """Sections of the configuration file; `model` holds arguments of `FrameSelectVAE`."""

    loss: LossConfig = field(default_factory=LossConfig)


class FrameSelectObjective(Objective):
    """FrameSelectVAE with its loss."""

    def __init__(self, model: FrameSelectVAE, config: TrainFrameSelectVAEConfig):
        super().__init__()
        self.model = model
        self.config = config
        self.held_out = HeldOutClips(config.data)
        self.linear_codec: Callable[[], LinearCodec] | None = None
        self.keep_cost = KeepCostController(
            config.loss.target_keep_rate, config.loss.initial_keep_price, config.loss.keep_price_speed
        )
        self.motion_cost = KeepCostController(config.loss.target_keep_rate, 1.0, 0.05)
        self.advantage_scale = RunningScale()
        self.latent_terms = LatentTerms(config.loss, model.config.latent_channels, config.run.seed)
        self.perceptual = PerceptualLoss() if config.loss.perceptual_weight else None
        if isinstance(model.encoder.keep_head, PooledKeepHead):
            scale_input_gradient(model.encoder.keep_head, config.loss.trunk_gradient_scale)

    def forward(self, batch: Batch, progress: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        weights = self.config.loss
        sample, frame_mask = batch["sample"], batch["frame_mask"]
        posterior, keep_probs, keep_logits = self.model.encode(sample, frame_mask, return_dict=False)
        keep_logits = keep_logits.float()

        drawn, is_random = self._draw_masks(keep_probs.detach(), batch, progress)  # (M, B, T), (B,)
        if progress < weights.random_phase:
            drawn = drawn[: weights.trained_masks]  # the others only serve the policy gradient
        kept = torch.stack([self._at_least_one(mask, keep_probs, frame_mask) for mask in drawn])
        rates = torch.stack([keep_rate(mask, frame_mask) for mask in kept])  # (M, B)
        generators = torch_generators(self.config.run.seed, batch["draw"], stream=2)
        latents = draw_latents(posterior.mean, posterior.std, generators)
        shown, target = self.latent_terms.decoder_pair(latents, sample, batch["draw"])
        decoded, pixel = self._decode(shown, target, kept, frame_mask)  # (B, C, T, H, W), (M, B)

        trained = slice(weights.trained_masks)
        mean_pixel = (pixel[trained] * rates[trained] ** weights.rate_power).mean(dim=0)
        kl = kl_loss(posterior.mean, posterior.logvar, frame_mask)
        penalty = logit_penalty(keep_logits, weights.logit_limit, frame_mask)
        loss = mean_pixel + weights.kl_weight * kl + weights.logit_weight * penalty
        asked, asked_metrics = self.latent_terms.losses(latents, sample, frame_mask, self._decode_all)
        loss = loss + asked
        motion_keep = self._motion_keep_probs(sample, frame_mask)
        loss = loss + weights.motion_weight * keep_guide_loss(keep_logits, motion_keep, frame_mask)
        if progress >= weights.random_phase:
            advantages = leave_one_out_advantages(pixel + self.keep_cost.price * rates)
            scaled = advantages / self._scale(advantages, is_random)
            policy = policy_gradient_loss(keep_logits, drawn, scaled, frame_mask)
            loss = loss + weights.policy_weight * policy * ~is_random
        metrics = {
            "pixel": mean_pixel.mean(),
            "mse": mse_loss(decoded, target, frame_mask).mean(),
            "kl": kl.mean(),
            "logit_penalty": penalty.mean(),
            "keep_prob": keep_rate(keep_probs, frame_mask).mean(),
            "keep_prob_std": keep_probs.std(dim=1).mean(),
            "motion_keep_rate": keep_rate(motion_keep, frame_mask).mean(),
            "keep_price": self.keep_cost.price,
            "policy_share": (~is_random).float().mean(),
            "policy_keep_rate": (rates.mean(dim=0) * ~is_random).mean(),
            **asked_metrics,
        }
        return loss.mean(), {name: value.detach() for name, value in metrics.items()}

    def after_step(self, metrics: dict[str, float]) -> None:
        if metrics["policy_share"] > 0:
            self.keep_cost.update(torch.tensor(metrics["policy_keep_rate"] / metrics["policy_share"]))
        self.motion_cost.update(torch.tensor(metrics["motion_keep_rate"]))

    def _draw_masks(
        self, keep_probs: torch.Tensor, batch: Batch, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of every clip, `(masks, batch, frames)`, and which clips have random ones, `(batch,)`."""
        weights = self.config.loss
        generators = torch_generators(self.config.run.seed, batch["draw"], stream=1)
        numbers = weights.masks_per_clip, keep_probs.shape[1] + 2
        noise = uniform_noise(numbers, generators, keep_probs)  # (B, M, T + 2)
        choice = uniform_noise((1,), generators, keep_probs)[:, 0]
        is_random = choice < (1.0 if progress < weights.random_phase else weights.random_share)

        rate, full = noise[:, :, :1], noise[:, :, 1:2] < weights.full_share
        random_probs = torch.where(full, torch.ones_like(rate), rate)  # (B, M, 1)
        probs = torch.where(is_random[:, None, None], random_probs, keep_probs[:, None])
        masks = noise[:, :, 2:] < probs
        if weights.spaced_share:
            spacing = uniform_noise((weights.masks_per_clip, 2), generators, keep_probs)  # (B, M, 2)
            is_spaced = (spacing[:, :, :1] < weights.spaced_share) & is_random[:, None, None] & ~full
            masks = torch.where(is_spaced, spaced_masks(rate, spacing[:, :, 1:], batch["frame_mask"]), masks)
        return (masks & batch["frame_mask"][:, None]).transpose(0, 1), is_random

    def _motion_keep_probs(self, sample: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """Keep probabilities in proportion to a clip's motion, the target rate on average, `(batch, frames)`."""
        return (motion_density(sample, frame_mask) / self.motion_cost.price).clamp(max=1)

    def _at_least_one(self, drawn: torch.Tensor, keep_probs: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """What the model does at inference: a window without a kept frame keeps its most probable one."""
        probs, kept = keep_probs.masked_fill(~frame_mask, -1), drawn.clone()
        for window in clip_windows(drawn.shape[1], self.model.config.clip_num_frames):
            frames = slice(window.start, window.stop)
            best = torch.nn.functional.one_hot(probs[:, frames].argmax(dim=1), window.stop - window.start).bool()
            kept[:, frames] |= best & ~kept[:, frames].any(dim=1, keepdim=True)
        return kept

    def _decode(
        self, latents: torch.Tensor, target: torch.Tensor, kept: torch.Tensor, frame_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decodes latents under each mask; returns the result of the first and all pixel losses, `(masks, batch)`."""
        trained = self.config.loss.trained_masks
        decoded, pixel = self._decode_masks(latents, target, kept[:trained], frame_mask)
        with torch.no_grad():
            untrained = [
                self._decode_masks(latents, target, kept[i : i + trained], frame_mask)[1]
                for i in range(trained, len(kept), trained)
            ]
        return decoded, torch.cat([pixel, *untrained])

    def _decode_masks(
        self, latents: torch.Tensor, target: torch.Tensor, kept: torch.Tensor, frame_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        copies, batch_size = len(kept), len(latents)
        latents, target = (values.repeat(copies, 1, 1, 1, 1) for values in (latents, target))
        frame_mask = frame_mask.repeat(copies, 1)
        decoded = self.model.decode(latents, kept.flatten(0, 1), frame_mask, return_dict=False)[0]
        pixel = self._pixel_loss(decoded, target, frame_mask)
        return decoded[:batch_size], pixel.unflatten(0, (copies, -1))

    def _decode_all(self, latents: torch.Tensor, num_frames: int, height: int, width: int) -> torch.Tensor:
        """Decodes with every frame kept; the size follows from the latents."""
        return self.model.decode(latents, return_dict=False)[0]

    def _pixel_loss(self, frames: torch.Tensor, sample: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        weights = self.config.loss
        loss = mse_loss(frames, sample, frame_mask) + weights.mae_weight * mae_loss(frames, sample, frame_mask)
        if self.perceptual is not None:
            loss = loss + weights.perceptual_weight * self.perceptual(frames, sample, frame_mask)
        return loss

    def _scale(self, advantages: torch.Tensor, is_random: torch.Tensor) -> torch.Tensor:
        """Spread of the advantages within clips, over all processes."""
        return self.advantage_scale.update(gather(advantages.T.contiguous())[~gather(is_random)])

    # Validation

    def validate(self, contact_sheet: Path) -> dict[str, float]:
        sample = self.held_out.first(self.config.run.validation_clips).to(self.model.device)
        posterior, probs, _ = self.model.encode(sample, return_dict=False)
        latents = posterior.mode()
        masks = {
            "full": torch.ones_like(probs, dtype=torch.bool),
            "systematic": self.model.select_frames(probs),
            "uniform": self.model.select_frames(probs, mode="uniform"),
            "uniform_rate": self.model.select_frames(probs, mode="uniform", rate=max(float(probs.mean()), 1e-3)),
        }
        fewest = len(clip_windows(probs.shape[1], self.model.config.clip_num_frames))
        for count in sorted({max(probs.shape[1] // share, fewest) for share in (2, 4, 8)}):
            masks[f"even_{count}"] = self.model.select_frames(probs, mode="uniform", num_frames=count)
        decoded = {name: self.model.decode(latents, mask).sample for name, mask in masks.items()}
        metrics = {f"psnr_{name}": clip_psnr(sample, frames) for name, frames in decoded.items()}
        if self.linear_codec is not None:
            codec = self.linear_codec()
            coded = codec.encode(sample.cpu())
            for name, mask in masks.items():
                metrics[f"psnr_linear_{name}"] = clip_psnr(sample.cpu(), codec.decode(coded, mask.cpu()))
        motions = () if self.held_out.folder else self.held_out.procedural.motions
        for index, motion in enumerate(motions[: len(sample)]):
            metrics[f"keep_{motion}"] = float(probs[index :: len(motions)].mean())
        rows = [sample, decoded["full"], decoded["systematic"]]
        save_image(clip_sheet(rows, [None, None, masks["systematic"]]), contact_sheet, overwrite=True)
        return metrics | {"keep_rate": float(masks["systematic"].float().mean())}


def spaced_masks(rate: torch.Tensor, offset: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    r"""Evenly spaced frames, `length ** rate` of a clip's real frames: few as often as many.

    Args:
        rate: Numbers in [0, 1), `(batch, masks, 1)`.
        offset: Where in the first step the first frame is, in [0, 1), `(batch, masks, 1)`.
        frame_mask: Bool `(batch, frames)`.

    Returns:
        Bool `(batch, masks, frames)`.
    """
    lengths = frame_mask.sum(dim=1)[:, None, None]
    time = torch.arange(frame_mask.shape[1] + 1, device=frame_mask.device)
    steps = (time * lengths**rate / lengths + offset).floor()  # (B, M, T + 1)
    return steps.diff(dim=2) > 0


def main(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Trains by a configuration file and returns the folder of the model."""
    config = load_config(TrainFrameSelectVAEConfig, config_path(path), overrides)
    model = starting_model(FrameSelectVAE, config.run, config.model)
    # One process of a machine probes the files, the others read what it found.
    with make_accelerator(config.run).local_main_process_first():
        dataset, objective = ClipDataset(config.data, config.run.seed), FrameSelectObjective(model, config)
    if starts_as_linear_codec(config.run):
        start_as_linear_codec(model, whole_clips(dataset, config.run.init_clips))
    if config.run.baseline_clips:
        file, patch_size = Path(config.run.output_dir) / COMPONENTS_FILE, model.config.patch_size

        @cache
        def linear_codec() -> LinearCodec:
            clips = partial(whole_clips, dataset, config.run.baseline_clips)
            components = remembered(file, lambda: dataset_components(clips(), patch_size))
            return LinearCodec(components, patch_size, model.config.latent_channels)

        objective.linear_codec = linear_codec
    return Trainer(objective, dataset, config).train()


if __name__ == "__main__":
    run_from_command_line(main, __doc__)
