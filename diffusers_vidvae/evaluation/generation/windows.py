r"""Windows of clips that every model gets alike: some to learn from, others held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffusers_vidvae.evaluation.clips import DEMO_SEED, EvaluationClip
from diffusers_vidvae.training.draws import numpy_generator
from diffusers_vidvae.training.procedural import MOTIONS, ProceduralClips

from .settings import GenerationSettings


# From so many clips on, every fifth is held out whole; of fewer, the last part of each.
SPLIT_CLIPS = 5


@dataclass(frozen=True)
class Windows:
    """Windows `(N, T, H, W, 3)` of uint8, and the clip that each is of."""

    frames: NDArray[np.uint8]
    clips: list[str]

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class WindowSplit:
    """Windows to learn from and windows held out, how they were parted, and what had to be padded."""

    train: Windows
    held_out: Windows
    parted: str
    notes: list[str] = field(default_factory=list)


def procedural_windows(settings: GenerationSettings, side: int) -> WindowSplit:
    """Procedural clips that no embedded model was trained on, a new one for every window."""
    counts = settings.train_windows, settings.held_out_windows
    clips = ProceduralClips(sum(counts), settings.num_frames, side, side, seed=DEMO_SEED + 1 + settings.seed)
    frames = np.stack([clips[index] for index in range(sum(counts))])
    names = [f"procedural {index}, {MOTIONS[index % len(MOTIONS)]}" for index in range(sum(counts))]
    train, held_out = (Windows(frames[places], names[places]) for places in (slice(counts[0]), slice(counts[0], None)))
    return WindowSplit(train, held_out, "procedural clips, none of them in both")


def cut_windows(
    clips: Iterable[EvaluationClip], num_clips: int, settings: GenerationSettings, side: int
) -> WindowSplit:
    r"""Windows at random places of clips, as many of each.

    Args:
        clips: Read once, one at a time.
        num_clips: How many there are.
        settings: How many windows, of which size.
        side: Their height and width; smaller clips are padded by their borders, shorter ones by their last frame.

    Raises:
        ValueError: There are fewer than five clips, and one is too short to be parted in time.
    """
    splits_clips = num_clips >= SPLIT_CLIPS
    num_held_out = num_clips // SPLIT_CLIPS if splits_clips else num_clips
    num_train = num_clips - num_held_out if splits_clips else num_clips
    counts = -(-settings.train_windows // num_train), -(-settings.held_out_windows // num_held_out)
    parts: tuple[list, list] = ([], [])
    padded = []
    for index, clip in enumerate(clips):
        frames, is_padded = _padded(clip.frames, settings.num_frames, side)
        padded += [clip.name] * is_padded
        generator = numpy_generator(settings.seed, index)
        for part, span in _spans(index, splits_clips, frames, clip.name, settings.num_frames):
            drawn = _draw(frames[span], counts[part], settings.num_frames, side, generator)
            parts[part].extend((clip.name, window) for window in drawn)
    train, held_out = (
        _chosen(part, count, settings.seed)
        for part, count in zip(parts, (settings.train_windows, settings.held_out_windows), strict=True)
    )
    parted = f"{num_held_out} of {num_clips} clips" if splits_clips else "the last part of every clip"
    sizes = f"{settings.num_frames} frames of {side}x{side}"
    notes = [f"{', '.join(padded)}: smaller than {sizes}, and padded for the generation half."] if padded else []
    return WindowSplit(train, held_out, parted, notes)


def _spans(
    index: int, splits_clips: bool, frames: NDArray[np.uint8], name: str, num_frames: int
) -> Iterator[tuple[int, slice]]:
    """Part (0 to learn from, 1 held out) and frames of it."""
    if splits_clips:
        yield int(index % SPLIT_CLIPS == SPLIT_CLIPS - 1), slice(None)
        return
    if len(frames) < 2 * num_frames:
        raise ValueError(
            f"{name}: has {len(frames)} frames; the generation half needs {SPLIT_CLIPS} clips, or"
            f" {2 * num_frames} frames of each."
        )
    cut = max(num_frames, min(len(frames) - num_frames, 3 * len(frames) // 4))
    yield 0, slice(cut)
    yield 1, slice(cut, None)


def _draw(
    frames: NDArray[np.uint8], count: int, num_frames: int, side: int, generator: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    room = [length - size for length, size in zip(frames.shape[:3], (num_frames, side, side), strict=True)]
    for _ in range(count):
        start, top, left = (int(generator.integers(0, size + 1)) for size in room)
        yield frames[start : start + num_frames, top : top + side, left : left + side].copy()


def _padded(frames: NDArray[np.uint8], num_frames: int, side: int) -> tuple[NDArray[np.uint8], bool]:
    missing = [max(0, size - length) for length, size in zip(frames.shape[:3], (num_frames, side, side), strict=True)]
    if not any(missing):
        return frames, False
    return np.pad(frames, [(0, size) for size in missing] + [(0, 0)], mode="edge"), True


def _chosen(drawn: list[tuple[str, NDArray[np.uint8]]], count: int, seed: int) -> Windows:
    """So many of the windows, in an order in which clips are mixed."""
    order = numpy_generator(seed, len(drawn)).permutation(len(drawn))[:count]
    return Windows(np.stack([drawn[place][1] for place in order]), [drawn[place][0] for place in order])
