"""Reading video: what a file holds, its frames with their times, ranges of them, chunks in constant memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from itertools import islice
from pathlib import Path

from .errors import MediaError, MediaWarning
from .ffmpeg_source import FfmpegSource
from .folder_source import FolderSource
from .frames import Frame, FrameBatch, VideoInfo
from .inputs import FileInput, MediaFile
from .resample import resample_frames
from .webp_source import WebpSource, is_animated_webp


class VideoReader:
    r"""Reads the frames of a video, an animation, an image or a folder of pictures, upright and as 8-bit RGB.

    The file is recognised by its content, not by its name. Opening it decodes the first frame, so a file without a
    decodable frame is refused at once. Every iteration opens the file anew, from the start: iterators of one reader
    are independent, and memory stays constant however long the clip is.

    Rotation tags are applied. Sources with more than 8 bits are rounded to 8; full-range and limited-range sources
    are told apart; sources that do not name their YUV matrix are read as BT.601, as FFmpeg does. Alpha is dropped,
    high dynamic range is tone-mapped and interlaced frames are left as they are, each with a `MediaWarning`. Once a
    damaged file was read to its end, another one says how many frames could not be decoded.

    Only kinds of files that hold all that is theirs are read, no playlists and manifests, and frames of at most
    `PIL.Image.MAX_IMAGE_PIXELS` pixels, 89 million unless that is set otherwise.

    Args:
        path: The file: a path, an http(s) URL, which is downloaded, bytes, or an open binary file, which must stay
            open; or a folder of numbered pictures of one size, in the order of their numbers. A folder has the frame
            rate that `VideoWriter` noted in it, or else 25.
        stream: Which of the file's video streams, counted from 0.
        square_pixels: Resample the width of clips with non-square pixels, so that they look as players show them.
            A pixel aspect within 1% of square counts as square. False yields the stored pixels; the aspect is in
            `info.sample_aspect_ratio`.
        tone_map: Bring high dynamic range (PQ, HLG) to what an ordinary screen shows. False yields the stored values,
            rounded to 8 bits, which look flat.

    Attributes:
        path: The file or folder, None in memory.
        name: What messages call it.
        info: The file's `VideoInfo`.

    Raises:
        MediaError: The file cannot be read, holds no such stream, or not one of its frames can be decoded.

    Example:

        >>> with VideoReader("clip.mp4") as reader:
        ...     print(reader.info.width, reader.info.height, reader.info.fps)
        ...     for chunk in reader.iter_chunks(32):
        ...         process(chunk.data)  # (T, H, W, 3) uint8, T <= 32
    """

    def __init__(self, path: FileInput, *, stream: int = 0, square_pixels: bool = True, tone_map: bool = True):
        self._source, self.name = open_source(path, stream, square_pixels, tone_map)
        self.path: Path | None = self._source.info.path
        self.info: VideoInfo = self._source.info
        self._closed = False
        for message in _dropped_qualities(self.info, tone_map):
            warnings.warn(f"{self.name}: {message}.", MediaWarning, stacklevel=2)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends reading; iterators that are still open end with their next frame."""
        self._closed = True

    def __repr__(self) -> str:
        info = self.info
        return f"VideoReader({self.name!r}, {info.width}x{info.height}, {float(info.fps):.3f} fps, {info.codec})"

    def __iter__(self) -> Iterator[Frame]:
        return self._while_open(self._source.frames())

    def iter_chunks(self, num_frames: int, *, fps: Fraction | float | None = None) -> Iterator[FrameBatch]:
        """Yields the whole clip in order, `num_frames` frames at a time; the last batch may be shorter.

        Args:
            num_frames: Frames in a batch.
            fps: Resample to this rate by the frames' times; see `resample_frames`.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
        frames = iter(self) if fps is None else resample_frames(iter(self), fps)
        while chunk := list(islice(frames, num_frames)):
            yield FrameBatch.from_frames(chunk)

    @property
    def knows_rate(self) -> bool:
        """Whether the frames have times of their own; pictures in a folder may have none."""
        return getattr(self._source, "knows_rate", True)

    def count_frames(self) -> int:
        """Number of frames, by decoding the whole file; what its header says is in `info.num_frames`."""
        return sum(1 for _ in self)

    def read(self, start: int | None = None, stop: int | None = None) -> FrameBatch:
        """Frames `start` to `stop` (not included) by index; the whole clip without them.

        Raises:
            MediaError: The range is empty, or begins behind the last frame. A `stop` behind it is not an error.
        """
        start = 0 if start is None else start
        if start < 0 or (stop is not None and stop <= start):
            raise MediaError(f"{self.name}: frames {start} to {stop} were asked for; a range needs 0 <= start < stop.")
        with closing(self._source.frames_from(start)) as frames:
            batch = list(islice(self._while_open(frames), None if stop is None else stop - start))
        if not batch:
            raise MediaError(f"{self.name}: frame {start} was asked for, but the clip ends before it.")
        return FrameBatch.from_frames(batch)

    def read_seconds(self, start: float, stop: float) -> FrameBatch:
        """The frames that are on screen at some time in `[start, stop)`, on the file's clock (`info.start_seconds`).

        Raises:
            MediaError: The range is empty, or no frame is shown in it.
        """
        if not stop > start:
            raise MediaError(f"{self.name}: {start} to {stop} seconds were asked for; a range needs start < stop.")
        with closing(self._source.frames(start, stop)) as frames:
            batch = list(self._while_open(frames))
        if not batch:
            end = "" if self.info.duration_seconds is None else f" and lasts {self.info.duration_seconds:.3f} s"
            raise MediaError(
                f"{self.name}: no frame is shown from {start} to {stop} s; "
                f"the clip starts at {self.info.start_seconds:.3f} s{end}."
            )
        return FrameBatch.from_frames(batch)

    def _while_open(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        if self._closed:
            raise MediaError(f"{self.name}: the reader is closed.")
        return self._until_closed(frames)

    def _until_closed(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if self._closed:
                return
            yield frame


def read_video(
    path: FileInput,
    *,
    stream: int = 0,
    fps: Fraction | float | None = None,
    start_seconds: float | None = None,
    stop_seconds: float | None = None,
    square_pixels: bool = True,
    tone_map: bool = True,
) -> tuple[FrameBatch, VideoInfo]:
    r"""Reads a whole clip, or a stretch of it, into memory.

    Args:
        path, stream, square_pixels, tone_map: See `VideoReader`.
        fps: Resample to this rate by the frames' times; see `resample_frames`.
        start_seconds, stop_seconds: Read only what is on screen between these times, on the file's clock.

    Returns:
        The frames `(T, H, W, 3)` uint8 with their times, and what the file says about itself (with its own rate).

    Raises:
        MediaError: See `VideoReader`; or nothing is shown between the times.
    """
    with VideoReader(path, stream=stream, square_pixels=square_pixels, tone_map=tone_map) as reader:
        if start_seconds is None and stop_seconds is None:
            batch = reader.read()
        else:
            start = float("-inf") if start_seconds is None else start_seconds
            batch = reader.read_seconds(start, float("inf") if stop_seconds is None else stop_seconds)
        if fps is not None:
            batch = FrameBatch.from_frames(list(resample_frames(batch, fps)))
        return batch, reader.info


def open_source(
    path: FileInput, stream: int = 0, square_pixels: bool = True, tone_map: bool = True
) -> tuple[FfmpegSource | WebpSource | FolderSource, str]:
    """What reads a file or folder, by what it holds, and what messages call it."""
    if isinstance(path, (str, os.PathLike)) and Path(path).is_dir():
        return FolderSource(Path(path), stream), str(path)
    file = MediaFile.of(path)
    if is_animated_webp(file):
        return WebpSource(file, stream), file.name
    return FfmpegSource(file, stream, square_pixels, tone_map), file.name


def _dropped_qualities(info: VideoInfo, tone_map: bool) -> Iterator[str]:
    if info.has_alpha:
        yield "its alpha channel is dropped"
    if info.is_interlaced:
        yield "its frames are interlaced and are read as they are; deinterlace it first for clean motion"
    if info.is_hdr and tone_map:
        yield f"high dynamic range ({info.color_transfer.upper()}) is tone-mapped to 8-bit sRGB"
    elif info.is_hdr:
        yield f"high dynamic range ({info.color_transfer.upper()}) is read without tone mapping and looks flat"
