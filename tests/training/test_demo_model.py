"""What the embedded models can do on clips that training never saw, with wide margins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusers_vidvae import AutoencoderKL3D, FrameSelectVAE, GapDiTPipeline, demo_model
from diffusers_vidvae.media import open_clips
from diffusers_vidvae.metrics import clip_psnr
from diffusers_vidvae.training.data import stack_clips
from diffusers_vidvae.training.procedural import COLOURS, MOTIONS, ProceduralClips
from tests.media_data import DATA


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return stack_clips(ProceduralClips(40, seed=4242), range(40))


@pytest.fixture(scope="module")
def vae() -> FrameSelectVAE:
    return FrameSelectVAE.from_pretrained(demo_model(), subfolder="vae").eval()


@pytest.fixture(scope="module")
@torch.no_grad()
def encoded(vae, clips) -> tuple[torch.Tensor, torch.Tensor]:
    posterior, probs, _ = vae.encode(clips, return_dict=False)
    return posterior.mode(), probs


def test_the_weights_are_small_enough_to_travel_with_the_package():
    sizes = {path.parent.name: path.stat().st_size for path in Path(demo_model()).glob("*/*.safetensors")}
    assert sizes["vae"] <= 6_000_000 and sizes["autoencoder_kl_3d"] <= 4_000_000
    assert sizes["transformer"] + sizes["text_encoder"] <= 6_000_000


def test_one_folder_serves_all_purposes_and_unknown_ones_are_named():
    assert demo_model("generation") == demo_model()
    with pytest.raises(ValueError, match="'compression', 'generation'.*, got 'sound'"):
        demo_model("sound")


@torch.no_grad()
def test_full_keep_is_well_above_trivial_baselines(vae, clips, encoded):
    latents, _ = encoded
    mean_image = clip_psnr(clips, clips.mean(dim=2, keepdim=True).expand_as(clips))
    assert clip_psnr(clips, vae.decode(latents).sample) > max(26, mean_image + 4)


@torch.no_grad()
def test_tiles_larger_than_in_training_cost_no_quality_on_real_frames(vae):
    (clip,) = open_clips(DATA / "clips" / "office_fast_pan_720p.mp4")
    frames = next(clip.pieces(4))[..., 200:376, 300:476]
    psnr = {}
    for tile in (64, None):
        vae.enable_tiling(tile)
        psnr[vae.tile_sample_size] = clip_psnr(frames, vae.decode(vae.encode(frames).latent_dist.mode()).sample)
    vae.disable_tiling()
    assert psnr[128] > psnr[64] - 0.2


@pytest.mark.slow
@torch.no_grad()
def test_systematic_selection_beats_one_count_for_all_and_threshold_and_bernoulli(vae, clips, encoded):
    latents, probs = encoded
    systematic = vae.select_frames(probs)
    rate = float(systematic.float().mean())
    others = {
        "uniform": vae.select_frames(probs, mode="uniform", rate=rate),
        "threshold": vae.select_frames(probs, mode="threshold"),
        "bernoulli": vae.select_frames(probs, mode="bernoulli", generator=torch.Generator().manual_seed(0)),
    }
    best = clip_psnr(clips, vae.decode(latents, systematic).sample)
    assert all(clip_psnr(clips, vae.decode(latents, mask).sample) < best for mask in others.values())


def test_keep_rate_rises_with_motion(encoded):
    _, probs = encoded
    rates = {motion: float(probs[i :: len(MOTIONS)].mean()) for i, motion in enumerate(MOTIONS)}
    assert rates["static"] < rates["slow"] < rates["fast"]


@torch.no_grad()
def test_the_convolutional_autoencoder_shows_its_input(clips):
    model = AutoencoderKL3D.from_pretrained(demo_model(), subfolder="autoencoder_kl_3d").eval()
    sample = clips[:10]
    decoded = model.decode(model.encode(sample).latent_dist.mode(), *sample.shape[2:]).sample
    mean_colour = sample.mean(dim=(2, 3, 4), keepdim=True).expand_as(sample)
    assert clip_psnr(sample, decoded) > clip_psnr(sample, mean_colour) + 2


def test_the_generator_shows_the_colours_it_is_asked_for():
    pipe = GapDiTPipeline.from_pretrained(demo_model())
    pipe.set_progress_bar_config(disable=True)
    backgrounds = ["red", "yellow", "green", "blue", "black", "white"]
    shapes = [*backgrounds[1:], backgrounds[0]]
    prompts = [f"a large {a} disc stands still on a {b} background" for a, b in zip(shapes, backgrounds, strict=True)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
    clips = pipe(prompt=prompts, num_frames=16, num_inference_steps=12, generator=generators, output_type="pt").frames
    for clip, background in zip(clips, backgrounds, strict=True):
        colours = clip.flatten(2).median(dim=2).values  # (T, 3)
        assert (colours - torch.tensor(COLOURS[background])).abs().max() < 0.2
