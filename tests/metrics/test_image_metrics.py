from __future__ import annotations

import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from diffusers_vidvae.metrics import as_frames, clip_psnr, ms_ssim, psnr, ssim


def image_pair(height: int, width: int, noise: float, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    coarse = torch.rand(batch, 3, 6, 7)
    reference = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return reference, (reference + noise * torch.randn_like(reference)).clamp(0, 1)


@pytest.mark.parametrize("noise", [0.005, 0.1])
def test_psnr_agrees_with_torchmetrics(noise):
    pair = image_pair(33, 40, noise)
    expected = peak_signal_noise_ratio(pair[1], pair[0], data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(*pair), expected)


def test_psnr_of_clips_clamps_what_overshoots():
    clips = torch.zeros(1, 3, 2, 2, 2)
    assert clip_psnr(clips, clips + 0.2) == pytest.approx(20)
    assert clip_psnr(clips + 1, clips + 1.5) == 100


def torchmetrics_maps(reference, reconstruction) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean SSIM over the places where the window fits, and mean contrast term."""
    options = {"data_range": 1.0, "reduction": "none"}
    _, full = structural_similarity_index_measure(reconstruction, reference, return_full_image=True, **options)
    _, contrast = structural_similarity_index_measure(
        reconstruction, reference, return_contrast_sensitivity=True, **options
    )
    return full[..., 5:-5, 5:-5].flatten(1).mean(1), contrast


@pytest.mark.parametrize("noise", [0.005, 0.1])
@pytest.mark.parametrize("size", [(11, 11), (33, 40)])
def test_ssim_agrees_with_scikit_image_and_torchmetrics(noise, size):
    pair = image_pair(*size, noise)
    result = ssim(*pair)
    torch.testing.assert_close(result, torchmetrics_maps(*pair)[0], atol=1e-4, rtol=0)
    for value, *images in zip(result.tolist(), *(images.double().numpy() for images in pair), strict=True):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = structural_similarity(*images, data_range=1.0, channel_axis=0, **options)
        assert value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("noise", [0.005, 0.1])
@pytest.mark.parametrize("size", [(176, 180), (203, 176)])
def test_ms_ssim_agrees_with_torchmetrics_at_every_scale(noise, size):
    pair = image_pair(*size, noise)
    expected, images = torch.ones(2), pair
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        similarity, contrast = torchmetrics_maps(*images)
        expected *= (similarity if scale == 4 else contrast) ** weight
        images = [torch.nn.functional.avg_pool2d(image, 2) for image in images]
    torch.testing.assert_close(ms_ssim(*pair), expected, atol=1e-4, rtol=0)


def test_identical_images_score_best():
    image = image_pair(180, 180, 0)[0]
    assert psnr(image, image).tolist() == [100, 100]
    torch.testing.assert_close(ssim(image, image), torch.ones(2))
    torch.testing.assert_close(ms_ssim(image, image), torch.ones(2))


@pytest.mark.parametrize(("metric", "least"), [(ssim, 11), (ms_ssim, 176)])
def test_images_smaller_than_the_window_are_refused(metric, least):
    image = torch.zeros(1, 3, least, least - 1)
    with pytest.raises(ValueError, match=f"{least} x {least - 1} pixels are too few, .*{least}"):
        metric(image, image)


def test_both_layouts_of_pixels_agree():
    array = torch.randint(0, 256, (4, 6, 5, 3), dtype=torch.uint8)
    floats = array.movedim(-1, 0)[None].float() / 127.5 - 1
    torch.testing.assert_close(as_frames(array.numpy()), as_frames(floats))
    torch.testing.assert_close(as_frames(array[None]), as_frames(floats))


def test_pixels_beyond_the_range_count_as_shown():
    assert as_frames(torch.full((1, 3, 1, 2, 2), 1.5)).max() == 1


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([1, 2], "Expected a tensor or an array of pixels, got list"),
        (torch.zeros(3, 4, 5), r"got torch.float32 \(3, 4, 5\)"),
        (torch.zeros(1, 3, 2, 4, 4, dtype=torch.int64), "got torch.int64"),
        (torch.zeros(1, 3, 0, 4, 4), "at least one frame"),
        (torch.full((1, 3, 1, 4, 4), torch.nan), "48 of 48 pixel values are not finite"),
        (torch.tensor([0.5, torch.inf]).expand(1, 3, 1, 4, 2), "12 of 24 pixel values are not finite"),
    ],
)
def test_other_inputs_are_refused(video, message):
    with pytest.raises(ValueError, match=message):
        as_frames(video)
