r"""Files of `VideoReconstructionPipeline`: what is read, how it is prepared, and what is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffusers_vidvae.files import check_output
from diffusers_vidvae.media import (
    Frame,
    MediaError,
    VideoReader,
    VideoWriter,
    iter_preprocessed_video,
    load_image,
    media_kind,
    preprocess_image,
    resample_frames,
    save_image,
    to_frames,
    to_pixels,
)
from diffusers_vidvae.media.buckets import MULTIPLE
from diffusers_vidvae.metrics import ClipMetrics


if TYPE_CHECKING:
    from .pipeline_video_reconstruction import ReconstructedPiece


TRAINING_FPS = 24


@dataclass
class SourceFile:
    r"""An image or video, prepared for an autoencoder.

    Args:
        frames: Its frames in order.
        height: Height of the frames, in pixels.
        width: Their width.
        fps: Frame rate; None for an image.
        keeps_times: Whether frames are shown at times of their own, rather than evenly spaced.
        expected_frames: About how many there are, if known.
    """

    frames: Iterator[Frame]
    height: int
    width: int
    fps: Fraction | None = None
    keeps_times: bool = False
    expected_frames: int | None = 1
    times: deque[float] = field(default_factory=deque)

    @property
    def total_frames(self) -> int | None:
        """How many there are, if that is certain: 1 of an image."""
        return 1 if self.fps is None else None

    def pieces(self) -> Iterator[torch.Tensor]:
        """Frames `(1, 3, 1, H, W)` in [-1, 1]; the times of those that were read wait in `times`."""
        for frame in self.frames:
            self.times.append(frame.pts_seconds)
            yield to_pixels(frame.data)


def open_source(
    path: Path,
    preprocess: bool = False,
    size_bucket: str | None = None,
    fps: Fraction | None = None,
    least_side: int = 1,
) -> SourceFile:
    r"""Opens a file, told by its content.

    Args:
        path: An image or a video.
        preprocess: Whether to bring images to size buckets and videos to 24 frames per second and multiples of 8.
        size_bucket: Size that an image is brought to; by default the nearest.
        fps: Rate that a video is resampled to by its timestamps.
        least_side: Shortest side of images that are not preprocessed.

    Raises:
        ValueError: `size_bucket` is given for a video, or an image is too small.
        MediaError: The file cannot be read, or a video is slower than preprocessing needs.
    """
    if media_kind(path) == "image":
        image = preprocess_image(path, size_bucket) if preprocess else load_image(path)
        if min(image.size) < least_side:
            raise ValueError(
                f"{path}: both sides must have at least {least_side} pixels, got {image.width}x{image.height}."
            )
        return SourceFile(iter([Frame(np.asarray(image), 0.0, 0.0)]), image.height, image.width)
    if size_bucket is not None:
        raise ValueError(f"`size_bucket` is for images, {path} is a video.")
    if preprocess:
        frames, info = iter_preprocessed_video(path, fps=fps or TRAINING_FPS)
    else:
        reader = VideoReader(path)
        frames, info = iter(reader) if fps is None else resample_frames(reader, fps), reader.info
    rate = fps or (Fraction(TRAINING_FPS) if preprocess else info.fps)
    multiple = MULTIPLE if preprocess else 1
    return SourceFile(
        frames,
        height=info.height // multiple * multiple,
        width=info.width // multiple * multiple,
        fps=rate,
        keeps_times=not preprocess and fps is None,
        expected_frames=None if info.duration_seconds is None else max(1, round(info.duration_seconds * rate)),
    )


@contextmanager
def open_outputs(
    source: SourceFile, paths: list[Path], overwrite: bool, writer_options: dict[str, Any]
) -> Iterator[Callable[..., None]]:
    r"""Files beside each other, of the kind of the source, which are there whole when the block ends, or not at all.

    Args:
        source: Where the frames come from.
        paths: The files.
        overwrite: Whether they may be replaced.
        writer_options: Options of `VideoWriter`.

    Yields:
        A function that takes the next frames `(1, 3, t, H, W)` of every file.
    """
    if source.fps is None:
        for path in paths:
            check_output(path, overwrite=overwrite, error=MediaError)
        images: list[torch.Tensor] = []
        yield lambda *samples: images.extend(samples)
        for path, image in zip(paths, images, strict=False):
            save_image(to_frames(image)[0, 0], path, overwrite=overwrite)
        return
    with ExitStack() as stack:
        writers = [
            stack.enter_context(VideoWriter(path, source.fps, overwrite=overwrite, **writer_options)) for path in paths
        ]

        def write(*samples: torch.Tensor) -> None:
            known = [source.times.popleft() for _ in range(samples[0].shape[2])]
            for writer, sample in zip(writers, samples, strict=False):
                writer.write(to_frames(sample)[0], known if source.keeps_times else None)

        yield write


def output_paths(source: Path, output: str | PathLike[str], original_output: str | PathLike[str] | bool) -> list[Path]:
    r"""Where the reconstruction goes, and behind it where the original goes, if anywhere.

    Args:
        source: The file that is read.
        output: The reconstruction.
        original_output: The original; True puts it beside `output`, with `_original` added to its name.

    Raises:
        ValueError: The outputs are one file, or the source.
    """
    output = Path(output)
    if original_output is True:
        original_output = output.with_name(f"{output.stem}_original{output.suffix}")
    paths = [Path(path) for path in (output, original_output) if path]
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"{output}: the reconstruction and the original need different names.")
    if source.resolve() in resolved:
        raise ValueError(f"{source}: would be overwritten; choose another name for the output.")
    return paths


class PieceTally:
    r"""What becomes known of a reconstruction as its pieces go by.

    Args:
        metrics: Measures the pieces, if there is one.
    """

    def __init__(self, metrics: ClipMetrics | None):
        self.metrics = metrics
        self.num_frames = 0
        self.boundaries: list[int] = []
        self.masks: list[torch.Tensor] = []

    def add(self, piece: ReconstructedPiece) -> None:
        """Takes the next piece."""
        if self.metrics is not None and piece.sample is not None:
            self.metrics.update(piece.original, piece.sample)
        if piece.keep_mask is not None:
            self.masks.append(piece.keep_mask.cpu())
        if self.num_frames:
            self.boundaries.append(self.num_frames)
        self.num_frames += piece.original.shape[2]

    def result(self) -> dict[str, Any]:
        """Number of frames, share of those that were kept, and figures, as `ReconstructedFile` has them."""
        keep_mask = torch.cat(self.masks, dim=1) if self.masks else None
        if self.metrics is not None:
            self.metrics.keep_mask, self.metrics.boundaries = keep_mask, self.boundaries
        return {
            "num_frames": self.num_frames,
            "keep_rate": None if keep_mask is None else float(keep_mask.float().mean()),
            "metrics": None if self.metrics is None else self.metrics.compute(),
        }
