r"""The clips of a report, as all methods get them: uint8 frames of one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diffusers_vidvae.media import VideoReader, load_image, media_kind, resample_frames
from diffusers_vidvae.media.clips import to_pixels
from diffusers_vidvae.media.transforms import resize, to_frames
from diffusers_vidvae.training.procedural import MOTIONS, ProceduralClips

from .settings import EvaluationSettings


DEMO_MOTIONS = MOTIONS
DEMO_FPS = Fraction(12)
DEMO_SEED = 20_000


@dataclass(frozen=True)
class EvaluationClip:
    """Frames `(T, H, W, 3)` of uint8, their rate, and what the clip is called."""

    name: str
    frames: NDArray[np.uint8]
    fps: Fraction

    @property
    def pixels(self) -> torch.Tensor:
        """`(1, 3, T, H, W)` in [-1, 1]."""
        return to_pixels(self.frames)

    @property
    def num_pixels(self) -> int:
        return int(np.prod(self.frames.shape[:3]))


def load_clip(path: Path, name: str, settings: EvaluationSettings) -> EvaluationClip:
    r"""Reads the start of a clip.

    Raises:
        MediaError: The file cannot be read.
    """
    if media_kind(path) == "image":
        return _scaled(name, np.asarray(load_image(path))[None], Fraction(1), settings.side)
    with VideoReader(path) as reader:
        read: Iterator = iter(reader) if settings.fps is None else resample_frames(reader, settings.fps)
        frames = np.stack([frame.data for frame in islice(read, settings.max_frames)])
        return _scaled(name, frames, settings.fps or reader.info.fps, settings.side)


def demo_clips(settings: EvaluationSettings) -> list[EvaluationClip]:
    """Procedural clips of 32 frames of 64x64 that no embedded model was trained on, one of every kind of motion."""
    clips = ProceduralClips(length=len(DEMO_MOTIONS), num_frames=32, height=64, width=64, seed=DEMO_SEED)
    return [
        _scaled(f"procedural, {motion}", clips[index][: settings.max_frames], DEMO_FPS, settings.side)
        for index, motion in enumerate(DEMO_MOTIONS)
    ]


def _scaled(name: str, frames: NDArray[np.uint8], fps: Fraction, side: int | None) -> EvaluationClip:
    height, width = frames.shape[1:3]
    if side is None or side == min(height, width):
        return EvaluationClip(name, frames, fps)
    scale = side / min(height, width)
    return EvaluationClip(
        name, to_frames(resize(to_pixels(frames), round(height * scale), round(width * scale)))[0], fps
    )
