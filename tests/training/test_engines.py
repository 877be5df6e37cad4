"""Other engines and other formats of encoding, with the bytes and values of one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_vidvae import FrameSelectVAE
from diffusers_vidvae.media import VideoWriter
from diffusers_vidvae.training.config import DataConfig
from diffusers_vidvae.training.data import EveryWindow
from diffusers_vidvae.training.encoding import encode_dataset
from diffusers_vidvae.training.latent_shards import INDEX_FILE, LatentDataset
from diffusers_vidvae.training.latent_tars import decode_latents
from diffusers_vidvae.training.ray_engine import encode_with_ray

from .conftest import TINY_VAE


@pytest.fixture
def vae() -> FrameSelectVAE:
    torch.manual_seed(0)
    return FrameSelectVAE(**TINY_VAE).eval()


@pytest.fixture
def windows(tmp_path) -> EveryWindow:
    """13 windows of six videos, one of which has a caption and all of which an author."""
    lines = []
    for name, length in zip("abcdef", (9, 4, 6, 8, 5, 11), strict=True):
        with VideoWriter(tmp_path / f"{name}.mp4", 10) as writer:
            writer.write(np.stack([np.full((16, 24, 3), 20 * index + 10, np.uint8) for index in range(length)]))
        lines.append({"path": f"{name}.mp4", "caption": "the short one" if name == "b" else "", "author": name * 2})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig([str(tmp_path / "list.jsonl")], columns=["author"], procedural_share=0.0)
    data.num_frames, data.sample_size = 4, 16
    return EveryWindow(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


@pytest.mark.parametrize("latent_type", ["fp16", "bf16", "int8", "coded"])
def test_webdataset_reads_what_a_training_reads(vae, windows, tmp_path, latent_type):
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset, of the extra `data`")
    (tmp_path / "c.mp4").write_bytes(b"gone bad since it was indexed")
    folder = tmp_path / "latents"
    encode_dataset(vae, windows, folder, 13, 4, 2, latent_type=latent_type, max_damaged=0.5, webdataset=True)
    read = webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
    samples = list(read.decode(webdataset.handle_extension("safetensors", decode_latents)))
    latents = LatentDataset(folder)
    assert len(samples) == len(latents) == 11
    for index, sample in enumerate(samples):
        clip = latents.clip(index)
        found = sample["safetensors"]
        assert all(torch.equal(found[name], clip[name]) for name in ("mean", "std", "keep_probs"))
        assert sample.get("txt", "") == latents.caption(index)
        assert sample["json"] == latents.columns(index) | {"num_frames": int(clip["frame_mask"].sum())}
    assert samples[3]["txt"] == "the short one" and samples[3]["json"]["author"] == "bb"


def test_tar_files_of_a_finished_folder_are_made_from_its_shards(vae, windows, tmp_path):
    pytest.importorskip("webdataset", reason="needs webdataset, of the extra `data`")
    whole = encode_dataset(vae, windows, tmp_path / "whole", 13, 4, webdataset=True).folder
    parts = encode_dataset(vae, windows, tmp_path / "parts", 13, 4).folder
    assert not list(parts.glob("*.tar"))
    encode_dataset(vae, windows, parts, 13, 4, webdataset=True)
    assert contents(parts) == contents(whole)
    assert len(list(parts.glob("*.tar"))) == 4


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="needs Ray, of the extra `ray`")
    for attempt in range(3):
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            break
        except Exception as error:  # a busy machine takes longer than the 30 s that Ray gives itself
            if attempt == 2 or "timed out" not in str(error):
                raise
            ray.shutdown()
    yield
    ray.shutdown()


@pytest.mark.slow
def test_ray_finishes_what_was_begun_to_the_bytes_of_one_process(cluster, vae, windows, tmp_path):
    (tmp_path / "c.mp4").write_bytes(b"gone bad since it was indexed")
    settings = {"shard_size": 2, "batch_size": 2, "max_damaged": 0.2}
    one = encode_dataset(vae, windows, tmp_path / "one", 13, **settings)
    shutil.copytree(one.folder, tmp_path / "ray")
    index = json.loads((one.folder / INDEX_FILE).read_text())
    (tmp_path / "ray" / INDEX_FILE).write_text(json.dumps(index | {"complete": False}))
    for name in index["shards"][1:]:
        (tmp_path / "ray" / name).unlink()
    ray = encode_with_ray(vae, windows, tmp_path / "ray", 13, num_actors=2, **settings)
    assert contents(ray.folder) == contents(one.folder)
    assert ray.damaged == one.damaged and [clip["number"] for clip in ray.damaged] == [4, 5]


@pytest.mark.slow
def test_damaged_clips_are_counted_over_all_actors(cluster, vae, windows, tmp_path):
    (tmp_path / "c.mp4").write_bytes(b"gone bad since it was indexed")
    with pytest.raises(ValueError, match="[12] of 13 clips cannot be read, more than the 5% that may be; .*c.mp4"):
        encode_with_ray(vae, windows, tmp_path / "strict", 13, 2, max_damaged=0.05)


@pytest.mark.slow
def test_what_an_actor_refuses_is_said_in_one_sentence(cluster, windows, tmp_path):
    vae = FrameSelectVAE(**(TINY_VAE | {"sample_size": 8, "keep_head": "latent"})).eval()
    with pytest.raises(ValueError, match=r"^[^\n]*\.$") as caught:
        encode_with_ray(vae, windows, tmp_path / "latents", 13, 2)
    with pytest.raises(ValueError) as expected:
        encode_dataset(vae, windows, tmp_path / "one", 13, 2)
    assert str(caught.value) == str(expected.value)
