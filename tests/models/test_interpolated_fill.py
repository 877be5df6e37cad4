"""What the decoder of a FrameSelectVAE reads when latents are blended and channels take turns."""

import pytest
import torch

from diffusers_vidvae import FrameSelectVAE
from diffusers_vidvae.models.frame_fill import ChannelCycle, InterpolatedFill, TemporalFilter, WienerFill


MODEL = {
    "sample_size": 16,
    "patch_size": 8,
    "latent_channels": 6,
    "num_encoder_layers": 0,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "ff_inner_dim": 24,
    "max_num_frames": 8,
    "clip_num_frames": 4,
    "unpatch_channels": 1,
    "refiner_levels": 0,
    "hidden_size": 24,
    "patch_norm": False,
    "rope_type": "axial",
    "keep_head": "pooled",
    "fill": "interpolate",
    "cycle_channels": 2,
    "cycle_length": 3,
}


WIENER = MODEL | {"fill": "wiener", "filter_size": 3, "decoder_context": True}


@pytest.fixture(params=[MODEL, WIENER], ids=["interpolate", "wiener"])
def vae(request):
    torch.manual_seed(0)
    model = FrameSelectVAE(**request.param).eval()
    if model.encoder.temporal_filter is not None:
        torch.nn.init.constant_(model.encoder.temporal_filter.weight, 1 / 3)
        torch.nn.init.normal_(model.decoder.context.weight, std=0.1)
    return model


def one_channel(values):
    return torch.tensor(values, dtype=torch.float32)[None, None, :, None, None]


def test_dropped_frames_are_blended_by_distance_and_held_at_the_ends():
    fill = InterpolatedFill(ChannelCycle(1, 0, 3))
    latents = one_channel([float("nan"), 2.0, float("nan"), float("nan"), float("nan"), 6.0, float("nan")])
    features = fill(latents, ~latents.isnan()[:, 0, :, 0, 0])[0, :, :, 0, 0]
    blend, change, before, after = features
    assert blend.tolist() == [2, 2, 3, 4, 5, 6, 6]
    assert change.tolist() == [0, 0, 4, 4, 4, 0, 0]
    torch.testing.assert_close(before, torch.tensor([0, 1, 1 / 2, 1 / 3, 1 / 4, 1, 1 / 2]))
    torch.testing.assert_close(after, torch.tensor([1 / 2, 1, 1 / 4, 1 / 3, 1 / 2, 1, 0]))


def test_each_group_of_a_cycle_is_blended_between_the_frames_that_send_it():
    fill = InterpolatedFill(ChannelCycle(1, 1, 2))  # no constant channel, two groups of one channel
    latents = one_channel([0.0, 10.0, 4.0, 30.0])
    even, odd = fill(latents, torch.ones(1, 4, dtype=torch.bool))[0, :2, :, 0, 0]
    assert even.tolist() == [0, 2, 4, 4]
    assert odd.tolist() == [10, 10, 20, 30]
    odd_first = fill(latents, torch.ones(1, 4, dtype=torch.bool), first_frame=1)[0, 0, :, 0, 0]
    assert odd_first.tolist() == odd.tolist()


def test_a_group_that_nobody_sends_reads_as_zero():
    fill = InterpolatedFill(ChannelCycle(1, 1, 2))
    features = fill(one_channel([1.0, float("nan")]), torch.tensor([[True, False]]))[0, :, :, 0, 0]
    assert features[1].tolist() == [0, 0]
    assert features.isfinite().all()


def clip_filter(taps, num_frames):
    temporal_filter = TemporalFilter(1, len(taps))
    temporal_filter.weight.data[:] = torch.tensor(taps)
    return temporal_filter.matrix(torch.tensor([num_frames]), num_frames)


def test_a_filter_stays_within_its_clip():
    matrix = TemporalFilter(1, 3)
    matrix.weight.data[:] = torch.tensor([0.25, 0.5, 0.25])
    values = torch.tensor([4.0, 0.0, 8.0, 100.0])[None, :, None, None]
    filtered = matrix(values, torch.tensor([3]))[0, :, 0, 0]
    assert filtered[:3].tolist() == [3, 3, 6]


def test_estimates_are_those_of_conditional_expectation():
    """The formula for jointly normal variables, written out for two known frames of four."""
    fill = WienerFill(ChannelCycle(1, 0, 1), 4)
    fill.noise = 0.0
    fill.correlation.data[:] = torch.tensor([1.0, 0.8, 0.5, 0.3])
    matrix = clip_filter([0.2, 0.6, 0.2], 4)
    covariance = fill.correlation[0][(torch.arange(4)[:, None] - torch.arange(4)).abs()]
    shown = matrix[0, 0, [0, 2]]
    expected = covariance @ shown.T @ torch.linalg.inv(shown @ covariance @ shown.T)
    latents = one_channel([1.5, float("nan"), -0.5, float("nan")])
    features = fill(latents, ~latents.isnan()[:, 0, :, 0, 0], 0, matrix)[0, :, :, 0, 0]
    torch.testing.assert_close(features[0], expected @ torch.tensor([1.5, -0.5]))
    unknown = 1 - (expected * (covariance @ shown.T)).sum(dim=1)
    torch.testing.assert_close(features[1], unknown, atol=1e-5, rtol=1e-4)


def test_all_kept_frames_undo_the_filter():
    fill = WienerFill(ChannelCycle(1, 0, 1), 8)
    fill.noise = 1e-6
    matrix = clip_filter([0.2, 0.6, 0.2], 8)
    frames = torch.randn(8)
    latents = (matrix[0, 0] @ frames)[None, None, :, None, None]
    estimates = fill(latents, torch.ones(1, 8, dtype=torch.bool), 0, matrix)[0, 0, :, 0, 0]
    torch.testing.assert_close(estimates, frames, atol=1e-2, rtol=0)


def test_turns_go_on_from_window_to_window():
    """The frames of a long clip send what they would send in a clip of their own that starts with their turn."""
    vae = FrameSelectVAE(**MODEL).eval()
    sample = torch.rand(1, 3, 10, 16, 16) * 2 - 1
    with torch.no_grad():
        whole = vae.encode(sample).latent_dist.mode()
        for frame in range(10):
            alone = vae.encode(sample[:, :, frame : frame + 1].expand(-1, -1, 4, -1, -1)).latent_dist.mode()
            torch.testing.assert_close(whole[:, :, frame], alone[:, :, frame % 3])


def test_windows_decode_alike_alone_and_within_a_clip(vae):
    """Each window is filled in from its own kept frames."""
    latents = torch.randn(1, 6, 8, 2, 2)
    keep_mask = torch.tensor([[True, False, False, True, False, True, False, False]])
    with torch.no_grad():
        whole = vae.decode(latents, keep_mask).sample
        first = vae.decode(latents[:, :, :4], keep_mask[:, :4]).sample
    torch.testing.assert_close(whole[:, :, :4], first)


def test_latents_of_dropped_frames_are_not_read(vae):
    latents = torch.randn(2, 6, 4, 2, 2)
    keep_mask = torch.tensor([[True, False, False, True], [False, True, False, False]])
    hidden = latents.masked_fill(~keep_mask[:, None, :, None, None], float("nan"))
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(hidden, keep_mask).sample, vae.decode(latents, keep_mask).sample)


def test_clips_of_one_batch_do_not_influence_each_other(vae):
    latents = torch.randn(2, 6, 8, 2, 2)
    keep_mask = torch.tensor([[True, False, True, False, False, True, False, True], [False, True, False, False] * 2])
    frame_mask = torch.tensor([[True] * 8, [True] * 6 + [False] * 2])
    with torch.no_grad():
        together = vae.decode(latents, keep_mask, frame_mask).sample
        alone = vae.decode(latents[1:, :, :6], keep_mask[1:, :6]).sample
    torch.testing.assert_close(together[1:, :, :6], alone)


def test_config_round_trip(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    loaded = FrameSelectVAE.from_pretrained(tmp_path).eval()
    latents = torch.randn(1, 6, 4, 2, 2)
    with torch.no_grad():
        assert torch.equal(loaded.decode(latents).sample, vae.decode(latents).sample)
