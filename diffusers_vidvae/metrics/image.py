"""Fidelity of single frames: PSNR, SSIM and MS-SSIM, of `(batch, channels, height, width)` images in [0, 1]."""

from __future__ import annotations

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


def clip_psnr(reference: Tensor, reconstruction: Tensor) -> float:
    """PSNR in dB over all pixels of a batch of clips in [-1, 1], of which the reconstruction is clamped to that."""
    error = (reference.float() - reconstruction.float().clamp(-1, 1)) / 2
    return float(psnr_from_mse(error.square().mean()))


def ssim(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity of each image, `(batch,)`, the mean over its channels.

    Gaussian window of 11 pixels with a deviation of 1.5, at the places where it fits into the image (Wang et al.,
    "Image quality assessment: from error visibility to structural similarity", 2004). scikit-image does the same;
    torchmetrics also averages over a mirrored border, which changes its figures.

    Raises:
        ValueError: A side is shorter than the window.
    """
    _check_sides(reference, SSIM_WINDOW)
    return _similarity_and_contrast(reference, reconstruction)[0]


def ms_ssim(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity over five scales of each image, `(batch,)`.

    Negative contrast terms count as zero (Wang et al., "Multi-scale structural similarity for image quality
    assessment", 2003).

    Raises:
        ValueError: A side is shorter than 176 pixels, which are the window at the coarsest scale.
    """
    _check_sides(reference, MS_SSIM_MIN_SIDE)
    return _ssims(reference, reconstruction)[1]


def ssim_and_ms_ssim(reference: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """Both measures at little more than the cost of one of them; `ssim` and `ms_ssim` tell the rest."""
    _check_sides(reference, MS_SSIM_MIN_SIDE)
    return _ssims(reference, reconstruction)


def _ssims(reference: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    terms = []
    for scale in range(len(MS_SSIM_WEIGHTS)):
        if scale:
            reference, reconstruction = F.avg_pool2d(reference, 2), F.avg_pool2d(reconstruction, 2)
        terms.append(_similarity_and_contrast(reference, reconstruction))
    similarities, contrasts = torch.stack([torch.stack(term) for term in terms], dim=1)  # (scales, batch) each
    factors = torch.cat([contrasts[:-1], similarities[-1:]]).clamp(min=0)
    weights = torch.tensor(MS_SSIM_WEIGHTS, device=factors.device)[:, None]
    return similarities[0], (factors**weights).prod(0)


def _check_sides(image: Tensor, least: int) -> None:
    height, width = image.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"{height} x {width} pixels are too few, each side needs at least {least}.")


def _similarity_and_contrast(reference: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast and structure term alone, each averaged over the image, `(batch,)`."""
    squares, product = reference.square() + reconstruction.square(), reference * reconstruction
    means = _gaussian_means(torch.cat([reference, reconstruction, squares, product]))
    mean_x, mean_y, mean_xx_yy, mean_xy = means.split(len(reference))
    mean_product, mean_squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    luminance = (2 * mean_product + SSIM_C1) / (mean_squares + SSIM_C1)
    contrast = (2 * (mean_xy - mean_product) + SSIM_C2) / (mean_xx_yy - mean_squares + SSIM_C2)
    return (luminance * contrast).flatten(1).mean(1), contrast.flatten(1).mean(1)


def _gaussian_means(images: Tensor) -> Tensor:
    """Means under the window at each place where it fits."""
    weights = [math.exp(-((i - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2)) for i in range(SSIM_WINDOW)]
    for dim in (-2, -1):
        # A sum of shifts is faster than a convolution on CPUs, and not rounded to TF32 on GPUs.
        size = images.shape[dim] - SSIM_WINDOW + 1
        total = images.narrow(dim, 0, size) * (weights[0] / sum(weights))
        for i in range(1, SSIM_WINDOW):
            total.add_(images.narrow(dim, i, size), alpha=weights[i] / sum(weights))
        images = total
    return images
