"""What a run will do and about how long it takes, said before it begins; and how far it is, with the time left.

The time comes from the model itself: it runs on a small part of the first frames, and what it needed there is
multiplied by how much more there is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import console, models


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffusers_vidvae import VideoCompressionPipeline, VideoReconstructionPipeline
    from diffusers_vidvae.codec import FsvHeader
    from diffusers_vidvae.codec.header import TileLayout
    from diffusers_vidvae.media import Clip


# Seconds of a run that deserves a warning, and that a measurement may stop at.
LONG_RUN = 120
ENOUGH_SECONDS = 0.25
# Share of the whole that is not worth measuring.
LARGEST = 1 / 8

# Where any size goes through a model, parts have these pixels a side and these frames, which causal models take whole.
PART_SIDE, PART_FRAMES = 64, 9

Run = Callable[["NDArray[np.uint8]"], float]


@dataclass(frozen=True)
class Work:
    r"""What goes through a model.

    Args:
        num_frames: Frames of the clip.
        height: Of the frames that the model sees.
        width: Theirs.
        tile: Tiles that these are cut into, if they are.
        window: Frames that run at once; the last window goes back so far that it is full.
        parts: Frames and side of parts to measure, smallest first.
    """

    num_frames: int
    height: int
    width: int
    tile: TileLayout | None = None
    window: int = 1
    parts: tuple[tuple[int, int], ...] = ((PART_FRAMES, PART_SIDE), (PART_FRAMES, 4 * PART_SIDE))

    @classmethod
    def of_header(cls, header: FsvHeader, num_frames: int) -> Work:
        """That of `FrameSelectVAE` on the clip of a header."""
        height, width, window = header.model_height, header.model_width, header.clip_num_frames
        side = max(height, width) if header.tile is None else header.tile.size
        return cls(num_frames, height, width, header.tile, window, ((1, side), (window, side), (window, 4 * side)))

    @property
    def num_tiles(self) -> int:
        from diffusers_vidvae.models.tiling import tile_spans

        if self.tile is None:
            return 1
        return math.prod(
            len(tile_spans(side, self.tile.size, self.tile.overlap)) for side in (self.height, self.width)
        )

    @property
    def num_passes(self) -> int:
        """Tiles of frames that the model runs on."""
        num_frames = self.num_frames
        if num_frames > self.window:
            num_frames = math.ceil(num_frames / self.window) * self.window
        return num_frames * self.num_tiles

    @property
    def num_pixels(self) -> int:
        side = max(self.height, self.width) if self.tile is None else self.tile.size
        return self.num_passes * min(self.height, side) * min(self.width, side)

    def part(self, num_frames: int, side: int) -> Work:
        """A part of it that is no larger than it is."""
        num_frames, height, width = min(num_frames, self.num_frames), min(side, self.height), min(side, self.width)
        return replace(self, num_frames=num_frames, height=height, width=width)


def introduce(path: Path) -> None:
    """Says what a video is, before the seconds that it takes to load a model, if somebody is there to read it."""
    from diffusers_vidvae.media import VideoReader, media_kind

    if not console.stderr.is_terminal or media_kind(path) == "image":
        return
    info = VideoReader(path).info
    if info.num_frames is None:
        console.note(f"{path}: {info.width}x{info.height}, {float(info.fps):.5g} fps")
    else:
        console.note(f"{path}: {console.clip_text(vars(info))}")


@contextmanager
def compressing(
    pipeline: VideoCompressionPipeline, path: Path, fps: Fraction | None, size_mode: str
) -> Iterator[None]:
    """Forecast and progress of `compress_file`."""
    from diffusers_vidvae.media import open_clips

    (clip,) = open_clips(path, fps)
    num_frames = _expected_frames(clip)

    def run(frames: NDArray[np.uint8]) -> float:
        return _seconds(lambda: pipeline.compress(frames, size_mode=size_mode))

    if not pipeline.selects_frames:
        work = Work(num_frames, clip.height, clip.width)
        with _forecast("Compressing", work, _first_frame(clip), run, "--fps keeps fewer frames"):
            yield
        return
    work = Work.of_header(pipeline.plan(clip, size_mode), num_frames)
    shorter = "--fps keeps fewer frames"
    if work.num_tiles > 1:
        side = pipeline.vae.config.sample_size
        shorter = f"--size-mode resize takes about a {work.num_tiles}th, for frames as coarse as {side}x{side}"
    with _forecast("Compressing", work, _first_frame(clip), run, shorter, pipeline, "encoder"):
        yield


@contextmanager
def decompressing(pipeline: VideoCompressionPipeline, header: FsvHeader) -> Iterator[None]:
    """Forecast and progress of `decompress_file`."""
    import numpy as np

    def run(frames: NDArray[np.uint8]) -> float:
        size_mode = {"size_mode": header.size_fit} if pipeline.selects_frames else {}
        compressed = pipeline.compress(frames, **size_mode)
        return _seconds(lambda: list(pipeline.decompress_frames(compressed)))

    frame = np.broadcast_to(np.uint8(0), (header.height, header.width, 3))
    if not pipeline.selects_frames:
        with _forecast("Decompressing", Work(header.num_frames, header.height, header.width), frame, run):
            yield
        return
    work = Work.of_header(header, header.num_frames)
    shorter = "files compressed with --size-mode resize take less" if work.num_tiles > 1 else ""
    with _forecast("Decompressing", work, frame, run, shorter, pipeline, "decoder"):
        yield


@contextmanager
def reconstructing(
    pipeline: VideoReconstructionPipeline, path: Path, preprocess: bool, size_bucket: str | None, fps: Fraction | None
) -> Iterator[None]:
    """Forecast of `reconstruct_file`, which shows its progress by itself."""
    from diffusers_vidvae.pipelines.reconstruction_files import open_source

    source = open_source(path, preprocess, size_bucket, fps)
    work = Work(source.expected_frames or 1, source.height, source.width)

    def run(frames: NDArray[np.uint8]) -> float:
        return _seconds(lambda: pipeline(frames, output_type="pt", compute_metrics=True))

    first = next(source.frames).data[: source.height, : source.width]
    with _forecast("Reconstructing", work, first, run, "--fps keeps fewer frames"):
        yield


@contextmanager
def _forecast(
    name: str,
    work: Work,
    frame: NDArray[np.uint8],
    run: Run,
    shorter: str = "",
    pipeline: VideoCompressionPipeline | None = None,
    part: str = "",
) -> Iterator[None]:
    """Says what will happen, and, given the part of a pipeline's model that does most of it, how far that is."""
    seconds = measure(work, frame, run)
    tiles = "" if work.tile is None else f", {work.num_tiles} tiles of {work.tile.size}x{work.tile.size} in each"
    frames = "1 frame" if work.num_frames == 1 else f"{work.num_frames} frames"
    told = f"{name} {frames} of {frame.shape[1]}x{frame.shape[0]}{tiles}: {duration_text(seconds)}"
    if seconds > LONG_RUN:
        console.print_warning(f"{told}; {shorter}." if shorter else f"{told}.")
    elif console.stderr.is_terminal:
        console.note(told)
    if pipeline is None:
        yield
        return
    with _quiet(pipeline), console.progress_of(name, work.num_passes, seconds) as advance:
        module = getattr(pipeline.vae, part)
        hook = module.register_forward_hook(
            lambda module, inputs, output: advance(inputs[0].shape[0] * inputs[0].shape[2])
        )
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def _quiet(pipeline: VideoCompressionPipeline) -> Iterator[None]:
    """No bar and no forecast of the pipeline's own, which come later and know less."""
    logger = logging.getLogger(type(pipeline).__module__)
    level = logger.level
    pipeline.set_progress_bar_config(disable=True)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        models.quiet_pipeline(pipeline)


def measure(work: Work, frame: NDArray[np.uint8], run: Run) -> float:
    """Seconds that the work takes by those of parts of a frame, larger and larger until they take long enough."""
    import numpy as np

    def cut(part: Work) -> NDArray[np.uint8]:
        return np.repeat(frame[None, : part.height, : part.width], part.num_frames, axis=0)

    parts = [part for part in (work.part(*size) for size in work.parts) if part.num_pixels < LARGEST * work.num_pixels]
    if not parts:
        return 0.0
    # A model's first run also finds memory and kernels; its time says little.
    run(cut(parts[0]))
    for part in parts:
        taken = run(cut(part))
        if taken > ENOUGH_SECONDS:
            break
    return taken * work.num_pixels / part.num_pixels


def _seconds(run: Callable[[], Any]) -> float:
    started = time.monotonic()
    run()
    return time.monotonic() - started


def _first_frame(clip: Clip) -> NDArray[np.uint8]:
    return next(iter(clip)).to_image()


def _expected_frames(clip: Clip) -> int:
    """By the file's header, where it says so, else by a pass over the file."""
    info = clip.info
    if info is None or clip.fps is None or not (info.num_frames and info.duration_seconds):
        return clip.count_frames()
    return info.num_frames if clip.fps == info.fps else max(1, round(info.duration_seconds * float(clip.fps)))


def duration_text(seconds: float) -> str:
    """A time for people, as roughly as it is known."""
    if seconds < 5:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1) or 10:.0f} seconds"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours"
