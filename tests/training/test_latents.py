"""Encoded data sets: whole, of one autoencoder and of one set of clips."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from diffusers_vidvae import FrameSelectVAE
from diffusers_vidvae.training import train_gap_dit
from diffusers_vidvae.training.config import DataConfig, load_config
from diffusers_vidvae.training.data import ClipDataset
from diffusers_vidvae.training.latents import INDEX_FILE, LatentDataset, encode_dataset
from diffusers_vidvae.training.train_gap_dit import TrainGapDiTConfig, prepare_latents

from .conftest import DATA, TINY_DIT, TINY_VAE


@pytest.fixture
def vae() -> FrameSelectVAE:
    torch.manual_seed(0)
    return FrameSelectVAE(**TINY_VAE).eval()


def clips(seed: int = 0, **changes: object) -> ClipDataset:
    return ClipDataset(replace(DataConfig(**DATA), **changes), seed)


def test_an_encoded_clip_is_the_posterior_of_its_draw(vae, tmp_path):
    encode_dataset(vae, clips(), tmp_path / "latents", num_clips=5, shard_size=2, batch_size=2)
    encoded = LatentDataset(tmp_path / "latents", vae=vae).clip(3)
    with torch.no_grad():
        posterior = vae.encode(clips()[3]["sample"][None]).latent_dist
    torch.testing.assert_close(encoded["mean"], posterior.mean[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(encoded["std"], posterior.std[0], atol=2e-3, rtol=2e-3)


def test_latents_of_other_data_are_not_taken_for_those_asked_for(vae, tmp_path):
    encode_dataset(vae, clips(), tmp_path / "latents", num_clips=4)
    encode_dataset(vae, clips(num_workers=1), tmp_path / "latents", num_clips=4)  # the same clips
    for other in (clips(seed=1), clips(procedural_seed=1), clips(horizontal_flip=False)):
        with pytest.raises(ValueError, match="latents: holds latents of other data or settings of clips"):
            encode_dataset(vae, other, tmp_path / "latents", num_clips=4)
    with pytest.raises(ValueError, match="latents: holds latents of another autoencoder"):
        encode_dataset(FrameSelectVAE(**TINY_VAE), clips(), tmp_path / "latents", num_clips=4)


def test_training_refuses_latents_of_another_data_section(vae, tmp_path, write_config):
    vae.save_pretrained(tmp_path / "vae")
    latents = {"vae": str(tmp_path / "vae"), "folder": str(tmp_path / "latents"), "num_clips": 4}
    prepare_latents(load_config(TrainGapDiTConfig, write_config(TINY_DIT, latents=latents)), vae)
    changed = write_config(TINY_DIT, latents=latents, data={"channel_shuffle": True})
    with pytest.raises(ValueError, match="holds latents of other data or settings of clips"):
        prepare_latents(load_config(TrainGapDiTConfig, changed), vae)
    # Without a number of clips to encode, the folder is taken as it is.
    as_it_is = load_config(TrainGapDiTConfig, changed, ["latents.num_clips=null", "data.procedural_share=0"])
    assert len(prepare_latents(as_it_is, vae)) == 4


def test_a_finished_folder_is_left_alone(vae, tmp_path):
    folder = encode_dataset(vae, clips(), tmp_path / "latents", num_clips=4)
    before = (folder / INDEX_FILE).stat().st_mtime_ns
    encode_dataset(vae, clips(), folder, num_clips=4)
    assert (folder / INDEX_FILE).stat().st_mtime_ns == before


def test_an_interrupted_folder_is_finished(vae, tmp_path):
    whole = encode_dataset(vae, clips(), tmp_path / "whole", num_clips=5, shard_size=2)
    parts = encode_dataset(vae, clips(), tmp_path / "parts", num_clips=5, shard_size=2)
    index = json.loads((parts / INDEX_FILE).read_text())
    (parts / INDEX_FILE).write_text(json.dumps(index | {"complete": False}))
    (parts / index["shards"][1]).unlink()
    with pytest.raises(ValueError, match="parts: is incomplete"):
        LatentDataset(parts)
    encode_dataset(vae, clips(), parts, num_clips=5, shard_size=2)
    for name in (INDEX_FILE, *index["shards"]):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_captions_travel_with_latents(vae, tmp_path):
    captioned = clips(captions=True, horizontal_flip=False, time_reversal=False)
    folder = encode_dataset(vae, captioned, tmp_path / "latents", num_clips=5, shard_size=2)
    dataset = LatentDataset(folder)
    assert [dataset.caption(index) for index in range(5)] == [captioned[draw]["caption"] for draw in range(5)]
    assert LatentDataset(encode_dataset(vae, clips(), tmp_path / "plain", num_clips=2)).caption(1) == ""


def test_sorted_batches_hold_less_padding_and_are_logged_by_noise_level(vae, tmp_path, write_config):
    # Keep probabilities that differ from clip to clip.
    torch.nn.init.normal_(vae.encoder.keep_head.linear_2.weight, std=20.0)
    vae.save_pretrained(tmp_path / "vae")
    padding = {}
    for batches in (1, 8):
        latents = {"vae": str(tmp_path / "vae"), "folder": str(tmp_path / "latents"), "num_clips": 32, "max_kept": 4}
        config = write_config(TINY_DIT, f"run{batches}", latents=latents | {"sorted_batches": batches})
        train_gap_dit.main(config, ["run.max_steps=8", "run.batch_size=4", "run.checkpoint_every=8"])
        lines = [json.loads(line) for line in (tmp_path / f"run{batches}" / "metrics.jsonl").read_text().splitlines()]
        padding[batches] = sum(line["padding"] for line in lines if line["split"] == "train") / 8
        levels = {name for line in lines for name in line if name.startswith("velocity_q")}
        assert levels == {"velocity_q1", "velocity_q2", "velocity_q3", "velocity_q4"}
    assert padding[8] < 0.6 * padding[1]
