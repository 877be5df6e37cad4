"""What runs at once in the memory that is free, and how much that is."""

from __future__ import annotations

import psutil
import pytest
import torch

from diffusers_vidvae import FrameSelectVAE
from diffusers_vidvae.autoencoders import memory, open_autoencoder
from diffusers_vidvae.autoencoders.memory import control_group_rooms, free_memory, plan_memory, plan_windows
from tests.training.conftest import TINY_VAE


@pytest.fixture(scope="module")
def vae() -> FrameSelectVAE:
    return FrameSelectVAE(**TINY_VAE).eval()


def test_windows_and_tiles_shrink_with_the_memory_until_one_tile_does_not_fit(vae, monkeypatch):
    sizes = []
    for megabytes in (4000, 40, 8, 0.04):
        monkeypatch.setattr(memory, "free_memory", lambda device, megabytes=megabytes: int(1e6 * megabytes))
        if megabytes < 1:
            with pytest.raises(ValueError, match=r"^clip.mp4: a frame of 640x360 in tiles of 16x16 needs .* MB, 0 MB"):
                plan_windows(vae, 360, 640, 16, "clip.mp4")
        else:
            sizes.append(plan_windows(vae, 360, 640, 16, "clip.mp4"))
    assert sizes[0] == (vae.config.clip_num_frames, vae.tiles_per_batch)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1][0] == 1


def test_frames_larger_than_a_tile_are_tiled_and_smaller_ones_are_not(vae):
    model, (side, _) = open_autoencoder(vae), vae.usual_tile
    assert vae.takes_any_size
    assert plan_memory(model, side, side + 8).tiled and not plan_memory(model, side, side).tiled


def test_free_memory_is_what_the_machine_and_its_control_groups_leave():
    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


def write_group(folder, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_nearest_limit_of_a_control_group_counts_without_cached_files(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/job/task\n")
    job = tmp_path / "2" / "job"
    write_group(job, memory__max="1000\n", memory__current="700\n", memory__stat="inactive_file 50\n")
    write_group(job / "task", memory__max="max\n", memory__current="600\n")
    assert list(control_group_rooms(own, tmp_path / "2")) == [350]
    own.write_text("5:memory:/task\n2:cpu:/task\n")
    write_group(tmp_path / "1" / "memory" / "task", memory__limit_in_bytes="100\n", memory__usage_in_bytes="120\n")
    assert list(control_group_rooms(own, tmp_path / "1")) == [0]
    assert list(control_group_rooms(tmp_path / "absent", tmp_path)) == []
