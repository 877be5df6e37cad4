from __future__ import annotations

import math

import pytest
import torch

from diffusers_vidvae.metrics import ClipMetrics, as_frames, evaluate_clip, ssim


def random_clip(batch=1, frames=6, height=16, width=20) -> torch.Tensor:
    return torch.rand(batch, 3, frames, height, width) * 1.8 - 0.9


def still_clip(frames=8, height=24, width=24) -> torch.Tensor:
    return random_clip(frames=1, height=height, width=width).expand(1, 3, frames, height, width).clone()


def with_noise(clip: torch.Tensor, deviations: list[float]) -> torch.Tensor:
    """Adds noise to each frame, of a deviation given in the range [0, 1]."""
    return clip + 2 * torch.randn_like(clip) * torch.tensor(deviations).reshape(1, 1, -1, 1, 1)


def decibels(mse: float) -> float:
    return -10 * math.log10(mse)


def test_psnr_over_the_clip_and_over_frames():
    reference = torch.zeros(1, 3, 2, 16, 16)
    reconstruction = reference.clone()
    reconstruction[:, :, 0] += 0.2  # 0.1 in the range [0, 1]
    reconstruction[:, :, 1] += 0.02
    scores = evaluate_clip(reference, reconstruction)
    assert scores["psnr"] == pytest.approx(decibels((0.1**2 + 0.01**2) / 2), abs=1e-4)
    assert scores["psnr_frame_mean"] == pytest.approx((20 + 40) / 2, abs=1e-4)
    assert scores["psnr_worst"] == pytest.approx(20, abs=1e-4) and scores["worst_frame"] == 0


def test_identical_clips_are_perfect_and_finite():
    clip = random_clip(height=180, width=176)
    scores = evaluate_clip(clip, clip.clone(), seam_rows=[64], boundaries=[3])
    assert scores["psnr"] == scores["psnr_frame_mean"] == scores["psnr_worst"] == scores["temporal_psnr"] == 100
    assert scores["ssim"] == pytest.approx(1) and scores["ms_ssim"] == pytest.approx(1)
    assert scores["seam_ratio"] == scores["reference_seam_ratio"]
    assert all(value is None or math.isfinite(value) for value in scores.values())


@pytest.mark.parametrize("lengths", [[7], [1] * 7, [3, 4], [2, 1, 4]])
def test_pieces_of_any_length_give_the_same_scores(lengths):
    reference = random_clip(batch=2, frames=7)
    reconstruction = with_noise(reference, [0.01, 0.02, 0.1, 0.01, 0.05, 0.02, 0.03])
    options = {"keep_mask": torch.arange(7) % 3 == 0, "boundaries": [4], "seam_rows": [8], "seam_columns": [8, 16]}
    metrics = ClipMetrics(**options)
    for pair in zip(reference.split(lengths, 2), reconstruction.split(lengths, 2), strict=True):
        metrics.update(*pair)
    assert metrics.compute() == pytest.approx(evaluate_clip(reference, reconstruction, **options))


def test_long_clips_are_measured_whole():
    reference = random_clip(frames=40, height=4, width=4)
    reconstruction = with_noise(reference, [0.01] * 39 + [0.3])
    scores = evaluate_clip(reference, reconstruction)
    assert scores["num_frames"] == 40 and scores["worst_frame"] == 39


def test_uint8_arrays_and_floats_agree():
    reference, reconstruction = (torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8) for _ in range(2))
    floats = [clip.movedim(-1, 0)[None].float() / 127.5 - 1 for clip in (reference, reconstruction)]
    expected = evaluate_clip(*floats)
    assert evaluate_clip(reference.numpy(), reconstruction.numpy()) == pytest.approx(expected)


def test_a_batch_scores_the_mean_of_its_clips():
    reference = random_clip(batch=2)
    reconstruction = with_noise(reference, [0.02] * 6)
    both = evaluate_clip(reference, reconstruction)
    singles = [evaluate_clip(reference[i : i + 1], reconstruction[i : i + 1]) for i in range(2)]
    for name in ("psnr", "psnr_frame_mean", "ssim", "temporal_psnr"):
        assert both[name] == pytest.approx(sum(single[name] for single in singles) / 2)


def test_kept_and_dropped_frames_are_told_apart():
    reference = random_clip()
    offsets = torch.tensor([0.02, 0.2, 0.02, 0.2, 0.2, 0.2]).reshape(1, 1, -1, 1, 1)
    keep_mask = torch.tensor([True, False, True, False, False, False])
    reference = reference * 0.5
    scores = evaluate_clip(reference, reference + offsets, keep_mask)
    assert scores["psnr_kept"] == pytest.approx(40, abs=1e-3)
    assert scores["psnr_dropped"] == pytest.approx(20, abs=1e-3)
    assert scores["keep_rate"] == pytest.approx(1 / 3)


def test_a_clip_without_dropped_frames_has_no_score_for_them():
    clip = random_clip()
    scores = evaluate_clip(clip, clip, torch.ones(6, dtype=torch.bool))
    assert scores["psnr_dropped"] is None and scores["psnr_kept"] == 100


def test_a_constant_error_leaves_the_changes_perfect():
    clip = random_clip() * 0.5
    scores = evaluate_clip(clip, clip + 0.3)
    assert scores["psnr"] < 20 and scores["temporal_psnr"] == 100


def test_temporal_psnr_measures_changes():
    clip = torch.zeros(1, 3, 2, 16, 16)
    reconstruction = clip.clone()
    reconstruction[:, :, 1] += 0.2
    assert evaluate_clip(clip, reconstruction)["temporal_psnr"] == pytest.approx(20, abs=1e-4)


def test_flicker_is_the_noise_of_a_still_clip():
    clip = still_clip(frames=12, height=48, width=48) * 0.8
    scores = evaluate_clip(clip, with_noise(clip, [3 / 255] * 12))
    assert scores["still_flicker"] == pytest.approx(3, rel=0.03)
    assert scores["still_rate"] == 1


def test_moving_pixels_do_not_flicker():
    clip = still_clip() * 0.8
    clip[..., :12] = random_clip(frames=8, height=24, width=12)
    reconstruction = clip.clone()
    reconstruction[..., :12] *= -1
    scores = evaluate_clip(clip, reconstruction)
    assert scores["still_rate"] == pytest.approx(0.5, abs=0.02)
    assert scores["still_flicker"] < 1


def test_a_clip_that_moves_everywhere_has_no_flicker():
    clip = random_clip()
    moving = clip * 0.1 + torch.linspace(-0.8, 0.8, 6).reshape(1, 1, -1, 1, 1)
    assert evaluate_clip(moving, moving)["still_flicker"] is None


def test_a_jump_between_chunks_raises_the_boundary_ratio():
    clip = random_clip(frames=12) * 0.5
    even = with_noise(clip, [0.01] * 12)
    jump = even.clone()
    jump[:, :, 6:] += 0.2
    assert evaluate_clip(clip, even, boundaries=[6])["boundary_ratio"] == pytest.approx(1, abs=0.1)
    assert evaluate_clip(clip, jump, boundaries=[6])["boundary_ratio"] > 5


def test_a_visible_tile_raises_the_seam_ratio():
    clip = random_clip(height=32, width=32) * 0.2
    tiled = clip.clone()
    tiled[..., :, 16:] += 0.3
    scores = evaluate_clip(clip, tiled, seam_columns=[16], seam_rows=[16])
    assert scores["reference_seam_ratio"] == pytest.approx(1, abs=0.1)
    assert scores["seam_ratio"] > 1.5


def test_a_single_image_has_no_temporal_scores():
    image = random_clip(frames=1)
    scores = evaluate_clip(image, image)
    assert scores["temporal_psnr"] is scores["still_flicker"] is scores["boundary_ratio"] is None
    assert scores["psnr"] == 100


def test_tiny_frames_have_no_structural_scores():
    clip = random_clip(height=8, width=8)
    scores = evaluate_clip(clip, clip)
    assert scores["ssim"] is None and scores["ms_ssim"] is None and scores["psnr"] == 100


def test_scores_of_each_frame():
    reference = random_clip(frames=3)
    reconstruction = with_noise(reference, [0.01, 0.05, 0.1])
    metrics = ClipMetrics()
    metrics.update(reference, reconstruction)
    per_frame = metrics.per_frame()
    assert per_frame["psnr"] == sorted(per_frame["psnr"], reverse=True)
    frames = as_frames(reference)[0], as_frames(reconstruction)[0]
    assert per_frame["ssim"] == pytest.approx(ssim(*frames).tolist())
    assert set(per_frame) == {"psnr", "ssim"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_mask": torch.ones(5, dtype=torch.bool)}, r"`keep_mask` has shape \(5,\), the clip \(1, 6\)"),
        ({"boundaries": [6]}, "Border at frame 6, expected 1 to 5"),
        ({"boundaries": range(1, 6)}, "5 of 6 frames are borders"),
        ({"seam_rows": [16]}, "Border at row 16, expected 1 to 15"),
        ({"seam_columns": [0]}, "Border at column 0, expected 1 to 19"),
    ],
)
def test_options_that_do_not_fit_the_clip_are_refused(options, message):
    clip = random_clip()
    with pytest.raises(ValueError, match=message):
        evaluate_clip(clip, clip, **options)


def test_clips_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"is \(1, 6, 3, 16, 20\) and \(1, 6, 3, 16, 16\)"):
        evaluate_clip(random_clip(), random_clip(width=16))
    with pytest.raises(ValueError, match="The reference has 6 frames, the reconstruction 5"):
        evaluate_clip(random_clip(), random_clip(frames=5))
    metrics = ClipMetrics()
    metrics.update(random_clip(), random_clip())
    with pytest.raises(ValueError, match=r"Frames of shape \(3, 8, 20\) follow frames of \(3, 16, 20\)"):
        metrics.update(random_clip(height=8), random_clip(height=8))


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="No frame was measured"):
        ClipMetrics().compute()
