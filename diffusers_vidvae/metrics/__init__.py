"""Measures of reconstructed clips, in plain torch and without learned weights but for the optional LPIPS."""

from __future__ import annotations

from .clip import ClipMetrics, PerceptualMetric, evaluate_clip
from .image import clip_psnr, ms_ssim, psnr, psnr_from_mse, ssim
from .lpips import LPIPS
from .pixels import as_frames
from .rate import bd_quality, bd_rate, bits_per_pixel, kilobits_per_second, values_per_pixel
from .temporal import (
    boundary_ratio,
    flicker_level,
    pixel_steps,
    seam_ratio,
    still_pixel_changes,
    temporal_difference_mse,
)
from .vmaf import VmafScores, find_vmaf_ffmpeg, vmaf


__all__ = [
    "LPIPS",
    "ClipMetrics",
    "PerceptualMetric",
    "VmafScores",
    "as_frames",
    "bd_quality",
    "bd_rate",
    "bits_per_pixel",
    "boundary_ratio",
    "clip_psnr",
    "evaluate_clip",
    "find_vmaf_ffmpeg",
    "flicker_level",
    "kilobits_per_second",
    "ms_ssim",
    "pixel_steps",
    "psnr",
    "psnr_from_mse",
    "seam_ratio",
    "ssim",
    "still_pixel_changes",
    "temporal_difference_mse",
    "values_per_pixel",
    "vmaf",
]
