"""What the training loop promises: order, logs, groups of parameters, averages, devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState

from diffusers_vidvae import AutoencoderKL3D, FrameSelectVAE, GapDiT
from diffusers_vidvae.models.frame_select_coders import PooledKeepHead
from diffusers_vidvae.training import train_autoencoder_kl_3d, train_frame_select_vae
from diffusers_vidvae.training.checkpoint import checkpoint_folders
from diffusers_vidvae.training.config import load_config
from diffusers_vidvae.training.data import ClipDataset
from diffusers_vidvae.training.metrics_log import MetricsLog
from diffusers_vidvae.training.optimization import scale_input_gradient
from diffusers_vidvae.training.train_autoencoder_kl_3d import AutoencoderKL3DObjective, TrainAutoencoderKL3DConfig
from diffusers_vidvae.training.train_frame_select_vae import FrameSelectObjective
from diffusers_vidvae.training.train_gap_dit import GapDiTObjective, TrainGapDiTConfig
from diffusers_vidvae.training.trainer import Trainer

from .conftest import TINY_DIT, TINY_KL, TINY_VAE, logged_losses


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def adversarial_trainer(write_config):
    """A trainer of an AutoencoderKL3D with a discriminator that is listened to from the start."""

    def build(**run: object) -> Trainer:
        loss = {"adversarial_weight": 1.0, "adversarial_start": 0.0, "discriminator_channels": 4}
        config = load_config(TrainAutoencoderKL3DConfig, write_config(TINY_KL, run=run, loss=loss))
        torch.manual_seed(0)
        objective = AutoencoderKL3DObjective(AutoencoderKL3D(**TINY_KL), config)
        return Trainer(objective, ClipDataset(config.data), config)

    return build


def test_frozen_models_are_moved_to_the_device_of_the_training(write_config, tmp_path):
    config = load_config(TrainGapDiTConfig, write_config(TINY_DIT))
    vae = FrameSelectVAE(**TINY_VAE)
    objective = GapDiTObjective(GapDiT(in_channels=4, **TINY_DIT), vae, config)
    PartialState(cpu=True).device = torch.device("meta")  # any device but the default one
    trainer = Trainer(objective, [], config)
    assert {weight.device.type for weight in objective.model.parameters()} == {"meta"}
    assert {weight.device.type for weight in vae.parameters()} == {"meta"}
    assert not any(weight is other for weight in vae.parameters() for other in trainer.wrapped.parameters())


def test_a_validation_that_fails_loses_no_step(write_config, tmp_path, monkeypatch):
    def validate(self, contact_sheet):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(FrameSelectObjective, "validate", validate)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_frame_select_vae.main(write_config(TINY_VAE, run={"validate_every": 2}))
    assert [folder.name for folder in checkpoint_folders(tmp_path / "run")] == ["checkpoint-00000002"]

    # The validation that was missed is made up for.
    monkeypatch.undo()
    train_frame_select_vae.main(write_config(TINY_VAE, run={"validate_every": 2}))
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines if line["split"] == "validation"] == [2, 4]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]


def test_the_last_step_is_saved_and_validated_once(write_config, tmp_path, monkeypatch):
    saved = []
    save = Trainer._write_checkpoint_files
    monkeypatch.setattr(Trainer, "_write_checkpoint_files", lambda self, folder: saved.append(save(self, folder)))
    config = write_config(TINY_VAE, run={"validate_every": 2})
    train_frame_select_vae.main(config)
    assert len(saved) == 2
    train_frame_select_vae.main(config)  # there is nothing left to do
    assert len(saved) == 2
    assert [line["step"] for line in lines_of(tmp_path / "run") if line["split"] == "validation"] == [2, 4]


@pytest.mark.parametrize("half", ['{"step": 3, "minu', '{"step": 3, "loss": 1.5}'], ids=["cut", "no_newline"])
def test_a_half_written_line_of_the_log_does_not_hinder_resuming(write_config, tmp_path, half):
    config = write_config(TINY_VAE)
    train_frame_select_vae.main(config)
    losses = logged_losses(tmp_path / "run")
    (tmp_path / "run" / "checkpoint-00000004").rename(tmp_path / "aside")
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]) + half)
    train_frame_select_vae.main(config)
    assert logged_losses(tmp_path / "run") == losses


def test_the_first_log_after_a_resume_is_the_mean_it_would_have_been(write_config, tmp_path):
    # A log of three steps, of which the checkpoint parts the first two from the third.
    config = write_config(TINY_VAE, run={"max_steps": 3, "log_every": 3})
    train_frame_select_vae.main(config)
    whole = logged_losses(tmp_path / "run")
    (tmp_path / "run" / "checkpoint-00000003").rename(tmp_path / "aside")
    train_frame_select_vae.main(config)
    assert logged_losses(tmp_path / "run") == whole and list(whole) == [3]


def test_values_that_are_not_finite_stay_out_of_the_log(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, 0.0, "train", {"loss": 0.5, "gradient_norm": float("inf"), "psnr": float("nan")})
    assert log.read() == [{"step": 1, "minutes": 0.0, "split": "train", "loss": 0.5}]


def test_a_gradient_that_is_not_finite_ends_the_training_before_it_reaches_the_weights(adversarial_trainer):
    trainer = adversarial_trainer()
    before = [weight.clone() for weight in trainer.wrapped.parameters()]
    for weight in trainer.wrapped.parameters():
        weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(ValueError, match="The gradient norm is (nan|inf) at step 0."):
        trainer.train()
    assert all(torch.equal(weight, old) for weight, old in zip(trainer.wrapped.parameters(), before, strict=True))


def test_the_average_stands_still_when_the_loss_scaler_skips_a_step(adversarial_trainer, monkeypatch):
    trainer = adversarial_trainer()
    # What accelerate sets up for fp16, on the CPU.
    scaler = torch.amp.GradScaler("cpu")
    monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
    monkeypatch.setattr(trainer.accelerator, "native_amp", True)
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    groups = [group | {"fused": None} for group in trainer.optimizer.param_groups]
    optimizer = type(trainer.optimizer)(torch.optim.AdamW(groups), scaler=scaler)
    trainer.optimizer, trainer.accelerator._optimizers = optimizer, [optimizer]

    overflow = trainer.objective.model.encoder.conv_out.conv.weight.register_hook(lambda gradient: gradient / 0)
    metrics = trainer._optimize(trainer._batches())
    assert metrics["skipped"] == 1 and trainer.ema.optimization_step == 0
    overflow.remove()
    metrics = trainer._optimize(trainer._batches())
    assert "skipped" not in metrics and trainer.ema.optimization_step == 1


def test_the_discriminator_has_a_gradient_norm_and_a_rate_of_its_own_and_no_average(adversarial_trainer):
    norms = {}
    for factor in (1.0, 1000.0):
        trainer = adversarial_trainer(max_grad_norm=1e-3, discriminator_rate=0.0)
        for weight in trainer.objective.discriminator.parameters():
            weight.register_hook(lambda gradient, factor=factor: factor * gradient)
        before = [weight.clone() for weight in trainer.objective.discriminator.parameters()]
        metrics = trainer._optimize(trainer._batches())
        norms[factor] = metrics["gradient_norm"], metrics["discriminator_gradient_norm"]
        after = trainer.objective.discriminator.parameters()
        assert all(torch.equal(weight, old) for weight, old in zip(after, before, strict=True))
        assert len(trainer.ema.shadow_params) == len(list(trainer.objective.model.parameters()))
        gradients = trainer.objective.model.encoder.conv_out.conv.weight
        norms[factor] += (float(gradients.detach().norm()),)
    assert norms[1000.0][1] == pytest.approx(1000 * norms[1.0][1], rel=1e-4)
    assert norms[1000.0][0] == pytest.approx(norms[1.0][0]) and norms[1000.0][2] == norms[1.0][2]


def test_parts_have_their_own_learning_rates_which_may_rise(write_config):
    run = {"part_rates": {"encoder": 0.5, "encoder.patch_embed": 0.1}, "part_warmup": 0.5, "final_learning_rate": 1.0}
    config = load_config(train_frame_select_vae.TrainFrameSelectVAEConfig, write_config(TINY_VAE, run=run))
    trainer = Trainer(FrameSelectObjective(FrameSelectVAE(**TINY_VAE), config), ClipDataset(config.data), config)
    batches = trainer._batches()
    rates: dict[str, list[float]] = {"encoder.patch_embed": [], "encoder.to_mean": [], "fill_token": []}
    for _ in range(4):
        trainer._optimize(batches)
        for name, found in rates.items():
            weight = dict(trainer.objective.model.named_parameters()).get(name)
            weight = next(trainer.objective.model.get_submodule(name).parameters()) if weight is None else weight
            (group,) = [g for g in trainer.optimizer.param_groups if any(p is weight for p in g["params"])]
            found.append(group["lr"])
        trainer.step += 1
    assert rates["fill_token"] == pytest.approx([1e-3] * 4)
    assert rates["encoder.to_mean"] == pytest.approx([0, 2.5e-4, 5e-4, 5e-4])
    assert rates["encoder.patch_embed"] == pytest.approx([0, 5e-5, 1e-4, 1e-4])


def test_a_part_without_parameters_is_refused(write_config):
    with pytest.raises(ValueError, match="`run.part_rates` names 'bottleneck', in which there is no parameter"):
        train_frame_select_vae.main(write_config(TINY_VAE, run={"part_rates": {"bottleneck": 0.1}}))


def test_the_gradient_into_the_trunk_is_scaled_and_that_of_the_head_is_not():
    gradients = []
    for factor in (1.0, 0.1):
        torch.manual_seed(0)
        head, tokens = PooledKeepHead(8), torch.randn(1, 2, 3, 8, requires_grad=True)
        scale_input_gradient(head, factor)
        logits = head(tokens, tokens)
        logits.sum().backward()
        gradients.append((logits.detach(), tokens.grad, head.linear_1.weight.grad))
    (logits, trunk, weight), (same_logits, scaled, same_weight) = gradients
    assert torch.equal(logits, same_logits) and torch.equal(weight, same_weight)
    torch.testing.assert_close(scaled, 0.1 * trunk)


def test_a_training_with_a_discriminator_continues_bit_for_bit(write_config, tmp_path):
    config = write_config(TINY_KL, loss={"adversarial_weight": 0.1, "discriminator_channels": 4})
    train_autoencoder_kl_3d.main(config)
    losses = logged_losses(tmp_path / "run")
    (tmp_path / "run" / "checkpoint-00000004").rename(tmp_path / "aside")
    train_autoencoder_kl_3d.main(config)
    assert logged_losses(tmp_path / "run") == losses
