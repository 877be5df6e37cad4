r"""Clips as pipelines are given them, brought to one form: frames one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image


if TYPE_CHECKING:
    from diffusers_vidvae.media import Frame, VideoReader


ClipInput: TypeAlias = Any

_ACCEPTED = (
    "a path, a list of PIL images, a (T, H, W, C) array of uint8 or of floats in [0, 1],"
    " a (B, C, T, H, W) tensor in [-1, 1], or an iterator of frames"
)


@dataclass
class ClipSource:
    r"""The frames of one clip in order, and what is known of the clip beforehand.

    Args:
        frames: Frames `(C, H, W)` in [-1, 1], read as they are asked for.
        height: Height of the frames, in pixels.
        width: Width of the frames, in pixels.
        fps: Frames per second; None when unknown.
        num_frames: Number of frames; None when it is known only after the last one was read.
        name: What to call the clip in messages.
        count: Counts the frames of a file.
    """

    frames: Iterator[torch.Tensor]
    height: int
    width: int
    fps: Fraction | None = None
    num_frames: int | None = None
    name: str = "the clip"
    count: Callable[[], int] | None = None

    def count_frames(self) -> int:
        r"""Number of frames, for a file by a pass over it.

        Raises:
            ValueError: The frames come from an iterator, which can be read only once.
        """
        if self.num_frames is not None:
            return self.num_frames
        if self.count is None:
            raise ValueError(f"{self.name}: an iterator does not tell its number of frames; `rate` needs none.")
        return self.count()

    def pieces(self, num_frames: int) -> Iterator[torch.Tensor]:
        r"""Yields the next `num_frames` frames, `(1, C, t, H, W)`, until none is left."""
        while frames := list(islice(self.frames, num_frames)):
            yield torch.stack(frames, dim=1)[None]

    def windows(self, num_frames: int) -> Iterator[tuple[torch.Tensor, int]]:
        r"""Yields windows of `num_frames` frames, with the number of leading frames that were in the window before.

        Only the last one shares any: it reaches back so that it is full. No more than two windows are in memory.

        Yields:
            Frames `(1, C, t, H, W)`, and the number of those already seen.
        """
        previous = None
        while frames := list(islice(self.frames, num_frames)):
            window = torch.stack(frames, dim=1)[None]
            num_new = window.shape[2]
            if previous is not None and num_new < num_frames:
                window = torch.cat([previous[:, :, num_new - num_frames :], window], dim=2)
            yield window, window.shape[2] - num_new
            previous = window


def open_clips(video: ClipInput, fps: float | Fraction | None = None) -> list[ClipSource]:
    r"""Opens a clip, or every clip of a batch.

    Args:
        video: One clip as a path, a list of PIL images or of `(H, W, C)` arrays, a `(T, H, W, C)` array of uint8 or of
            floats in [0, 1], or an iterator of frames; a batch as a `(B, C, T, H, W)` tensor in [-1, 1], a
            `(B, T, H, W, C)` array, or a list of clips.
        fps: Frame rate. Files are resampled to it by their timestamps; for frames in memory it is their rate.

    Raises:
        ValueError: The input is none of these, has no frame, or its values are out of range.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"`fps` must be positive, got {fps}.")
    rate = None if fps is None else Fraction(fps).limit_denominator(1_000_000)
    if isinstance(video, torch.Tensor):
        if video.ndim != 5 or 0 in video.shape:
            raise ValueError(f"A video tensor must have shape (B, C, T, H, W), got {tuple(video.shape)}.")
        return [_open_tensor(clip, rate) for clip in video]
    if isinstance(video, np.ndarray) and video.ndim == 5:
        return [_open_frames(clip, len(clip), rate) for clip in video]
    if isinstance(video, Sequence) and not isinstance(video, str) and video and _is_clip(video[0]):
        return [source for clip in video for source in open_clips(clip, fps)]
    return [_open_clip(video, rate)]


def _is_clip(item: Any) -> bool:
    """Whether an item of a list is a clip by itself, not a frame."""
    return isinstance(item, (str, PathLike, list, tuple)) or getattr(item, "ndim", 0) >= 4


def _open_clip(video: ClipInput, fps: Fraction | None) -> ClipSource:
    if isinstance(video, (str, PathLike)):
        return _open_file(Path(video), fps)
    if isinstance(video, Image.Image):
        return _open_frames([video], 1, fps)
    if isinstance(video, np.ndarray) and video.ndim != 4:
        raise ValueError(f"A video array must have shape (T, H, W, C), got {video.shape}.")
    if isinstance(video, (np.ndarray, Sequence)):
        return _open_frames(video, len(video), fps)
    if isinstance(video, Iterable):
        return _open_frames(video, None, fps)
    raise ValueError(f"A video must be {_ACCEPTED}, got {type(video).__name__}.")


def _open_file(path: Path, fps: Fraction | None) -> ClipSource:
    from diffusers_vidvae.media import VideoReader, load_image, media_kind, resample_frames

    if media_kind(path) == "image":
        return _open_frames([load_image(path)], 1, fps, str(path))
    reader = VideoReader(path)

    def read() -> Iterator[Frame]:
        return _warn_of_uneven_times(reader) if fps is None else resample_frames(reader, fps)

    frames = (frame.data for frame in read())
    source = _open_frames(frames, None, reader.info.fps if fps is None else fps, str(path))
    source.count = lambda: sum(1 for _ in (reader if fps is None else resample_frames(reader, fps)))
    return source


def _warn_of_uneven_times(reader: VideoReader) -> Iterator[Frame]:
    """The reader's frames, and a warning behind the last one if they are shown for times of different length."""
    from diffusers_vidvae.media import MediaWarning

    durations: list[float] = []
    for frame in reader:
        yield frame
        durations.append(frame.duration_seconds)
    # The last frame's duration is often a guess.
    if durations[:-1] and max(durations[:-1]) > 1.5 * min(durations[:-1]):
        warnings.warn(
            f"{reader.path}: its frames last from {1000 * min(durations[:-1]):.0f} to"
            f" {1000 * max(durations[:-1]):.0f} ms; all of them are kept, evenly spaced. `fps` resamples them by time",
            MediaWarning,
            stacklevel=2,
        )


def _open_tensor(clip: torch.Tensor, fps: Fraction | None) -> ClipSource:
    # Models overshoot a little; what goes further was never in [-1, 1].
    if not clip.is_floating_point() or not bool((clip.abs() <= 1.5).all()):
        low, high = clip.float().aminmax()
        raise ValueError(
            f"A video tensor must hold floats in [-1, 1], got {clip.dtype} from {float(low):g} to {float(high):g}."
        )
    num_frames, height, width = clip.shape[1:]
    return ClipSource(iter(clip.float().unbind(1)), height, width, fps, num_frames)


def _open_frames(
    frames: Iterable[Any], num_frames: int | None, fps: Fraction | None, name: str = "the clip"
) -> ClipSource:
    """Opens frames in memory, or an iterator of frames, whose first one tells the size of all."""
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"{name} has no frame.")
    first = frame_to_tensor(first)

    def read() -> Iterator[torch.Tensor]:
        yield first
        for index, frame in enumerate(iterator, start=1):
            tensor = frame_to_tensor(frame)
            if tensor.shape != first.shape:
                raise ValueError(
                    f"All frames of a clip must have one size: frame 0 is {tuple(first.shape[1:])},"
                    f" frame {index} is {tuple(tensor.shape[1:])}."
                )
            yield tensor

    height, width = first.shape[1:]
    return ClipSource(read(), height, width, fps, num_frames, name)


def frame_to_tensor(frame: Any) -> torch.Tensor:
    r"""Brings one frame to `(C, H, W)` float32 in [-1, 1].

    Args:
        frame: A PIL image, an `(H, W, C)` array of uint8 or of floats in [0, 1], or a `(C, H, W)` tensor in [-1, 1].
    """
    if isinstance(frame, torch.Tensor):
        if frame.ndim != 3 or not frame.is_floating_point():
            raise ValueError(f"A frame must be a (C, H, W) tensor of floats, got {frame.dtype} {tuple(frame.shape)}.")
        return frame.float()
    if isinstance(frame, Image.Image):
        frame = np.asarray(frame.convert("RGB"))
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        got = getattr(frame, "shape", type(frame).__name__)
        raise ValueError(f"A frame must be a PIL image, an (H, W, C) array or a (C, H, W) tensor, got {got}.")
    if frame.shape[2] > 4:
        raise ValueError(f"A frame that is an array has its channels, 4 at most, last: (H, W, C), got {frame.shape}.")
    if frame.dtype == np.uint8:
        pixels = torch.from_numpy(frame.astype(np.float32)) / 127.5 - 1
    elif np.issubdtype(frame.dtype, np.floating) and frame.min() >= 0 and frame.max() <= 1:
        pixels = torch.from_numpy(frame.astype(np.float32)) * 2 - 1
    else:
        raise ValueError(
            f"A frame must hold uint8, or floats in [0, 1], got {frame.dtype} from {frame.min()} to {frame.max()}."
        )
    return pixels.permute(2, 0, 1)
