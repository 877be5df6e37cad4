"""Whole trainings of tiny models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from diffusers_vidvae import (
    AutoencoderKL3D,
    FlowMatchGapScheduler,
    FrameSelectVAE,
    GapDiT,
    GapDiTPipeline,
    VideoCompressionPipeline,
)
from diffusers_vidvae.training import export_demo, train_autoencoder_kl_3d, train_frame_select_vae, train_gap_dit
from diffusers_vidvae.training.checkpoint import CheckpointError, checkpoint_folders, write_checkpoint
from diffusers_vidvae.training.pretrained import load_pretrained

from .conftest import TINY_DIT, TINY_KL, TINY_VAE, logged_losses


ROOT = Path(__file__).resolve().parents[2]
# What `accelerate launch --use_fsdp --fsdp_version 2` sets.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "diffusion_pytorch_model.safetensors")


def distributed(
    config: Path, processes: int, strategy: str = "ddp", script: ModuleType = train_frame_select_vae
) -> None:
    """Trains on several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["-m", script.__name__, "--config", str(config)]
    environment = ENVIRONMENT | (FSDP if strategy == "fsdp" else {})
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_training_a_frame_select_vae_leaves_a_model_a_log_and_a_contact_sheet(write_config, tmp_path):
    folder = train_frame_select_vae.main(write_config(TINY_VAE, loss={"random_phase": 0.5}))
    model = FrameSelectVAE.from_pretrained(folder)
    assert model.decode(model.encode(torch.zeros(1, 3, 4, 16, 16)).latent_dist.mode()).sample.shape[2] == 4
    assert sorted(logged_losses(tmp_path / "run")) == [1, 2, 3, 4]
    assert (tmp_path / "run" / "samples" / "step-00000004.png").is_file()


def test_training_an_autoencoder_kl_3d_with_a_discriminator(write_config, tmp_path):
    config = write_config(TINY_KL, loss={"adversarial_weight": 0.1, "discriminator_channels": 4})
    folder = train_autoencoder_kl_3d.main(config)
    assert AutoencoderKL3D.from_pretrained(folder).config.latent_channels == 2
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-2])
    assert {"adversarial", "discriminator"} <= set(last)


@pytest.mark.parametrize("gap_mode", ["flow", "regression"])
def test_training_a_gap_dit_leaves_a_pipeline(write_config, tmp_path, gap_mode):
    vae = FrameSelectVAE(**TINY_VAE)
    vae.save_pretrained(tmp_path / "vae")
    latents = {"vae": str(tmp_path / "vae"), "folder": str(tmp_path / "latents"), "num_clips": 10, "shard_size": 4}
    model = {**TINY_DIT, "gap_mode": gap_mode}
    folder = train_gap_dit.main(write_config(model, latents={**latents, "max_kept": 4}))
    pipeline = GapDiTPipeline.from_pretrained(folder)
    assert len(pipeline.vae.config.latents_std) == 4
    output = pipeline(num_latent_frames=2, num_frames=4, num_inference_steps=2, output_type="np")
    assert output.frames.shape == (1, 4, 16, 16, 3)


def test_resuming_continues_bit_for_bit(write_config, tmp_path):
    whole = write_config(TINY_VAE, "whole", loss={"random_phase": 0.25})
    train_frame_select_vae.main(whole)
    # The second half again, from the checkpoint at step 2.
    parts = write_config(TINY_VAE, "parts", loss={"random_phase": 0.25})
    train_frame_select_vae.main(parts)
    for folder in checkpoint_folders(tmp_path / "parts")[1:]:
        os.rename(folder, tmp_path / folder.name)
    train_frame_select_vae.main(parts)

    assert logged_losses(tmp_path / "parts") == logged_losses(tmp_path / "whole")
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "parts").items())


def test_gradient_accumulation_gives_the_gradient_of_the_large_batch(write_config, tmp_path):
    # Random masks only: the policy gradient scales its advantages batch by batch.
    section = {"loss": {"random_phase": 1.0, "trained_masks": 1}}
    train_frame_select_vae.main(write_config(TINY_VAE, "large", run={"batch_size": 4}, **section))
    split = {"batch_size": 2, "gradient_accumulation_steps": 2}
    train_frame_select_vae.main(write_config(TINY_VAE, "split", run=split, **section))
    large, small = logged_losses(tmp_path / "large"), logged_losses(tmp_path / "split")
    assert [large[step] for step in large] == pytest.approx([small[step] for step in large], rel=1e-5)


def test_gradient_checkpointing_changes_no_loss(write_config, tmp_path):
    for name, enabled in (("plain", False), ("checkpointed", True)):
        train_frame_select_vae.main(write_config(TINY_VAE, name, run={"gradient_checkpointing": enabled}))
    plain, checkpointed = logged_losses(tmp_path / "plain"), logged_losses(tmp_path / "checkpointed")
    assert list(plain.values()) == pytest.approx(list(checkpointed.values()), rel=1e-5)


def test_resuming_with_another_config_is_refused_with_the_fields(write_config):
    train_frame_select_vae.main(write_config(TINY_VAE))
    other = write_config(TINY_VAE, run={"learning_rate": 2e-3}, loss={"kl_weight": 0.5})
    with pytest.raises(CheckpointError, match=r"loss.kl_weight: 0.0001 -> 0.5; run.learning_rate: 0.001 -> 0.002"):
        train_frame_select_vae.main(other)


def test_a_folder_with_checkpoints_is_not_overwritten(write_config):
    train_frame_select_vae.main(write_config(TINY_VAE))
    with pytest.raises(CheckpointError, match="holds checkpoint-00000004, but `run.resume` is false"):
        train_frame_select_vae.main(write_config(TINY_VAE, run={"resume": False}))


def test_a_pipeline_is_a_place_to_find_pretrained_models_in(tmp_path):
    vae = FrameSelectVAE(**TINY_VAE)
    VideoCompressionPipeline(vae).save_pretrained(tmp_path)
    loaded = load_pretrained(FrameSelectVAE, str(tmp_path))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in vae.state_dict().items())
    assert load_pretrained(AutoencoderKL3D, "demo").dtype == torch.float32
    with pytest.raises(ValueError, match="holds no GapDiT, neither alone nor as part of a pipeline"):
        load_pretrained(GapDiT, str(tmp_path))


def test_fine_tuning_starts_from_the_given_weights(write_config, tmp_path):
    model = FrameSelectVAE(**TINY_VAE)
    model.save_pretrained(tmp_path / "start")
    run = {"pretrained_model": str(tmp_path / "start"), "max_steps": 1, "learning_rate": 0.0, "ema_decay": 0.0}
    train_frame_select_vae.main(write_config({}, run=run))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights(tmp_path / "run").items())


def test_only_the_named_parts_are_trained(write_config, tmp_path):
    FrameSelectVAE(**TINY_VAE).save_pretrained(tmp_path / "start")
    run = {"pretrained_model": str(tmp_path / "start"), "trained_parts": ["decoder", "encoder.keep_head"]}
    train_frame_select_vae.main(write_config({}, run=run, loss={"random_phase": 0.0}))
    before = FrameSelectVAE.from_pretrained(tmp_path / "start").state_dict()
    changed = {name for name, value in weights(tmp_path / "run").items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "encoder"}
    assert all(name.startswith(("decoder.", "encoder.keep_head.")) for name in changed)


def test_parts_that_the_model_does_not_have_are_refused(write_config):
    with pytest.raises(ValueError, match=r"\(encoder, decoder, fill_token or what is in them\), got 'discriminator'"):
        train_frame_select_vae.main(write_config(TINY_VAE, run={"trained_parts": ["discriminator"]}))


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(write_config):
    with pytest.raises(ValueError, match="multiples of the patch size 8, got 20x20"):
        train_frame_select_vae.main(write_config(TINY_VAE, data={"sample_size": 20}))


def test_old_checkpoints_are_pruned(write_config, tmp_path):
    run = {"checkpoint_every": 1, "keep_checkpoints": 2}
    train_frame_select_vae.main(write_config(TINY_VAE, run=run))
    assert [folder.name for folder in checkpoint_folders(tmp_path / "run")] == [
        "checkpoint-00000003",
        "checkpoint-00000004",
    ]


def test_a_checkpoint_that_cannot_be_finished_leaves_the_last_one(tmp_path):
    def write(step, write_files):
        write_checkpoint(tmp_path, step, write_files, {"step": step}, 2, True, lambda: None)

    def fill_the_disk(folder: Path):
        (folder / "half").write_text("half a checkpoint")
        raise OSError(28, "No space left on device")

    write(1, lambda folder: (folder / "whole").write_text("a checkpoint"))
    with pytest.raises(
        CheckpointError, match="No space left on device.*last complete checkpoint is checkpoint-00000001"
    ):
        write(2, fill_the_disk)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001"]
    assert (tmp_path / "checkpoint-00000001" / "whole").is_file()


@pytest.mark.slow
def test_a_full_disk_ends_in_one_error_and_keeps_the_last_checkpoint(write_config, tmp_path):
    config = write_config(TINY_VAE)
    train_frame_select_vae.main(config)
    os.rename(tmp_path / "run" / "checkpoint-00000004", tmp_path / "aside")
    # A limit on the size of files fails as a full disk does: in the middle of writing.
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000));"
        "from diffusers_vidvae.training.train_frame_select_vae import main;"
        "from diffusers_vidvae.training.launch import run_from_command_line;"
        "run_from_command_line(main, None, sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "--config", str(config)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "the last complete checkpoint is checkpoint-00000002" in result.stderr.splitlines()[-1]
    assert [folder.name for folder in checkpoint_folders(tmp_path / "run")] == ["checkpoint-00000002"]


@pytest.mark.slow
def test_a_killed_training_continues_from_its_last_checkpoint(write_config, tmp_path):
    run = {"max_steps": 200, "checkpoint_every": 5}
    config = write_config(TINY_VAE, run=run)
    command = [sys.executable, "-m", "diffusers_vidvae.training.train_frame_select_vae", "--config", str(config)]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoint_folders(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = int(checkpoint_folders(tmp_path / "run")[-1].name.split("-")[1])
    before = logged_losses(tmp_path / "run")
    assert reached >= max(before) - 5

    # The same number of steps as the checkpoint has plus five, so that the schedule is that of 200.
    subprocess.run([*command, "run.checkpoint_every=200"], env=ENVIRONMENT, cwd=ROOT, check=True, capture_output=True)
    after = logged_losses(tmp_path / "run")
    assert sorted(after) == list(range(1, 201))
    assert all(after[step] == loss for step, loss in before.items() if step <= reached)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_have_the_loss_of_one(write_config, tmp_path, strategy):
    train_frame_select_vae.main(write_config(TINY_VAE, "one", run={"batch_size": 4}, loss={"random_phase": 0.5}))
    config = write_config(TINY_VAE, "two", run={"batch_size": 2}, loss={"random_phase": 0.5})
    distributed(config, 2, strategy)
    one, two = logged_losses(tmp_path / "one"), logged_losses(tmp_path / "two")
    assert list(one.values()) == pytest.approx(list(two.values()), rel=1e-4)
    expected = weights(tmp_path / "one")
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_processes_train_on_the_same_number_of_frames_at_a_time(write_config, tmp_path):
    FrameSelectVAE(**TINY_VAE).save_pretrained(tmp_path / "vae")
    latents = {"vae": str(tmp_path / "vae"), "folder": str(tmp_path / "latents"), "num_clips": 16}
    latents |= {"max_kept": 4, "num_kept": [1, 2, 3, 4]}
    train_gap_dit.main(write_config(TINY_DIT, "one", run={"batch_size": 4, "max_steps": 6}, latents=latents))
    two = write_config(TINY_DIT, "two", run={"batch_size": 2, "max_steps": 6}, latents=latents)
    distributed(two, 2, script=train_gap_dit)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    lines = [[line for line in map(json.loads, log) if line["split"] == "train"] for log in logs]
    assert [line["kept"] for line in lines[0]] == [line["kept"] for line in lines[1]]
    assert all(line["kept"] in (1, 2, 3, 4) for line in lines[0]) and len({line["kept"] for line in lines[0]}) > 1
    assert [line["loss"] for line in lines[0]] == pytest.approx([line["loss"] for line in lines[1]], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_another_number_of_processes_resumes_at_the_sample_where_it_was(write_config, tmp_path, strategy):
    loss = {"random_phase": 1.0, "trained_masks": 1}
    train_frame_select_vae.main(write_config(TINY_VAE, "whole", run={"batch_size": 4}, loss=loss))
    distributed(write_config(TINY_VAE, "parts", run={"batch_size": 2}, loss=loss), 2, strategy)
    (tmp_path / "parts" / "checkpoint-00000004").rename(tmp_path / "aside")
    split = {"batch_size": 2, "gradient_accumulation_steps": 2}
    distributed(write_config(TINY_VAE, "parts", run=split, loss=loss), 1, strategy)
    whole, parts = logged_losses(tmp_path / "whole"), logged_losses(tmp_path / "parts")
    assert list(parts) == [1, 2, 3, 4]
    assert list(parts.values()) == pytest.approx(list(whole.values()), rel=1e-4)
    expected = weights(tmp_path / "whole")
    for name, value in weights(tmp_path / "parts").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


def test_resuming_with_steps_of_another_number_of_clips_is_refused(write_config):
    train_frame_select_vae.main(write_config(TINY_VAE, run={"batch_size": 2}))
    with pytest.raises(CheckpointError, match="an optimiser step had 2 clips over all processes, not 3; choose `run."):
        train_frame_select_vae.main(write_config(TINY_VAE, run={"batch_size": 3}))


@pytest.mark.slow
def test_two_processes_that_accumulate_compiled_in_bf16_have_the_loss_of_one(write_config, tmp_path):
    same = {"batch_size": 1, "mixed_precision": "bf16", "compile_blocks": True, "max_steps": 2}
    loss = {"random_phase": 1.0, "trained_masks": 1}
    one = write_config(TINY_VAE, "one", run=same | {"gradient_accumulation_steps": 4}, loss=loss)
    train_frame_select_vae.main(one)
    distributed(write_config(TINY_VAE, "two", run=same | {"gradient_accumulation_steps": 2}, loss=loss), 2)
    one_losses, two_losses = logged_losses(tmp_path / "one"), logged_losses(tmp_path / "two")
    assert list(two_losses.values()) == pytest.approx(list(one_losses.values()), rel=1e-5)


def test_the_demo_folder_holds_a_codec_an_autoencoder_and_a_generator(tmp_path, monkeypatch):
    torch.manual_seed(0)
    vae = FrameSelectVAE(**TINY_VAE)
    transformer = GapDiT(in_channels=vae.config.latent_channels, **TINY_DIT)
    GapDiTPipeline(transformer, vae, FlowMatchGapScheduler()).save_pretrained(tmp_path / "pipeline")
    AutoencoderKL3D(**TINY_KL).save_pretrained(tmp_path / "kl")
    vae.save_pretrained(tmp_path / "vae")
    folders = tmp_path / "vae", tmp_path / "kl", tmp_path / "demo", tmp_path / "pipeline"

    export_demo.export_demo(*folders)
    codec = VideoCompressionPipeline.from_pretrained(tmp_path / "demo").vae
    generator = GapDiTPipeline.from_pretrained(tmp_path / "demo").transformer
    AutoencoderKL3D.from_pretrained(tmp_path / "demo", subfolder="autoencoder_kl_3d")
    export_demo.export_demo(*folders[:3])  # without a generator the one that is there stays
    GapDiTPipeline.from_pretrained(tmp_path / "demo")
    for model, exported in ((vae, codec), (transformer, generator)):
        weights = exported.state_dict()
        assert all(torch.equal(value.half(), weights[name].half()) for name, value in model.state_dict().items())
    monkeypatch.setattr(export_demo, "MAX_AUTOENCODER", 10)
    with pytest.raises(ValueError, match="autoencoder_kl_3d: the weights take .* more than the 10"):
        export_demo.export_demo(*folders)
    FrameSelectVAE(**TINY_VAE).save_pretrained(tmp_path / "other")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="pipeline: was trained on latents of another autoencoder"):
        export_demo.export_demo(tmp_path / "other", *folders[1:])
