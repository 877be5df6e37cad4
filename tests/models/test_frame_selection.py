"""Promises of `select_frames`, `pack_frames` and `unpack_frames`, on clips of any length and probability."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_vidvae import FrameSelectVAE
from diffusers_vidvae.models.frame_selection import SELECTION_MODES


VAE = FrameSelectVAE(
    sample_size=8,
    patch_size=4,
    latent_channels=3,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_attention_heads=1,
    attention_head_dim=4,
    ff_inner_dim=4,
    refiner_channels=8,
    refiner_levels=1,
)
COUNTED_MODES = ("systematic", "top_k", "uniform")

probabilities = st.lists(st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.9, 1.0]), min_size=1, max_size=12)


@st.composite
def ragged_probs(draw):
    rows = draw(st.lists(probabilities, min_size=1, max_size=4))
    longest = max(map(len, rows))
    probs = torch.tensor([row + [0.3] * (longest - len(row)) for row in rows])
    frame_mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    return probs, frame_mask


@settings(deadline=None)
@given(ragged_probs(), st.sampled_from(SELECTION_MODES), st.integers(0, 3))
def test_padding_is_never_kept_and_some_frame_always_is(clips, mode, seed):
    probs, frame_mask = clips
    generator = torch.Generator().manual_seed(seed)
    keep_mask = VAE.select_frames(probs, frame_mask, mode=mode, generator=generator)
    assert keep_mask.shape == probs.shape and keep_mask.dtype == torch.bool
    assert not (keep_mask & ~frame_mask).any()
    assert keep_mask.any(dim=1).all()


@settings(deadline=None)
@given(ragged_probs(), st.sampled_from(COUNTED_MODES), st.data())
def test_counts_are_exact(clips, mode, data):
    probs, frame_mask = clips
    lengths = frame_mask.sum(dim=1)
    num_frames = data.draw(st.integers(1, int(lengths.min())))
    generator = data.draw(st.sampled_from([None, torch.Generator().manual_seed(0)]))
    keep_mask = VAE.select_frames(probs, frame_mask, mode=mode, num_frames=num_frames, generator=generator)
    assert (keep_mask.sum(dim=1) == num_frames).all()
    keep_mask = VAE.select_frames(probs, frame_mask, mode=mode, rate=0.5, generator=generator)
    assert torch.equal(keep_mask.sum(dim=1), (lengths * 0.5).round().long().clamp(min=1))
    keep_mask = VAE.select_frames(probs, frame_mask, mode=mode)
    expected = (probs * frame_mask).sum(dim=1).round().long().clamp(min=1)
    assert torch.equal(keep_mask.sum(dim=1), torch.minimum(expected, lengths))


@settings(deadline=None)
@given(ragged_probs(), st.sampled_from(["systematic", "threshold", "top_k", "uniform"]))
def test_a_clip_is_selected_as_if_alone(clips, mode):
    probs, frame_mask = clips
    together = VAE.select_frames(probs, frame_mask, mode=mode)
    for clip, length in enumerate(frame_mask.sum(dim=1).tolist()):
        alone = VAE.select_frames(probs[clip : clip + 1, :length], mode=mode)
        assert torch.equal(together[clip, :length], alone[0])


@pytest.mark.parametrize(("num_frames", "kept"), [(12, 4), (12, 3), (7, 7), (10, 1), (9, 3)])
def test_flat_probabilities_give_uniform_spacing(num_frames, kept):
    systematic = VAE.select_frames(torch.full((1, num_frames), 0.37), num_frames=kept)
    uniform = VAE.select_frames(torch.rand(1, num_frames), mode="uniform", num_frames=kept)
    assert torch.equal(systematic, uniform)
    positions = uniform[0].nonzero().squeeze(1)
    assert positions.diff().unique().numel() <= 1


def test_systematic_selection_follows_the_probability():
    probs = torch.full((1, 16), 0.01)
    probs[:, 8:12] = 0.9
    kept = VAE.select_frames(probs, num_frames=4)[0].nonzero().squeeze(1).tolist()
    assert kept == [8, 9, 10, 11]


def test_crowded_quantiles_spread_to_both_sides():
    probs = torch.zeros(1, 9)
    probs[:, 4] = 1.0
    kept = VAE.select_frames(probs, num_frames=3)[0].nonzero().squeeze(1).tolist()
    assert kept == [3, 4, 5]
    probs = torch.zeros(1, 9)
    probs[:, 0] = 1.0
    kept = VAE.select_frames(probs, num_frames=3)[0].nonzero().squeeze(1).tolist()
    assert kept == [0, 1, 2]


def test_systematic_sampling_keeps_each_frame_as_often_as_its_probability():
    probs = torch.tensor([[0.9, 0.1, 0.4, 0.6, 0.7, 0.3]])  # sums to 3
    draws = torch.cat([VAE.select_frames(probs, generator=torch.Generator().manual_seed(i)) for i in range(4000)])
    torch.testing.assert_close(draws.float().mean(dim=0), probs[0], atol=0.03, rtol=0)


def test_bernoulli_keeps_each_frame_with_its_probability():
    probs = torch.tensor([0.9, 0.1, 0.5]).expand(20000, -1)
    keep_mask = VAE.select_frames(probs, mode="bernoulli", generator=torch.Generator().manual_seed(0))
    # Clips that draw nothing keep their most probable frame.
    nothing = 0.1 * 0.9 * 0.5
    expected = torch.tensor([0.9 + nothing, 0.1, 0.5])
    torch.testing.assert_close(keep_mask.float().mean(dim=0), expected, atol=0.015, rtol=0)


def test_threshold_and_top_k_take_the_most_probable():
    probs = torch.tensor([[0.2, 0.8, 0.4, 0.6]])
    assert VAE.select_frames(probs, mode="threshold").tolist() == [[False, True, False, True]]
    assert VAE.select_frames(probs, mode="threshold", threshold=0.3).tolist() == [[False, True, True, True]]
    assert VAE.select_frames(probs, mode="threshold", threshold=0.95).tolist() == [[False, True, False, False]]
    assert VAE.select_frames(probs, mode="top_k", num_frames=2).tolist() == [[False, True, False, True]]


def test_every_clip_can_have_its_own_generator():
    probs = torch.full((3, 12), 0.5)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 5)]
    keep_mask = VAE.select_frames(probs, mode="bernoulli", generator=generators)
    assert torch.equal(keep_mask[0], keep_mask[2])
    assert not torch.equal(keep_mask[0], keep_mask[1])
    alone = VAE.select_frames(probs[:1], mode="bernoulli", generator=torch.Generator().manual_seed(6))
    assert torch.equal(alone[0], keep_mask[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "random"}, "must be one of .*'systematic'.* got 'random'"),
        ({"num_frames": 0}, "from 1 to the clip's number of frames, got 0"),
        ({"num_frames": 5}, "from 1 to the shortest clip's 4 frames, got 5"),
        ({"rate": 0.0}, r"in \(0, 1\], got 0.0"),
        ({"rate": 1.5}, r"in \(0, 1\], got 1.5"),
        ({"rate": 0.5, "num_frames": 2}, "not both, got 2 and 0.5"),
        ({"mode": "threshold", "num_frames": 2}, "do not apply to mode 'threshold'"),
        ({"mode": "threshold", "threshold": 2}, r"`threshold` must be in \[0, 1\], got 2"),
        ({"mode": "bernoulli", "rate": 0.5}, "do not apply to mode 'bernoulli'"),
        ({"mode": "bernoulli", "generator": [torch.Generator()]}, "each of the 2 clips, got 1"),
        ({"frame_mask": torch.ones(2, 5)}, r"\(2, 4\), got \(2, 5\)"),
        ({"frame_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])}, "at least one real frame"),
    ],
)
def test_impossible_requests_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE.select_frames(torch.full((2, 4), 0.5), **arguments)


@settings(deadline=None)
@given(ragged_probs(), st.integers(0, 5))
def test_unpacking_is_the_inverse_of_packing(clips, seed):
    probs, frame_mask = clips
    generator = torch.Generator().manual_seed(seed)
    keep_mask = VAE.select_frames(probs, frame_mask, mode="bernoulli", generator=generator)
    latents = torch.randn(len(probs), 3, probs.shape[1], 2, 2, generator=generator)

    packed = VAE.pack_frames(latents, keep_mask, frame_mask)
    assert torch.equal(packed.mask.sum(dim=1), keep_mask.sum(dim=1))
    assert (packed.gaps[:, 1:][packed.mask[:, 1:]] >= 1).all() and (packed.gaps[:, 0] >= 0).all()
    assert not packed.latents.movedim(1, -1)[~packed.mask].any() and not packed.gaps[~packed.mask].any()

    unpacked, unpacked_keep_mask, unpacked_frame_mask = VAE.unpack_frames(packed)
    assert torch.equal(unpacked_keep_mask, keep_mask)
    assert torch.equal(unpacked_frame_mask, frame_mask)
    assert torch.equal(unpacked, latents * keep_mask[:, None, :, None, None])


def test_gaps_beyond_the_clip_are_named():
    packed = VAE.pack_frames(torch.randn(1, 3, 4, 2, 2), torch.tensor([[True, False, False, True]]))
    packed.gaps[0, 1] = 7
    with pytest.raises(ValueError, match=r"lead to frame 7 of a clip of \[4\] frames"):
        VAE.unpack_frames(packed)
