r"""Two clips, frame by frame: how far they are apart, and some frames of both to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusers_vidvae.media import Clip
from diffusers_vidvae.metrics.image import SSIM_WINDOW, psnr_from_mse, ssim
from diffusers_vidvae.metrics.pixels import as_frames


# Containers round rates: Matroska counts milliseconds.
RATE_TOLERANCE = 0.002


@dataclass(frozen=True)
class ClipPair:
    """Two clips that are compared frame by frame, `num_frames` of each; frames of `other` are scaled to `one`'s."""

    one: Clip
    other: Clip
    num_frames: int


@dataclass(frozen=True)
class ComparedFrame:
    """A frame of both clips, small enough to look at.

    Args:
        index: Which frame of the clip.
        psnr: Of the whole frame at its own size, in dB.
        ssim: The same; None where a side is shorter than the window of SSIM.
        one: `(H, W, 3)` of uint8.
        other: The same.
        difference: The amplified absolute difference.
    """

    index: int
    psnr: float
    ssim: float | None
    one: NDArray[np.uint8]
    other: NDArray[np.uint8]
    difference: NDArray[np.uint8]


@dataclass(frozen=True)
class Comparison:
    """How far two clips are apart.

    Args:
        psnr: In dB over all frames, at most 100.
        frame_psnrs: Of every frame.
        num_identical: Frames without any difference.
        shown: Frames at equal steps, and the worst one, in order.
    """

    psnr: float
    frame_psnrs: list[float]
    num_identical: int
    shown: list[ComparedFrame]

    @property
    def worst_frame(self) -> int:
        return int(np.argmin(self.frame_psnrs))


def pair_clips(
    one: Clip, other: Clip, *, resize: bool = False, shorter: bool = False, any_rate: bool = False
) -> ClipPair:
    r"""Makes sure that frames of two clips belong to each other.

    Args:
        one: The original.
        other: What is held against it.
        resize: Scale frames of `other` to the size of `one`'s.
        shorter: Compare as many frames as the shorter clip has.
        any_rate: Compare frame by frame although the rates differ.

    Raises:
        ValueError: Sizes, numbers of frames or rates differ; the message has both, and what would align them.
    """
    sizes = [f"{clip.width}x{clip.height}" for clip in (one, other)]
    if sizes[0] != sizes[1] and not resize:
        raise ValueError(_differ(one, other, "is", sizes, "--resize scales the second's frames to the first's"))
    rates = [None if clip.fps is None else float(clip.fps) for clip in (one, other)]
    if rates[0] and rates[1] and abs(rates[0] - rates[1]) > RATE_TOLERANCE * rates[0] and not any_rate:
        texts = [f"{rate:.5g} fps" for rate in (rates[0], rates[1])]
        hint = "--fps resamples both by time, and --any-rate takes frame by frame"
        raise ValueError(_differ(one, other, "has", texts, hint))
    counts = [clip.count_frames() for clip in (one, other)]
    if counts[0] != counts[1] and not shorter:
        hint = "--shorter compares as many frames as the shorter one has, and --fps resamples both by time"
        raise ValueError(_differ(one, other, "has", [f"{count} frames" for count in counts], hint))
    return ClipPair(one, other, min(counts))


def _differ(one: Clip, other: Clip, verb: str, values: list[str], hint: str) -> str:
    return f"{one.name} {verb} {values[0]} and {other.name} {verb} {values[1]}; {hint}."


def compare_clips(
    pair: ClipPair,
    *,
    num_shown: int,
    most_width: int,
    amplify: float = 4.0,
    advance: Callable[[], None] = lambda: None,
) -> Comparison:
    r"""Compares two clips in constant memory.

    Args:
        pair: The clips.
        num_shown: Frames to show, at equal steps from the first to the last one; the worst comes on top.
        most_width: Width that shown frames are scaled down to; their height is at most twice that.
        amplify: What differences are multiplied by where they are shown.
        advance: Called after every frame.
    """
    wanted = set(np.linspace(0, pair.num_frames - 1, num_shown).round().astype(int).tolist())
    tracker = _WorstFrame()
    errors: list[float] = []
    shown: dict[int, ComparedFrame] = {}
    frames = zip(pair.one, pair.other, strict=False)
    for index, (one, other) in enumerate(islice(frames, pair.num_frames)):
        images = one.to_image(), _scaled(other.to_image(), (pair.one.width, pair.one.height))
        errors.append(_mean_squared_error(*images))
        tracker.see(index, errors[-1], images)
        if index in wanted:
            shown[index] = _compare_frame(index, errors[-1], images, most_width, amplify)
        advance()
    shown.setdefault(tracker.index, _compare_frame(tracker.index, tracker.error, tracker.images, most_width, amplify))
    return Comparison(
        psnr=_psnr(float(np.mean(errors))),
        frame_psnrs=[_psnr(error) for error in errors],
        num_identical=errors.count(0.0),
        shown=[shown[index] for index in sorted(shown)],
    )


@dataclass
class _WorstFrame:
    """The frame with the largest error so far; the first one, if several have it."""

    index: int = 0
    error: float = -1.0
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]] = field(default=(np.empty(0, np.uint8),) * 2)

    def see(self, index: int, error: float, images: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
        if error > self.error:
            self.index, self.error, self.images = index, error, images


def _mean_squared_error(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Of pixels in [0, 1]; the sum is of whole numbers and exact."""
    difference = one.astype(np.int32) - other
    return float(np.square(difference, out=difference).sum(dtype=np.int64)) / (one.size * 255**2)


def _psnr(error: float) -> float:
    return float(psnr_from_mse(torch.tensor(error, dtype=torch.float64)))


def _compare_frame(
    index: int, error: float, images: tuple[NDArray[np.uint8], NDArray[np.uint8]], most_width: int, amplify: float
) -> ComparedFrame:
    one, other = images
    height, width = one.shape[:2]
    scale = min(1, most_width / width, 2 * most_width / height)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    distance = np.abs(one.astype(np.float32) - other) * amplify
    pictures = (one, other, distance.clip(0, 255).round().astype(np.uint8))
    similarity = None
    if min(height, width) >= SSIM_WINDOW:
        similarity = float(ssim(*(as_frames(image[None])[0] for image in images)))
    return ComparedFrame(index, _psnr(error), similarity, *(_scaled(picture, size) for picture in pictures))


def _scaled(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The image at a width and height."""
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
