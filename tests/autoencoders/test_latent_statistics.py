from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_autoencoders import make_autoencoder

from diffusers_vidvae.autoencoders.latent_statistics import latent_statistics
from diffusers_vidvae.media import MediaError, VideoWriter


def write_clip(path, num_frames: int, height: int = 24, width: int = 32, seed: int = 0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, height // 8, width // 8, 3), dtype=np.uint8)
    with VideoWriter(path, 24, lossless=True) as writer:
        writer.write(frames.repeat(8, axis=1).repeat(8, axis=2))
    return path


def pixels_of(num_frames: int, height: int = 24, width: int = 32, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, height // 8, width // 8, 3), dtype=np.uint8)
    frames = frames.repeat(8, axis=1).repeat(8, axis=2)
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1


@pytest.fixture
def clips(tmp_path):
    return [write_clip(tmp_path / f"{index}.mkv", length, seed=index) for index, length in enumerate((9, 5, 13))]


@pytest.fixture(scope="module")
def wan():
    return make_autoencoder("wan")


@pytest.fixture(scope="module")
def kl_3d():
    return make_autoencoder("kl_3d")


@torch.no_grad()
@pytest.mark.parametrize("name", ["wan", "kl_3d"])
def test_statistics_are_those_of_all_latents(clips, name):
    vae = make_autoencoder(name)
    posteriors = [vae.encode(pixels_of(n, seed=seed)).latent_dist for seed, n in enumerate((9, 5, 13))]
    modes = torch.cat([p.mode().double().transpose(0, 1).flatten(1) for p in posteriors], dim=1)
    variances = torch.cat([p.var.double().transpose(0, 1).flatten(1) for p in posteriors], dim=1)
    divergence = 0.5 * (modes**2 + variances - 1 - variances.log())

    found = latent_statistics(vae, clips)
    assert found.latents_mean == pytest.approx(modes.mean(1).tolist(), rel=1e-4, abs=1e-6)
    assert found.latents_mode_std == pytest.approx(modes.std(1, correction=0).tolist(), rel=1e-4)
    total = (modes.var(1, correction=0) + variances.mean(1)).sqrt()
    assert found.latents_std == pytest.approx(total.tolist(), rel=1e-4)
    assert found.kl_per_channel == pytest.approx(divergence.mean(1).tolist(), rel=1e-4)
    assert found.kl_per_element == pytest.approx(float(divergence.mean()), rel=1e-4)
    assert (found.num_clips, found.num_frames, found.num_positions) == (3, 27, modes.shape[1])


def test_normalized_latents_have_mean_0_and_deviation_1(clips, kl_3d):
    found = latent_statistics(kl_3d, clips)
    kl_3d.register_to_config(latents_mean=found.latents_mean, latents_std=found.latents_mode_std)
    with torch.no_grad():
        latents = [kl_3d.encode(pixels_of(n, seed=seed)).latent_dist.mode() for seed, n in enumerate((9, 5, 13))]
    normalized = torch.cat([kl_3d.normalize_latents(z).transpose(0, 1).flatten(1) for z in latents], dim=1)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(normalized.std(1, correction=0), torch.ones(4), rtol=1e-3, atol=0)


def test_order_of_files_changes_no_bit(clips, wan):
    assert latent_statistics(wan, clips) == latent_statistics(wan, clips[::-1])


def test_chunks_of_a_stream_change_nothing(tmp_path, kl_3d):
    clip = write_clip(tmp_path / "clip.mkv", 18)
    whole, chunked = (latent_statistics(kl_3d, [clip], chunk_frames=n) for n in (24, 5))
    assert chunked.latents_mean == pytest.approx(whole.latents_mean, abs=1e-6)
    assert chunked.num_positions == whole.num_positions


def test_interrupted_run_continues(tmp_path, clips, wan):
    state = tmp_path / "state.jsonl"

    def interrupted():
        yield from clips[:2]
        raise KeyboardInterrupt

    expected = latent_statistics(wan, clips)
    with pytest.raises(KeyboardInterrupt):
        latent_statistics(wan, interrupted(), state_file=state)
    with open(state, "a") as file:
        file.write('{"file": "2.mkv", "byt')  # a line that was being written

    sizes = {path: path.read_bytes() for path in clips[:2]}
    for path, content in sizes.items():
        path.write_bytes(bytes(len(content)))  # unreadable, but of the same size: must not be read again
    assert latent_statistics(wan, clips, state_file=state) == expected
    assert len(state.read_text().splitlines()) == 4


def test_changed_file_is_encoded_again(tmp_path, clips, wan):
    state = tmp_path / "state.jsonl"
    latent_statistics(wan, clips, state_file=state)
    clips[0].unlink()
    write_clip(clips[0], 5, seed=7)
    assert latent_statistics(wan, clips, state_file=state) == latent_statistics(wan, clips)


def test_state_of_another_run_is_refused(tmp_path, clips, wan):
    state = tmp_path / "state.jsonl"
    latent_statistics(wan, clips[:1], state_file=state)
    with pytest.raises(ValueError, match="state.jsonl: was made with `max_frames` None, not 4"):
        latent_statistics(wan, clips, max_frames=4, state_file=state)
    with pytest.raises(ValueError, match="belongs to an autoencoder with other weights"):
        latent_statistics(make_autoencoder("kl_3d"), clips, state_file=state)
    for content in ("", "frames\n", "[]\n", "{}\n"):
        state.write_text(content)
        with pytest.raises(ValueError, match="state.jsonl: is no file of latent statistics"):
            latent_statistics(wan, clips, state_file=state)


@torch.no_grad()
def test_frames_are_cut_rather_than_padded(tmp_path, wan):
    with VideoWriter(tmp_path / "clip.mkv", 24, lossless=True) as writer:
        frames = np.random.default_rng(0).integers(0, 256, (7, 21, 30, 3), dtype=np.uint8)
        writer.write(frames)
    cut = torch.from_numpy(frames[:5, 2:18, 3:27]).permute(3, 0, 1, 2)[None] / 127.5 - 1
    expected = wan.encode(cut).latent_dist.mode().double()
    found = latent_statistics(wan, [tmp_path / "clip.mkv"])
    assert found.num_frames == 5 and found.num_positions == expected[:, 0].numel()
    assert found.latents_mean == pytest.approx(expected.mean(dim=(0, 2, 3, 4)).tolist(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["frame_select", "kl", "tiny", "minimax_h3"])
def test_any_autoencoder_is_measured(tmp_path, clips, name):
    image = tmp_path / "photo.png"
    Image.fromarray(np.full((40, 48, 3), 90, np.uint8)).save(image)
    found = latent_statistics(make_autoencoder(name), [image, *clips])
    assert found.num_clips == 4
    assert np.isfinite(found.latents_std).all() and min(found.latents_std) > 0
    assert (found.kl_per_element is None) == (name == "tiny")


def test_first_frames_alone_are_read_on_demand(clips, kl_3d):
    assert latent_statistics(kl_3d, clips, max_frames=4).num_frames == 12
    assert latent_statistics(kl_3d, clips, fps=8).num_frames == 3 + 2 + 4


def test_latents_that_are_not_finite_are_named(clips):
    vae = make_autoencoder("wan")
    vae.encoder.conv_in.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="0.mkv: its latents are not finite"):
        latent_statistics(vae, clips)


def test_bad_arguments_are_refused(tmp_path, clips, wan):
    with pytest.raises(ValueError, match="There are no files"):
        latent_statistics(wan, [])
    with pytest.raises(ValueError, match="must be at least 1, got 0 and None"):
        latent_statistics(wan, clips, chunk_frames=0)
    with pytest.raises(MediaError, match="missing.mp4"):
        latent_statistics(wan, [tmp_path / "missing.mp4"])
