from __future__ import annotations

import pytest

from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE
from diffusers_vidvae.training import train_autoencoder_kl_3d, train_frame_select_vae, train_gap_dit
from diffusers_vidvae.training.config import check_model_arguments, load_config
from diffusers_vidvae.training.launch import CONFIGS, config_path


def load(tmp_path, text: str, *overrides: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(train_frame_select_vae.TrainFrameSelectVAEConfig, path, overrides)


CONFIG_CLASSES = {
    "frame_select_vae": train_frame_select_vae.TrainFrameSelectVAEConfig,
    "autoencoder_kl_3d": train_autoencoder_kl_3d.TrainAutoencoderKL3DConfig,
    "gap_dit": train_gap_dit.TrainGapDiTConfig,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_config_is_valid(path):
    (config_class,) = [cls for name, cls in CONFIG_CLASSES.items() if name in path.stem]
    needs_folders = path.stem in CONFIG_CLASSES or path.stem.endswith("finetune")
    config = load_config(config_class, path, ["data.folders=[videos]"] if needs_folders else [])
    assert config.run.max_minutes or config.run.max_steps is not None


def test_a_bare_name_is_looked_up_in_the_package():
    assert config_path("frame_select_vae_cpu.yaml").is_file()


def test_overrides_replace_values_of_the_file(tmp_path):
    config = load(tmp_path, "run: {max_steps: 3}", "run.max_steps=5", "run.learning_rate=1e-4", "data.folders=[a, b]")
    assert (config.run.max_steps, config.run.learning_rate, config.data.folders) == (5, 1e-4, ["a", "b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {max_step: 3}", "unknown key `run.max_step`; the keys here are .*max_steps"),
        ("runs: {}", "unknown key `runs`; the keys here are data, loss, model, run"),
        ("run: {max_steps: many}", "`run.max_steps` must be int or null, got 'many'"),
        ("run: {max_steps: 3, max_minutes: 3}", "either `run.max_steps` or `run.max_minutes`, got 3 steps and 3"),
        ("run: {max_steps: 3, mixed_precision: fp8}", "must be fp32, bf16 or fp16, got 'fp8'"),
        ("data: {procedural_share: 2}", r"`data.procedural_share` must be in \[0, 1\], got 2"),
        ("data: {procedural_share: 0}", "`data.folders` must name at least one folder"),
        ("loss: {masks_per_clip: 3, trained_masks: 2}", "must divide `loss.masks_per_clip` = 3, got 2"),
        ("- a list", "must hold sections"),
        ("run: [", "not a YAML file"),
    ],
)
def test_bad_configs_are_refused_by_file_and_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"config.yaml: .*{message}"):
        load(tmp_path, text)


def test_a_missing_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such configuration file"):
        load_config(train_frame_select_vae.TrainFrameSelectVAEConfig, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.max_steps", "must look like section.key=value, got 'run.max_steps'"),
        ("data.folders=[videos", r"value of the override 'data.folders=\[videos' is not YAML"),
        ("run.max_steps.x=1", "`max_steps` of the override 'run.max_steps.x=1' is no section"),
    ],
)
def test_malformed_overrides_are_refused(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "run: {max_steps: 3}", override)


def test_unknown_model_arguments_are_refused():
    with pytest.raises(ValueError, match="unknown key `model.patchsize`; the keys here are .*patch_size"):
        check_model_arguments(FrameSelectVAE, {"patchsize": 8})
