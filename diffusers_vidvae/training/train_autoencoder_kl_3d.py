r"""Trains an AutoencoderKL3D.

    accelerate launch -m diffusers_vidvae.training.train_autoencoder_kl_3d --config FILE [section.key=value ...]

Two minutes on a CPU, on procedural clips:

    accelerate launch --cpu -m diffusers_vidvae.training.train_autoencoder_kl_3d --config autoencoder_kl_3d_cpu.yaml

A name without a folder is looked up in `diffusers_vidvae/training/configs`. One's own videos and images:

    ... --config autoencoder_kl_3d.yaml 'data.folders=[my_videos]' data.procedural_share=0

The loss is the reconstruction error and the KL divergence, and by choice a perceptual and an adversarial term.
Autoencoder and discriminator take their steps together, from one backward pass: the discriminator's weights are
constants in the autoencoder's loss, and the reconstruction is one in the discriminator's. The step treats every
parameter alone, with a learning rate and a gradient norm of its own for each of the two, so neither feels the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import cast

import torch
from torch.func import functional_call

from diffusers_vidvae.media import clip_sheet, save_image
from diffusers_vidvae.metrics import clip_psnr
from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D

from .block_codec import (
    COMPONENTS_FILE,
    BlockCodec,
    block_components,
    block_layout,
    remembered,
    start_blocks_as_linear_codec,
)
from .config import TrainConfig, check_range, load_config
from .data import ClipDataset, HeldOutClips, repeat_last_frame, whole_clips
from .draws import draw_latents, torch_generators
from .latent_terms import LatentTerms, LatentTermsConfig
from .launch import config_path, run_from_command_line
from .losses import (
    PatchDiscriminator3D,
    PerceptualLoss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    kl_loss,
    mae_loss,
    mse_loss,
)
from .overlapping_blocks import overlap_blocks
from .pretrained import starting_model, starts_as_linear_codec
from .trainer import Batch, Objective, Trainer, make_accelerator


@dataclass
class LossConfig(LatentTermsConfig):
    """Weights of the loss, besides those of `LatentTermsConfig`.

    Args:
        mae_weight: Of the mean absolute error; the mean squared error has weight 1.
        perceptual_weight: Of VGG features; above 0 needs torchvision.
        image_weight: Of the mean squared error of every clip's first frame as an image, which runs as 2D convolutions.
        kl_weight: Of the KL divergence.
        adversarial_weight: Of the discriminator's verdict; 0 trains without a discriminator.
        adversarial_start: Share of the training after which the discriminator is listened to. It learns before.
        discriminator_channels: Width of the discriminator's first layer.
    """

    mae_weight: float = 0.05
    perceptual_weight: float = 0.0
    image_weight: float = 0.0
    kl_weight: float = 1e-5
    adversarial_weight: float = 0.0
    adversarial_start: float = 0.5
    discriminator_channels: int = 32

    def __post_init__(self) -> None:
        self.check_latent_terms()
        check_range("loss.adversarial_start", self.adversarial_start, 0, 1)


@dataclass
class TrainAutoencoderKL3DConfig(TrainConfig):
    """Sections of the configuration file; `model` holds arguments of `AutoencoderKL3D`."""

    loss: LossConfig = field(default_factory=LossConfig)


class AutoencoderKL3DObjective(Objective):
    """AutoencoderKL3D with its loss."""

    def __init__(self, model: AutoencoderKL3D, config: TrainAutoencoderKL3DConfig):
        super().__init__()
        self.model = model
        self.config = config
        self.held_out = HeldOutClips(config.data)
        self.linear_codec: Callable[[], BlockCodec] | None = None
        self.latent_terms = LatentTerms(config.loss, model.config.latent_channels, config.run.seed)
        self.perceptual = PerceptualLoss() if config.loss.perceptual_weight else None
        if config.loss.adversarial_weight:
            self.discriminator = PatchDiscriminator3D(model.config.in_channels, config.loss.discriminator_channels)

    def forward(self, batch: Batch, progress: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        weights, frame_mask = self.config.loss, batch["frame_mask"]
        sample = repeat_last_frame(batch["sample"], frame_mask)
        posterior = self.model.encode(sample).latent_dist
        generators = torch_generators(self.config.run.seed, batch["draw"], stream=2)
        latents = draw_latents(posterior.mean, posterior.std, generators)
        shown, target = self.latent_terms.decoder_pair(latents, sample, batch["draw"])
        decoded = self._decode(shown, *target.shape[2:])

        mse = mse_loss(decoded, target, frame_mask)
        # A latent frame is real if it holds a real frame.
        latent_mask = frame_mask[:, :: self.model.temporal_compression_ratio]
        kl = kl_loss(posterior.mean, posterior.logvar, latent_mask)
        loss = mse + weights.mae_weight * mae_loss(decoded, target, frame_mask) + weights.kl_weight * kl
        if self.perceptual is not None:
            loss = loss + weights.perceptual_weight * self.perceptual(decoded, target, frame_mask)
        if weights.image_weight:
            image = sample[:, :, :1]
            decoded_image = self._decode(self.model.encode(image).latent_dist.mode(), *image.shape[2:])
            loss = loss + weights.image_weight * mse_loss(decoded_image, image)
        asked, asked_metrics = self.latent_terms.losses(latents, sample, frame_mask, self._decode)
        loss = loss + asked
        total = loss.mean()
        metrics = {"mse": mse.mean(), "kl": kl.mean(), **asked_metrics}
        if self.discriminator is not None:
            adversarial, judging = _adversarial_losses(cast(PatchDiscriminator3D, self.discriminator), decoded, target)
            heard = weights.adversarial_weight if progress >= weights.adversarial_start else 0.0
            total = total + heard * adversarial + judging
            metrics |= {"adversarial": adversarial, "discriminator": judging}
        return total, {name: value.detach() for name, value in metrics.items()}

    def _decode(self, latents: torch.Tensor, num_frames: int, height: int, width: int) -> torch.Tensor:
        return self.model.decode(latents, num_frames, height, width).sample

    def validate(self, contact_sheet: Path) -> dict[str, float]:
        sample = self.held_out.first(self.config.run.validation_clips).to(self.model.device)
        posterior = self.model.encode(sample).latent_dist
        decoded = self.model.decode(posterior.mode(), *sample.shape[2:]).sample
        save_image(clip_sheet([sample, decoded]), contact_sheet, overwrite=True)
        image = self.model.decode(self.model.encode(sample[:, :, :1]).latent_dist.mode(), 1, *sample.shape[3:]).sample
        metrics = {"psnr": clip_psnr(sample, decoded), "psnr_images": clip_psnr(sample[:, :, :1], image)}
        if self.linear_codec is not None:
            for name, clips in (("psnr_linear", sample.cpu()), ("psnr_linear_images", sample[:, :, :1].cpu())):
                metrics[name] = clip_psnr(clips, self.linear_codec().reconstruct(clips))
        return metrics


def _adversarial_losses(
    discriminator: PatchDiscriminator3D, decoded: torch.Tensor, sample: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of the autoencoder, without gradient for the discriminator, and the other way round."""
    constants = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    adversarial = hinge_generator_loss(functional_call(discriminator, constants, (decoded,)))
    judging = hinge_discriminator_loss(discriminator(sample), discriminator(decoded.detach()))
    return adversarial, judging


@torch.no_grad()
def initialize_weights(model: AutoencoderKL3D, logvar: float = -5.0) -> None:
    """Starting weights under which a clip's signal survives the way through all levels.

    Convolutions keep the variance of their input and have no bias, which would drown it (PyTorch's default shrinks the
    signal with every level); residual branches start small; and the posterior starts with a standard deviation near
    0.1, so that a fresh decoder sees the latents through the noise.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv3d):
            gain = 0.1 if name.endswith("conv2") else 1.0
            torch.nn.init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    conv_out = model.encoder.conv_out.conv
    conv_out.weight[model.config.latent_channels :] = 0
    conv_out.get_parameter("bias")[model.config.latent_channels :] = logvar


def main(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Trains by a configuration file and returns the folder of the model."""
    config = load_config(TrainAutoencoderKL3DConfig, config_path(path), overrides)
    model = starting_model(AutoencoderKL3D, config.run, config.model)
    if not config.run.pretrained_model:
        initialize_weights(model)
    # One process of a machine probes the files, the others read what it found.
    with make_accelerator(config.run).local_main_process_first():
        dataset, objective = ClipDataset(config.data, config.run.seed), AutoencoderKL3DObjective(model, config)
    layout = block_layout(model)
    if starts_as_linear_codec(config.run):
        clips = whole_clips(dataset, config.run.init_clips)
        components = block_components(clips, *layout)
        start_blocks_as_linear_codec(model, components)
        if model.config.linear_path_context:
            overlap_blocks(model, components, clips)
    if config.run.baseline_clips:
        file = Path(config.run.output_dir) / COMPONENTS_FILE

        @cache
        def linear_codec() -> BlockCodec:
            clips = partial(whole_clips, dataset, config.run.baseline_clips)
            components = remembered(file, lambda: block_components(clips(), *layout))
            return BlockCodec(components, layout[0], model.config.latent_channels, layout[1])

        objective.linear_codec = linear_codec
    return Trainer(objective, dataset, config).train()


if __name__ == "__main__":
    run_from_command_line(main, __doc__)
