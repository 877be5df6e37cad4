"""Fidelity of single frames: PSNR, SSIM and MS-SSIM, of `(batch, channels, height, width)` images in [0, 1]."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


PSNR_LIMIT = 100.0

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_MIN_SIDE = SSIM_WINDOW * 2 ** (len(MS_SSIM_WEIGHTS) - 1)


def psnr_from_mse(mse: Tensor) -> Tensor:
    """PSNR in dB of mean squared errors of pixels in [0, 1], at most 100 dB so that identical frames stay a number."""
    return (-10 * torch.log10(mse)).clamp(max=PSNR_LIMIT)


def psnr(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """PSNR in dB of each image, `(batch,)`."""
    return psnr_from_mse((reference - reconstruction).square().flatten(1).mean(1))


def ssim(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity of each image, `(batch,)`, the mean over its channels.

    Gaussian window of 11 pixels with a deviation of 1.5, at the places where it fits into the image (Wang et al.,
    "Image quality assessment: from error visibility to structural similarity", 2004). scikit-image does the same;
    torchmetrics also averages over a mirrored border, which changes its figures.

    Raises:
        ValueError: A side is shorter than the window.
    """
    _check_sides(reference, SSIM_WINDOW)
    luminance, contrast = _ssim_maps(reference, reconstruction)
    return (luminance * contrast).flatten(1).mean(1)


def ms_ssim(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity over five scales of each image, `(batch,)`.

    Negative contrast terms count as zero (Wang et al., "Multi-scale structural similarity for image quality
    assessment", 2003).

    Raises:
        ValueError: A side is shorter than 176 pixels, which are the window at the coarsest scale.
    """
    _check_sides(reference, MS_SSIM_MIN_SIDE)
    result = torch.ones(len(reference), device=reference.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            reference, reconstruction = F.avg_pool2d(reference, 2), F.avg_pool2d(reconstruction, 2)
        luminance, contrast = _ssim_maps(reference, reconstruction)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        similarity = (luminance * contrast if last else contrast).flatten(1).mean(1)
        result = result * similarity.clamp(min=0) ** weight
    return result


def _check_sides(image: Tensor, least: int) -> None:
    height, width = image.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"{height} x {width} pixels are too few, each side needs at least {least}")


def _ssim_maps(reference: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    batch = len(reference)
    moments = torch.cat(
        [
            reference,
            reconstruction,
            reference.square(),
            reconstruction.square(),
            reference * reconstruction,
        ]
    )
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _gaussian_means(moments).split(batch)
    mean_product, mean_squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    luminance = (2 * mean_product + SSIM_C1) / (mean_squares + SSIM_C1)
    contrast = (2 * (mean_xy - mean_product) + SSIM_C2) / (mean_xx + mean_yy - mean_squares + SSIM_C2)
    return luminance, contrast


def _gaussian_means(images: Tensor) -> Tensor:
    """Means under the window at each place where it fits."""
    weights = [math.exp(-((i - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2)) for i in range(SSIM_WINDOW)]
    for dim in (-2, -1):
        # A sum of shifts, where a convolution would be rounded to TF32 on some GPUs.
        size = images.shape[dim] - SSIM_WINDOW + 1
        shifts = (images.narrow(dim, i, size) * (weight / sum(weights)) for i, weight in enumerate(weights))
        images = functools.reduce(Tensor.add_, shifts)
    return images
