"""The linear codec of overlapping blocks, which AutoencoderKL3D can start as."""

import pytest
import torch

from diffusers_vidvae import AutoencoderKL3D
from diffusers_vidvae.training import train_autoencoder_kl_3d
from diffusers_vidvae.training.block_codec import block_components, block_layout, start_blocks_as_linear_codec
from diffusers_vidvae.training.data import stack_clips
from diffusers_vidvae.training.overlapping_blocks import (
    OverlappingCodec,
    block_spectrum,
    fit_codec,
    lost_share,
    overlap_blocks,
)
from diffusers_vidvae.training.procedural import ProceduralClips
from diffusers_vidvae.training.train_autoencoder_kl_3d import clip_psnr, initialize_weights

from .conftest import TINY_KL


OPTIONS = {"latent_channels": 6, "linear_path": True, "pixel_range": (-1.0, 1.0)}


@pytest.fixture(scope="module")
def clips():
    return list(stack_clips(ProceduralClips(40, 8, 32, 32, seed=1), range(40)))


def linear_codec(clips, context, first_frame_alone=False):
    """A model that is the linear codec of single blocks, and their components."""
    options = OPTIONS | {"linear_path_context": context, "first_frame_alone": first_frame_alone}
    model = AutoencoderKL3D(**{**TINY_KL, **options}).eval()
    initialize_weights(model)
    components = block_components(clips, *block_layout(model))
    start_blocks_as_linear_codec(model, components)
    return model, components


def psnr(model, sample):
    with torch.no_grad():
        return clip_psnr(sample, model.decode(model.encode(sample).latent_dist.mode(), *sample.shape[2:]).sample)


@pytest.mark.parametrize("first_frame_alone", [False, True])
def test_overlapping_blocks_are_better_than_single_ones_on_clips_never_seen(clips, first_frame_alone):
    model, components = linear_codec(clips, 1, first_frame_alone)
    held_out = stack_clips(ProceduralClips(8, 8, 32, 32, seed=5), range(8))
    single = psnr(model, held_out), psnr(model, held_out[:, :, :1])
    overlap_blocks(model, components, clips, steps=60)
    assert psnr(model, held_out) > single[0] + 0.3
    assert psnr(model, held_out[:, :, :1]) > single[1] + 0.3


def test_latents_have_unit_variance(clips):
    model, components = linear_codec(clips, 1)
    overlap_blocks(model, components, clips, steps=20)
    with torch.no_grad():
        latents = torch.cat([model.encode(clip[None]).latent_dist.mode() for clip in clips])
    assert 0.8 < float(latents.square().mean()) < 1.2


def test_the_error_at_the_start_is_that_of_single_blocks_and_falls(clips):
    model, components = linear_codec(clips, 1)
    spectrum = block_spectrum(components.mean, components.components[:, :36], model, clips)
    identity = torch.zeros(6, 36, 3, 3)
    torch.diagonal(identity[:, :, 1, 1]).fill_(1)
    single = lost_share(OverlappingCodec(identity, identity.transpose(0, 1)), spectrum)
    torch.testing.assert_close(single, torch.tensor(1.0), atol=1e-3, rtol=0)
    assert lost_share(fit_codec(spectrum, components.variances[:36], 6, 1, steps=40), spectrum) < 0.95


@pytest.mark.parametrize("change", [{"linear_path_context": 0}, {"pixel_range": (0.0, 1.0)}])
def test_models_whose_blocks_cannot_overlap_say_why(clips, change):
    model = AutoencoderKL3D(**{**TINY_KL, **OPTIONS, "linear_path_context": 1, **change})
    components = block_components(clips, *block_layout(model))
    with pytest.raises(ValueError, match="Blocks overlap in models with"):
        overlap_blocks(model, components, clips)


def test_a_run_without_steps_gives_the_linear_codec(write_config, tmp_path):
    """Started again, it ends with the same."""
    model = {**TINY_KL, **OPTIONS}
    run = {"init": "pca", "init_clips": 40, "max_steps": 0, "validate_every": 0}
    data = {"num_frames": 8, "sample_size": 32, "num_procedural_clips": 60}
    file = write_config(model, run=run, data=data)
    train_autoencoder_kl_3d.main(file)
    first = AutoencoderKL3D.from_pretrained(tmp_path / "run" / "model")
    assert not first.decoder.conv_out.conv.weight.any() and first.decoder.linear_path.projection.conv.weight.any()
    train_autoencoder_kl_3d.main(file)
    again = AutoencoderKL3D.from_pretrained(tmp_path / "run" / "model")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
