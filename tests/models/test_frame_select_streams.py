"""Promises of streams: a clip in pieces is the clip, whatever the pieces, and every window keeps a frame."""

from __future__ import annotations

import pytest
import torch
from test_frame_select_vae import ANY_SIZE, TINY, assert_close, clips, length_mask, make_vae

from diffusers_vidvae.models.clip_windows import clip_windows, stream_windows


PIECES = [[4, 4, 2], [1] * 10, [3, 5, 2], [10], [9, 1]]


@pytest.fixture(scope="module", params=[TINY, ANY_SIZE], ids=["original", "any_size"])
def vae(request):
    return make_vae(**request.param)


@pytest.mark.parametrize("lengths", [*PIECES, [2], [4], [1, 2], [0, 4, 0, 4]])
def test_windows_of_a_stream_are_those_of_the_clip(lengths):
    clip = torch.arange(sum(lengths))[None]
    windows = list(stream_windows(((piece,) for piece in clip.split(lengths, dim=1)), 4))
    assert [window for window, _ in windows] == clip_windows(sum(lengths), 4)
    for window, (frames,) in windows:
        assert frames[0].tolist() == list(range(window.start, window.stop))


def test_windows_come_as_soon_as_they_are_full():
    def pieces():
        yield (torch.zeros(1, 5),)
        raise RuntimeError("the second piece is not needed yet")

    window, _ = next(stream_windows(pieces(), 4))
    assert window == (0, 4, 0)


@pytest.mark.parametrize("lengths", PIECES)
def test_streams_give_what_the_whole_clip_gives(vae, lengths):
    sample = clips(2, 10)
    with torch.no_grad():
        expected = vae(sample)
        latents = vae.encode(sample).latent_dist.mode()
    selected = list(vae.select_stream(vae.encode_stream(sample.split(lengths, dim=2))))
    assert [keep_mask.shape[1] for _, keep_mask in selected] == [4, 4, 2]
    assert_close(torch.cat([output.latent_dist.mode() for output, _ in selected], dim=2), latents)
    assert_close(torch.cat([output.keep_probs for output, _ in selected], dim=1), expected.keep_probs)
    keep_mask = torch.cat([keep_mask for _, keep_mask in selected], dim=1)
    assert torch.equal(keep_mask, expected.keep_mask)
    pieces = zip(latents.split(lengths, dim=2), keep_mask.split(lengths, dim=1), strict=True)
    assert_close(torch.cat(list(vae.decode_stream(pieces)), dim=2), expected.sample)


@pytest.mark.parametrize("selection", [{"mode": "threshold"}, {"rate": 0.1}, {"mode": "uniform", "num_frames": 3}])
def test_every_window_keeps_a_frame(vae, selection):
    keep_probs = torch.zeros(2, 10)
    keep_probs[0, 9] = keep_probs[1, 0] = 0.9
    frame_mask = length_mask(10, 9)
    keep_mask = vae.select_frames(keep_probs, frame_mask, **selection)
    for window in clip_windows(10, 4):
        assert keep_mask[:, window.first_new : window.stop].any(dim=1).all()
    assert not (keep_mask & ~frame_mask).any()
    with pytest.raises(ValueError, match="every window of 4, all of frames 0 to 3 are dropped"):
        vae.decode(torch.zeros(1, 6, 10, 2, 2), torch.arange(10)[None] == 8)


def test_fewer_frames_than_windows_are_refused(vae):
    with pytest.raises(ValueError, match="from 3, one for each window, to the clip's 10 frames, got 1"):
        vae.select_frames(torch.rand(1, 10), mode="uniform", num_frames=1)


@pytest.mark.parametrize("mode", ["systematic", "top_k", "uniform"])
def test_counts_of_long_clips_are_exact(vae, mode):
    keep_probs = torch.rand(2, 11)
    assert (vae.select_frames(keep_probs, mode=mode, num_frames=7).sum(dim=1) == 7).all()
    assert (vae.select_frames(keep_probs, mode=mode, rate=0.6).sum(dim=1) == 7).all()


def test_budgets_of_streams_need_the_length_and_hold_it_to_be_true(vae):
    def select(**options):
        return list(vae.select_stream(vae.encode_stream([clips(1, 10)]), num_frames=5, **options))

    assert sum(int(keep_mask.sum()) for _, keep_mask in select(total_frames=10)) == 5
    with pytest.raises(ValueError, match="5 needs `total_frames`, the clip's length, got None"):
        select()
    for total_frames in (9, 11):
        with pytest.raises(ValueError, match=f"among {total_frames} frames, but the clip has 10"):
            select(total_frames=total_frames)


@torch.no_grad()
def test_a_window_may_be_as_long_as_the_models_positions(vae):
    latents, keep_mask = torch.randn(1, 6, 7, 2, 2), torch.arange(7)[None] % 3 == 1
    (frames,) = vae.decode_stream([(latents, keep_mask)], clip_num_frames=8)
    assert frames.shape[2] == 7
    # One window sees the whole clip: the last frames depend on the first.
    latents[:, :, 1] = 0
    assert not torch.allclose(frames[:, :, 6], next(vae.decode_stream([(latents, keep_mask)], 8))[:, :, 6])
    for too_long in (0, 9):
        with pytest.raises(ValueError, match=f"from 1 to the model's `max_num_frames`, 8, got {too_long}"):
            list(vae.decode_stream([(latents, keep_mask)], clip_num_frames=too_long))
        with pytest.raises(ValueError, match=f"got {too_long}"):
            list(vae.encode_stream([clips(1, 3)], clip_num_frames=too_long))


def test_pieces_that_do_not_fit_are_named(vae):
    with pytest.raises(ValueError, match="number of frames only"):
        list(vae.encode_stream([clips(1, 2), clips(2, 2)]))
    with pytest.raises(ValueError, match=r"`keep_mask` must have shape \(batch, frames\) = \(1, 3\), got \(1, 2\)"):
        list(vae.decode_stream([(torch.zeros(1, 6, 3, 2, 2), torch.ones(1, 2))]))
