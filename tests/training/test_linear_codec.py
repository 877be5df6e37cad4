"""The linear codec, and models that start as it."""

import json

import pytest
import torch

from diffusers_vidvae import AutoencoderKL3D, FrameSelectVAE
from diffusers_vidvae.models.frame_fill import ChannelCycle
from diffusers_vidvae.training import train_autoencoder_kl_3d, train_frame_select_vae
from diffusers_vidvae.training.block_codec import (
    BlockCodec,
    block_components,
    block_layout,
    start_blocks_as_linear_codec,
)
from diffusers_vidvae.training.config import DataConfig
from diffusers_vidvae.training.data import ClipDataset, stack_clips, whole_clips
from diffusers_vidvae.training.linear_codec import START_KEEP_RATE, LinearCodec, plan_channels, start_as_linear_codec
from diffusers_vidvae.training.losses import keep_guide_loss, motion_density
from diffusers_vidvae.training.principal_components import (
    ComponentsEstimator,
    clip_blocks,
    clip_of_blocks,
    frame_patches,
    frames_of_patches,
)
from diffusers_vidvae.training.procedural import ProceduralClips
from diffusers_vidvae.training.train_autoencoder_kl_3d import clip_psnr, initialize_weights
from diffusers_vidvae.training.train_frame_select_vae import spaced_masks

from .conftest import TINY_KL, TINY_VAE


MODEL = {
    "sample_size": 16,
    "patch_size": 4,
    "latent_channels": 6,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ff_inner_dim": 32,
    "max_num_frames": 8,
    "clip_num_frames": 8,
    "unpatch_channels": 1,
    "refiner_levels": 0,
    "hidden_size": 64,
    "pixel_range": (-1.0, 1.0),
    "patch_norm": False,
    "rope_type": "axial",
    "keep_head": "pooled",
    "fill": "interpolate",
}


@pytest.fixture(scope="module")
def clips():
    return stack_clips(ProceduralClips(24, 8, 16, 16, seed=1), range(24))


@pytest.fixture(scope="module")
def components(clips):
    estimator = ComponentsEstimator(48)
    for clip in clips:
        estimator.update(frame_patches(clip[None], 4))
    return estimator.components()


def test_components_of_a_stream_are_those_of_all_vectors_at_once(clips, components):
    vectors = frame_patches(clips, 4).flatten(0, -2).double()
    centred = vectors - vectors.mean(dim=0)
    singular = torch.linalg.svdvals(centred) ** 2 / len(vectors)
    torch.testing.assert_close(components.mean, vectors.mean(dim=0).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(components.variances, singular.float(), atol=1e-4, rtol=1e-3)
    basis = components.components
    torch.testing.assert_close(basis.T @ basis, torch.eye(48), atol=1e-5, rtol=0)


def test_too_few_vectors_are_refused():
    estimator = ComponentsEstimator(48)
    estimator.update(torch.zeros(48, 48))
    with pytest.raises(ValueError, match="48 principal components need more than 48 patches"):
        estimator.components()


def test_patches_and_frames_are_inverse(clips):
    assert torch.equal(frames_of_patches(frame_patches(clips, 4), 4), clips)


def test_linear_codec_with_all_components_keeps_everything(clips, components):
    codec = LinearCodec(components, 4, 48)
    everything = torch.ones(len(clips), 8, dtype=torch.bool)
    torch.testing.assert_close(codec.decode(codec.encode(clips), everything), clips, atol=1e-4, rtol=0)


@pytest.mark.parametrize("unpatch_channels", [1, 2])
def test_a_model_starts_as_the_linear_codec(clips, components, unpatch_channels):
    model = FrameSelectVAE(**MODEL | {"unpatch_channels": unpatch_channels}).eval()
    start_as_linear_codec(model, clips)
    codec = LinearCodec(components, 4, 6)
    keep_mask = torch.zeros(len(clips), 8, dtype=torch.bool)
    keep_mask[::2, [0, 3, 6]] = True
    keep_mask[1::2] = True
    with torch.no_grad():
        decoded = model.decode(model.encode(clips).latent_dist.mode(), keep_mask).sample
    torch.testing.assert_close(decoded, codec.decode(codec.encode(clips), keep_mask), atol=1e-3, rtol=0)


def test_turns_show_still_film_in_more_detail(clips, components):
    """Where nothing moves, a cycle of three frames sends three groups of components."""
    still = clips[:, :, :1].expand(-1, -1, 8, -1, -1)
    everything = torch.ones(len(clips), 8, dtype=torch.bool)
    model = FrameSelectVAE(**MODEL | {"cycle_channels": 3}).eval()
    start_as_linear_codec(model, clips)
    codec = LinearCodec(components, 4, 12)  # 3 in every frame and 3 groups of 3
    with torch.no_grad():
        decoded = model.decode(model.encode(still).latent_dist.mode(), everything).sample
    torch.testing.assert_close(decoded, codec.decode(codec.encode(still), everything), atol=1e-3, rtol=0)


def error_at(model, clips, step):
    keep_mask = (torch.arange(clips.shape[2]) % step == step // 2).expand(len(clips), -1)
    with torch.no_grad():
        decoded = model.decode(model.encode(clips).latent_dist.mode(), keep_mask).sample
    return float((decoded - clips).square().mean())


def test_estimates_from_filtered_latents_start_better_than_blends(clips):
    """Of moving film that the model has not seen, every fourth frame is kept."""
    held_out = stack_clips(ProceduralClips(20, 8, 16, 16, seed=2), range(20))
    errors = {}
    for name, change in {
        "blend": {},
        "wiener": {"fill": "wiener", "filter_size": 5},
        "context": {"fill": "wiener", "filter_size": 5, "decoder_context": True},
    }.items():
        model = FrameSelectVAE(**MODEL | change).eval()
        start_as_linear_codec(model, clips)
        errors[name] = error_at(model, held_out, step=4)
    assert errors["context"] < errors["wiener"] < 0.99 * errors["blend"]


def test_plan_sends_every_component_and_filters_those_that_last():
    cycle = ChannelCycle(3, 1, 3)  # two components in every frame, three in turn
    lasting, noise = 0.98 ** torch.arange(8), torch.eye(8)[0]
    correlation = torch.stack([lasting, noise, lasting, lasting, lasting])
    plan = plan_channels(cycle, torch.tensor([1.0, 0.9, 0.5, 0.3, 0.1]), correlation, 3)
    assert sorted(plan.order) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(plan.taps.sum(dim=1), torch.ones(5))
    centre = dict(zip(plan.order, plan.taps[:, 1].tolist(), strict=True))
    assert centre[0] < 1 and centre[1] == 1


@pytest.mark.parametrize("change", [{"fill": "token"}, {"patch_norm": True}, {"pixel_range": (0.0, 1.0)}])
def test_models_that_cannot_start_as_the_linear_codec_say_why(clips, change):
    with pytest.raises(ValueError, match="To start as the linear codec"):
        start_as_linear_codec(FrameSelectVAE(**MODEL | change), clips)


def test_too_narrow_models_cannot_start_as_the_linear_codec(clips):
    with pytest.raises(ValueError, match="`hidden_size` must be at least 16, got 12"):
        start_as_linear_codec(FrameSelectVAE(**MODEL | {"hidden_size": 12}), clips)


def test_a_motion_head_starts_at_the_rate_asked_for_and_keeps_what_moves():
    clips = stack_clips(ProceduralClips(30, 8, 16, 16, seed=1), range(30))
    model = FrameSelectVAE(**MODEL | {"keep_head": "motion"}).eval()
    start_as_linear_codec(model, clips)
    with torch.no_grad():
        probs = model.encode(clips).keep_probs
        still = model.encode(clips[:, :, :1].expand(-1, -1, 8, -1, -1)).keep_probs
    assert float(probs.mean()) == pytest.approx(START_KEEP_RATE, abs=1e-3)
    assert still.mean() < 0.5 * probs.mean()


def test_padding_does_not_move_a_motion_head(clips):
    model = FrameSelectVAE(**MODEL | {"keep_head": "motion"}).eval()
    padded = torch.cat([clips[:4, :, :6], torch.zeros(4, 3, 2, 16, 16)], dim=2)
    frame_mask = (torch.arange(8) < 6).expand(4, -1)
    with torch.no_grad():
        probs = model.encode(padded, frame_mask).keep_probs
        alone = model.encode(clips[:4, :, :6]).keep_probs
    torch.testing.assert_close(probs[:, :6], alone)


def test_spaced_masks_step_evenly_through_the_real_frames():
    rate, offset = torch.tensor([[[2 / 3], [1.0]]]), torch.tensor([[[0.5], [0.0]]])
    masks = spaced_masks(rate, offset, torch.ones(1, 8, dtype=torch.bool))[0]
    assert masks[0].nonzero()[:, 0].tolist() == [0, 2, 4, 6]
    assert masks[1].all()
    padded = spaced_masks(rate, offset, torch.arange(10)[None] < 8)[0]
    assert torch.equal(padded[:, :8], masks)


def test_faster_motion_asks_for_more_frames():
    ramp = torch.linspace(-1, 1, 32)[None, None, None, None].expand(1, 3, 8, 32, 32)
    still, slow, fast = (torch.stack([ramp[:, :, 0].roll(step * t, -1) for t in range(8)], 2) for step in (0, 1, 4))
    still, slow, fast = (motion_density(clip)[0] for clip in (still, slow, fast))
    assert still.max() == 0
    assert fast.mean() > 1.5 * slow.mean() > 0


def test_padding_does_not_move():
    clip = torch.randn(1, 3, 8, 16, 16)
    padded = torch.cat([clip, torch.zeros(1, 3, 4, 16, 16)], dim=2)
    density = motion_density(padded, torch.arange(12)[None] < 8)
    torch.testing.assert_close(density[:, :8], motion_density(clip))


def test_guide_is_least_where_probabilities_agree():
    target = torch.tensor([[0.2, 0.7]])
    agreeing = keep_guide_loss(torch.logit(target), target)
    assert agreeing < keep_guide_loss(torch.logit(target) + 0.5, target)
    assert agreeing < keep_guide_loss(torch.logit(target) - 0.5, target)


@pytest.mark.parametrize("first_frame_alone", [True, False])
@pytest.mark.parametrize("num_frames", [1, 4, 7])
def test_blocks_can_be_put_together_again(num_frames, first_frame_alone):
    sample = torch.randn(2, 3, num_frames, 8, 16)
    layout = (4, 8, 8), first_frame_alone
    blocks = clip_blocks(sample, *layout)
    assert blocks.shape[2:] == (1, 2, 768)
    assert torch.equal(clip_of_blocks(blocks, *layout, num_frames), sample)


LINEAR_KL = {**TINY_KL, "latent_channels": 6, "linear_path": True, "pixel_range": (-1.0, 1.0)}
BLOCKS = {"num_frames": 8, "sample_size": 32, "num_procedural_clips": 60}


@pytest.mark.parametrize("first_frame_alone", [True, False])
def test_an_autoencoder_of_blocks_starts_as_their_linear_codec(first_frame_alone):
    torch.manual_seed(0)
    model = AutoencoderKL3D(**LINEAR_KL, first_frame_alone=first_frame_alone).eval()
    initialize_weights(model)
    layout = block_layout(model)
    components = block_components(whole_clips(ClipDataset(DataConfig(**BLOCKS)), 40), *layout)
    start_blocks_as_linear_codec(model, components)
    sample = stack_clips(ProceduralClips(6, 8, 32, 32, seed=5), range(6))
    linear = BlockCodec(components, layout[0], 6, layout[1]).reconstruct(sample)
    with torch.no_grad():
        decoded = model.decode(model.encode(sample).latent_dist.mode(), *sample.shape[2:]).sample
    assert abs(clip_psnr(sample, decoded) - clip_psnr(sample, linear)) < 0.1


@pytest.mark.parametrize("name", ["frame_select_vae", "autoencoder_kl_3d"])
def test_every_validation_has_the_linear_codec_beside_the_model(write_config, tmp_path, name):
    module, model = {
        "frame_select_vae": (train_frame_select_vae, TINY_VAE),
        "autoencoder_kl_3d": (train_autoencoder_kl_3d, TINY_KL),
    }[name]
    run = {"baseline_clips": 40, "max_steps": 2, "validate_every": 1}
    module.main(write_config(model, run=run, data=BLOCKS))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["split"] == "validation"]
    names = [name for name in found[0] if name.startswith("psnr_linear")]
    assert len(found) == 2 and len(names) >= 2 and all(line[name] > 10 for line in found for name in names)
    fixed = "psnr_linear_full" if model is TINY_VAE else "psnr_linear"  # the other masks are the model's own
    assert found[0][fixed] == found[1][fixed]
    # Data too small for the components of its patches are named.
    with pytest.raises(ValueError, match="principal components need more than"):
        module.main(write_config(model, "small", run={"baseline_clips": 1, "max_steps": 1}))
