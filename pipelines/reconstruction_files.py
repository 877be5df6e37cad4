r"""Files of `VideoReconstructionPipeline`: what is read and how it is prepared, what is written and measured."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusers_vidvae.media import (
    Frame,
    FrameBatch,
    VideoInfo,
    VideoReader,
    VideoWriter,
    iter_preprocessed_video,
    load_image,
    preprocess_image,
    resample_frames,
    save_image,
    to_frames,
    to_pixels,
)
from diffusers_vidvae.media.buckets import MULTIPLE
from diffusers_vidvae.metrics import ClipMetrics

from .clip_source import ClipSource


TRAINING_FPS = 24


@dataclass(frozen=True)
class FileJob:
    r"""One file to reconstruct; the fields are arguments of `VideoReconstructionPipeline.reconstruct_file`.

    Args:
        input: The file to read.
        output: Where the reconstruction goes.
        original_output: Where the original goes, as it was encoded; None for nowhere.
        preprocess: Whether to bring images to size buckets and videos to 24 frames per second and multiples of 8.
        least_side: Shortest side of images that are not preprocessed.
        size_bucket: Size that an image is brought to; by default the nearest.
        fps: Frame rate that a video is resampled to.
        compute_metrics: Whether to measure the reconstruction.
        overwrite: Whether files may be replaced.
        writer_options: Options of `VideoWriter`.
    """

    input: Path
    output: Path
    original_output: Path | None
    preprocess: bool
    least_side: int = 1
    size_bucket: str | None = None
    fps: Fraction | None = None
    compute_metrics: bool = False
    overwrite: bool = False
    writer_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.original_output is not None and self.original_output.resolve() == self.output.resolve():
            raise ValueError(f"{self.output}: the reconstruction and the original need different names.")
        if self.input.resolve() in (self.output.resolve(), self.original_output and self.original_output.resolve()):
            raise ValueError(f"{self.input}: would be overwritten; choose another name for the output.")
        if self.size_bucket is not None and not self.preprocess:
            raise ValueError(f"`size_bucket` {self.size_bucket!r} needs `preprocess`, which resizes.")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"`fps` must be positive, got {self.fps}.")

    def load_image(self) -> Image.Image:
        if self.preprocess:
            return preprocess_image(self.input, self.size_bucket)
        image = load_image(self.input)
        if min(image.size) < self.least_side:
            raise ValueError(
                f"{self.input}: both sides must have at least {self.least_side} pixels, got"
                f" {image.width}x{image.height}."
            )
        return image

    def save_images(self, reconstruction: NDArray[np.uint8], original: Image.Image):
        save_image(reconstruction, self.output, overwrite=self.overwrite)
        if self.original_output is not None:
            save_image(original, self.original_output, overwrite=self.overwrite)

    @contextmanager
    def open_video(self) -> Iterator[VideoTape]:
        """The video between its source and its outputs, which are there whole when the block ends, or not at all."""
        if self.size_bucket is not None:
            raise ValueError(f"`size_bucket` is for images, {self.input} is a video.")
        frames, info = self._open_source()
        fps = self.fps or (Fraction(TRAINING_FPS) if self.preprocess else info.fps)
        multiple = MULTIPLE if self.preprocess else 1
        with ExitStack() as stack:
            writers = [
                stack.enter_context(VideoWriter(path, fps, overwrite=self.overwrite, **self.writer_options))
                for path in (self.output, self.original_output)
                if path is not None
            ]
            yield VideoTape(
                frames,
                writers,
                size=(info.height // multiple * multiple, info.width // multiple * multiple),
                fps=fps,
                expected_frames=None if info.duration_seconds is None else math.ceil(info.duration_seconds * fps),
                keeps_times=not self.preprocess and self.fps is None,
                metrics=ClipMetrics() if self.compute_metrics else None,
            )

    def _open_source(self) -> tuple[Iterator[Frame], VideoInfo]:
        if self.preprocess:
            return iter_preprocessed_video(self.input, fps=self.fps or TRAINING_FPS)
        reader = VideoReader(self.input)
        return iter(reader) if self.fps is None else resample_frames(reader, self.fps), reader.info


class VideoTape:
    r"""A video that is read frame by frame, and whose reconstruction is written as it comes.

    Args:
        frames: Frames of the original.
        writers: Where the reconstruction goes, and if there is a second one, the original.
        size: Height and width of the frames.
        fps: Frame rate of the outputs.
        expected_frames: About how many frames there are, if known.
        keeps_times: Whether outputs have the times of the source, rather than evenly spaced frames.
        metrics: What measures the reconstruction.
    """

    def __init__(
        self,
        frames: Iterator[Frame],
        writers: list[VideoWriter],
        size: tuple[int, int],
        fps: Fraction,
        expected_frames: int | None,
        keeps_times: bool,
        metrics: ClipMetrics | None,
    ):
        self.frames = frames
        self.writers = writers
        self.size = size
        self.fps = fps
        self.expected_frames = expected_frames
        self.keeps_times = keeps_times
        self.metrics = metrics
        self.num_frames = 0
        self.keep_masks: list[torch.Tensor] = []
        self.boundaries: list[int] = []
        self._waiting: deque[Frame] = deque()

    def read(self) -> Iterator[torch.Tensor]:
        """Frames `(3, H, W)` in [-1, 1]."""
        for frame in self.frames:
            self._waiting.append(frame)
            yield to_pixels(frame.data)[0, :, 0]

    def pieces(self, num_frames: int | None) -> Iterator[torch.Tensor]:
        """Pieces `(1, 3, num_frames, H, W)`, the last one shorter; all frames in one by default."""
        frames = self.read()
        while piece := list(islice(frames, num_frames)):
            yield torch.stack(piece, dim=1)[None]

    def windows(self, num_frames: int) -> Iterator[tuple[torch.Tensor, int]]:
        """Windows as `ClipSource.windows` cuts them."""
        return ClipSource(self.read(), *self.size).windows(num_frames)

    def write(self, sample: torch.Tensor, keep_mask: torch.Tensor | None = None):
        """Takes the reconstruction `(1, 3, t, H, W)` of the next frames."""
        originals = FrameBatch.from_frames([self._waiting.popleft() for _ in range(sample.shape[2])])
        times = originals.pts_seconds.tolist() if self.keeps_times else None
        for writer, frames in zip(self.writers, (to_frames(sample)[0], originals.data), strict=False):
            writer.write(frames, times)
        if self.metrics is not None:
            self.metrics.update(to_pixels(originals), sample)
        if keep_mask is not None:
            self.keep_masks.append(keep_mask.cpu())
        self.boundaries.append(self.num_frames)
        self.num_frames += sample.shape[2]

    def keep_rate(self) -> float | None:
        """Share of the frames that were decoded from their latents, of models that select frames."""
        return float(torch.cat(self.keep_masks, dim=1).float().mean()) if self.keep_masks else None

    def measure(self) -> dict[str, Any] | None:
        """Fidelity of what was written, before the video codec."""
        if self.metrics is None:
            return None
        self.metrics.keep_mask = torch.cat(self.keep_masks, dim=1) if self.keep_masks else None
        self.metrics.boundaries = self.boundaries[1:]
        return self.metrics.compute()


def beside(path: Path, suffix: str) -> Path:
    """The path of a file beside another one, with a suffix to its name."""
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")
