"""Encoded data sets: whole, of one autoencoder and of one set of clips."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL

from diffusers_vidvae import AutoencoderKL3D, FrameSelectVAE, GapDiTPipeline, demo_model
from diffusers_vidvae.media import VideoWriter
from diffusers_vidvae.training import train_gap_dit
from diffusers_vidvae.training.config import DataConfig, load_config
from diffusers_vidvae.training.data import ClipDataset, EveryWindow
from diffusers_vidvae.training.encoding import encode_dataset, only_encoder
from diffusers_vidvae.training.latent_shards import INDEX_FILE, LatentDataset
from diffusers_vidvae.training.train_gap_dit import TrainGapDiTConfig, prepare_latents

from .conftest import DATA, TINY_DIT, TINY_KL, TINY_VAE


ROOT = Path(__file__).resolve().parents[2]


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
    folder = encode_dataset(vae, clips(), tmp_path / "latents", num_clips=4).folder
    before = (folder / INDEX_FILE).stat().st_mtime_ns
    encode_dataset(vae, clips(), folder, num_clips=4)
    assert (folder / INDEX_FILE).stat().st_mtime_ns == before


def test_an_interrupted_folder_is_finished(vae, tmp_path):
    whole = encode_dataset(vae, clips(), tmp_path / "whole", num_clips=5, shard_size=2).folder
    parts = encode_dataset(vae, clips(), tmp_path / "parts", num_clips=5, shard_size=2).folder
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
    folder = encode_dataset(vae, captioned, tmp_path / "latents", num_clips=5, shard_size=2).folder
    dataset = LatentDataset(folder)
    assert [dataset.caption(index) for index in range(5)] == [captioned[draw]["caption"] for draw in range(5)]
    assert LatentDataset(encode_dataset(vae, clips(), tmp_path / "plain", num_clips=2).folder).caption(1) == ""


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


def test_batches_of_one_count_of_frames_a_step_apart_in_channels_scaled_by_pixels(vae, tmp_path, write_config):
    vae.register_to_config(latents_mean=[1.0] * 4, latents_std=[2.0] * 4)
    vae.save_pretrained(tmp_path / "vae")
    latents = {"vae": str(tmp_path / "vae"), "folder": str(tmp_path / "latents"), "num_clips": 8, "max_kept": 2}
    latents |= {
        "num_kept": [1, 2],
        "frame_step": 2,
        "single_frame_phase": 0.5,
        "pixel_metric": True,
        "precondition": True,
    }
    path = write_config(TINY_DIT, latents=latents)
    config = load_config(TrainGapDiTConfig, path)
    dataset = prepare_latents(config, vae)

    early, late = [], []
    for first in range(0, 160, 4):
        items = [dataset[draw] for draw in range(first, first + 4)]
        batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        packed = train_gap_dit.draw_packed_frames(vae, batch, config)
        assert packed.mask.all() and (packed.gaps.cumsum(dim=1) % 2 == 0).all()
        late.append(packed)
        early.append(train_gap_dit.draw_packed_frames(vae, batch, config, progress=0.2).mask.shape[1])
    counts = [packed.mask.shape[1] for packed in late]
    assert set(counts) == {1, 2} and early.count(1) > 30 > counts.count(1)

    model = GapDiTPipeline.from_pretrained(train_gap_dit.main(path)).transformer
    assert model.config.frame_step == 2
    gains = torch.stack([train_gap_dit.squared_gains(vae, packed) for packed in late]).mean(dim=0).sqrt()
    shown = gains * torch.tensor(model.config.latents_std)
    torch.testing.assert_close(shown, shown.mean().expand(4), rtol=0.2, atol=0)
    values = [model.normalize_latents(vae.normalize_latents(packed.latents)).transpose(0, 1) for packed in late]
    channels = torch.cat([value.flatten(1) for value in values], dim=1)
    assert 0.7 < float(channels.square().mean().sqrt()) < 1.3
    torch.testing.assert_close(torch.tensor(model.config.latents_variance), channels.var(dim=1), rtol=0.5, atol=0)
    with pytest.raises(ValueError, match=r"`latents.num_kept` must be in \[1, 2\], got 3"):
        load_config(TrainGapDiTConfig, path, ["latents.num_kept=[3]"])
    with pytest.raises(ValueError, match="`latents.single_frame_phase` needs `latents.num_kept`"):
        load_config(TrainGapDiTConfig, path, ["latents.num_kept=[]"])


@pytest.fixture
def videos(tmp_path) -> Path:
    """Three videos of 9, 4 and 6 frames; every frame is of another grey."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, length in (("a", 9), ("b", 4), ("c", 6)):
        with VideoWriter(folder / f"{name}.mp4", 10) as writer:
            for index in range(length):
                writer.write(np.full((1, 16, 24, 3), 20 * index + 10, np.uint8))
    (folder / "b.txt").write_text("the short one")
    return folder


def every_window(folder: Path) -> EveryWindow:
    return EveryWindow(DataConfig([str(folder)], procedural_share=0.0, num_frames=4, sample_size=16))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def test_every_frame_of_every_file_is_in_one_window(videos):
    windows = every_window(videos)
    items = [windows[number] for number in range(len(windows))]
    assert [int(item["frame_mask"].sum()) for item in items] == [4, 4, 1, 4, 4, 2]
    levels = [((item["sample"].mean(dim=(0, 2, 3)) + 1) * 127.5)[item["frame_mask"]] for item in items]
    expected = [20 * index + 10 for length in (9, 4, 6) for index in range(length)]
    assert torch.cat(levels).tolist() == pytest.approx(expected, abs=4)
    assert [item["caption"] for item in items] == ["", "", "", "the short one", "", ""]


@pytest.mark.parametrize("model", ["frame_select", "kl_3d", "image_kl"])
def test_any_autoencoder_encodes_a_data_set(videos, tmp_path, model):
    torch.manual_seed(0)
    vae = {
        "frame_select": lambda: FrameSelectVAE(**TINY_VAE),
        "kl_3d": lambda: AutoencoderKL3D(**TINY_KL),
        "image_kl": lambda: AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=2, **IMAGE_BLOCKS),
    }[model]()
    windows = every_window(videos)
    encode_dataset(vae, windows, tmp_path / "latents", len(windows), shard_size=4, batch_size=2)
    dataset = LatentDataset(tmp_path / "latents", vae=vae)
    assert len(dataset) == 6 and ("keep_probs" in dataset.clip(0)) == (model == "frame_select")
    assert dataset.caption(3) == "the short one"
    clip = windows[3]["sample"]
    with torch.no_grad():
        if model == "image_kl":
            expected = vae.encode(clip.transpose(0, 1)).latent_dist.mean.transpose(0, 1)
        else:
            expected = vae.encode(clip[None]).latent_dist.mean[0]
    torch.testing.assert_close(dataset.clip(3)["mean"], expected, atol=2e-3, rtol=2e-3)
    assert len(dataset.latents_mean) == expected.shape[0] and min(dataset.latents_std) > 0


IMAGE_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


@pytest.mark.parametrize("latent_type", ["fp32", "bf16", "int8"])
def test_latents_come_back_in_every_type(vae, tmp_path, latent_type):
    data = clips()
    encode_dataset(vae, data, tmp_path / "latents", 3, latent_type=latent_type)
    clip = LatentDataset(tmp_path / "latents").clip(1)
    with torch.no_grad():
        posterior = vae.encode(data[1]["sample"][None]).latent_dist
    step = {"fp32": 0, "bf16": 2**-8, "int8": 1 / 255}[latent_type]
    for name, values in (("mean", posterior.mean[0]), ("std", posterior.std[0])):
        span = values.amax(dim=(1, 2, 3), keepdim=True) - values.amin(dim=(1, 2, 3), keepdim=True)
        assert ((clip[name] - values).abs() <= step * torch.maximum(span, values.abs()) + 1e-6).all()


@pytest.mark.parametrize("embedded", [True, False], ids=["basis", "channels"])
def test_coded_latents_come_back_in_a_fraction_of_the_bytes(tmp_path, embedded):
    torch.manual_seed(0)
    turns = {"latent_channels": 8, "cycle_channels": 4, "cycle_length": 2, "fill": "interpolate"}
    model = FrameSelectVAE(**(TINY_VAE | turns)).eval()
    data = clips()
    if embedded:
        model, data = FrameSelectVAE.from_pretrained(demo_model(), subfolder="vae"), clips(sample_size=64)
    sizes, errors = [], []
    for latent_type in ("fp16", "coded:90", "coded", "coded:20"):
        folder = encode_dataset(model, data, tmp_path / latent_type, 3, latent_type=latent_type).folder
        dataset = LatentDataset(folder, vae=model)
        found = [dataset.clip(index) for index in (2, 0, 1)]
        with torch.no_grad():
            posteriors = [model.encode(data[index]["sample"][None]).latent_dist for index in (2, 0, 1)]
        means = [clip["mean"] - posterior.mean[0] for clip, posterior in zip(found, posteriors, strict=True)]
        assert found[0]["std"].shape == found[0]["mean"].shape == posteriors[0].mean[0].shape
        torch.testing.assert_close(found[0]["std"].mean(), posteriors[0].std.mean(), rtol=1e-2, atol=1e-4)
        errors.append(float(torch.stack(means).square().mean().sqrt() / posteriors[0].mean.std()))
        sizes.append(sum(path.stat().st_size for path in folder.glob("*.safetensors")))
        assert json.loads((folder / INDEX_FILE).read_text())["latent_type"] == latent_type
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)
    assert errors[1] < 0.03
    if embedded:
        assert sizes[2] < sizes[0] / 7


@pytest.mark.parametrize("latent_type", ["coded:101", "coded:", "coded:fine", "int3"])
def test_latent_types_that_do_not_exist_are_refused(vae, tmp_path, latent_type):
    with pytest.raises(ValueError, match=r"must be (from 0 to 100|one of fp16, .*coded:QUALITY), got"):
        encode_dataset(vae, clips(), tmp_path / "latents", 3, latent_type=latent_type)
    assert not (tmp_path / "latents").exists()


def test_loading_ahead_changes_no_byte(vae, videos, tmp_path):
    windows = every_window(videos)
    for workers in (0, 2):
        encode_dataset(vae, windows, tmp_path / str(workers), len(windows), 4, 2, num_workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


@pytest.mark.filterwarnings("ignore:.*skipped 1 of")
def test_damaged_clips_are_named_counted_and_left_out_up_to_a_share(vae, videos, tmp_path):
    windows = every_window(videos)
    (videos / "c.mp4").write_bytes(b"gone bad since it was indexed")
    report = encode_dataset(vae, windows, tmp_path / "latents", len(windows), 2, 2, max_damaged=0.5)
    assert report.num_clips == 4 and len(LatentDataset(tmp_path / "latents")) == 4
    assert [clip["number"] for clip in report.damaged] == [4, 5]
    assert all("c.mp4" in clip["error"] for clip in report.damaged)
    with pytest.raises(ValueError, match="2 of 6 clips cannot be read, more than the 10% that may be; .*c.mp4"):
        encode_dataset(vae, windows, tmp_path / "strict", len(windows), 2, 2)


def test_two_runs_do_not_encode_into_one_folder(vae, tmp_path):
    (tmp_path / "latents").mkdir()
    with only_encoder(tmp_path / "latents", Accelerator(cpu=True)):
        with pytest.raises(ValueError, match="latents: another run is encoding into this folder"):
            encode_dataset(vae, clips(), tmp_path / "latents", num_clips=2)
    encode_dataset(vae, clips(), tmp_path / "latents", num_clips=2)


def test_clips_that_a_model_does_not_take_are_refused_with_the_next_size(tmp_path):
    with pytest.raises(ValueError, match="AutoencoderKL takes no clips of 4 frames and 16x16 pixels; the next that"):
        model = AutoencoderKL(
            block_out_channels=(4,) * 6,
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 6,
            up_block_types=("UpDecoderBlock2D",) * 6,
        )
        encode_dataset(model, clips(), tmp_path / "latents", num_clips=2)


def test_a_cut_off_shard_is_named(vae, tmp_path):
    folder = encode_dataset(vae, clips(), tmp_path / "latents", num_clips=2).folder
    shard = folder / "latents-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match="latents-00000.safetensors: is no whole shard of latents"):
        LatentDataset(folder).clip(0)


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_whole_shards_to_go_on_from(videos, tmp_path):
    torch.manual_seed(0)
    FrameSelectVAE(**TINY_VAE).save_pretrained(tmp_path / "vae")
    arguments = ["encode-dataset", str(videos), "-o", str(tmp_path / "latents"), "--model", str(tmp_path / "vae")]
    arguments += ["--shard-size", "5", "--latent-type", "fp32", "--device", "cpu"]
    # A limit on the size of files fails as a full disk does.
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000));"
        "from diffusers_vidvae.cli import main; sys.exit(main())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    said = " ".join(result.stderr.split())
    assert re.search(
        r"latents-00000.safetensors: not enough disk space \(File too large, \d+ bytes are free\)\.", said
    )
    assert not list((tmp_path / "latents").glob("*.safetensors"))
    subprocess.run([sys.executable, "-m", "diffusers_vidvae", *arguments], env=environment, check=True)
    assert len(LatentDataset(tmp_path / "latents")) == 6


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_double_nothing():
    script = ROOT / "tests" / "benchmarks" / "bench_kills.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, script, "--kills", "5"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    assert "5 kills of" in result.stdout and "0 lost, 0 doubled; the same bytes" in result.stdout


@pytest.mark.slow
def test_processes_share_the_work_and_a_kill_loses_and_doubles_nothing(vae, videos, tmp_path):
    for number in range(40):
        (videos / f"copy{number:02d}.mp4").write_bytes((videos / "a.mp4").read_bytes())
    vae.save_pretrained(tmp_path / "vae")
    module = ["-m", "diffusers_vidvae"]
    arguments = [
        "encode-dataset",
        str(videos),
        "--model",
        str(tmp_path / "vae"),
        "--shard-size",
        "2",
        "--device",
        "cpu",
    ]
    launchers = {1: [sys.executable], 2: [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(folder: str, processes: int, **options: object) -> subprocess.Popen:
        command = [*launchers[processes], *module, *arguments, "-o", str(tmp_path / folder)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True, **options)

    assert run("one", 1).wait() == 0
    assert run("two", 2).wait() == 0
    expected = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == expected
    for attempt in range(3):
        process = run("killed", 1 + attempt % 2)
        deadline = time.monotonic() + 60
        wanted = 8 * (attempt + 1)
        while len(list((tmp_path / "killed").glob("*.safetensors"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert run("killed", 2).wait() == 0
    assert contents(tmp_path / "killed") == expected
