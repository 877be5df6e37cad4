"""Reading video: what a file holds, its frames with their times, ranges of them, chunks in constant memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from itertools import islice
from pathlib import Path

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from . import color
from .decoding import (
    Losses,
    average_fps,
    choose_stream,
    decode_pictures,
    ends_early,
    open_container,
    video_streams,
)
from .errors import MediaError, MediaWarning
from .frames import Frame, FrameBatch, VideoInfo


class VideoReader:
    r"""Reads the frames of a video file, an animation or an image, upright and as 8-bit RGB.

    The file is recognised by its content, not by its name. Opening it decodes the first frame, so a file without a
    decodable frame is refused at once. Every iteration opens the file anew, from the start: iterators of one reader
    are independent, and memory stays constant however long the clip is.

    Rotation tags are applied. Sources with more than 8 bits are rounded to 8, full-range and limited-range sources
    are told apart; sources that do not name their YUV matrix are read as BT.601, as FFmpeg does. Alpha is dropped, and
    high dynamic range is not tone-mapped; both are said in a `MediaWarning`, as are frames that cannot be decoded.

    Args:
        path: The file.
        stream: Which of the file's video streams, counted from 0.
        square_pixels: Resample the width of clips with non-square pixels, so that they look as players show them.
            A pixel aspect within 1% of square counts as square. False yields the stored pixels; the aspect is in
            `info.sample_aspect_ratio`.

    Raises:
        MediaError: The file cannot be read, holds no such stream, or not one of its frames can be decoded.

    Example:

        >>> with VideoReader("clip.mp4") as reader:
        ...     print(reader.info.width, reader.info.height, reader.info.fps)
        ...     for chunk in reader.iter_chunks(32):
        ...         process(chunk.data)  # (T, H, W, 3) uint8, T <= 32
    """

    def __init__(self, path: str | os.PathLike[str], *, stream: int = 0, square_pixels: bool = True):
        self.path = Path(path)
        self.stream = stream
        self.square_pixels = square_pixels
        self._closed = False
        self._iterators: list[Iterator[Frame]] = []
        with open_container(self.path) as container:
            self.info = self._probe(container)
        self._warn_of_dropped_qualities()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends reading; iterators that are still open yield nothing more."""
        self._closed = True

    def __repr__(self) -> str:
        info = self.info
        return f"VideoReader({str(self.path)!r}, {info.width}x{info.height}, {float(info.fps):.3f} fps, {info.codec})"

    def __iter__(self) -> Iterator[Frame]:
        return self._frames(None, None)

    def iter_chunks(self, num_frames: int) -> Iterator[FrameBatch]:
        """Yields the whole clip in order, `num_frames` frames at a time; the last batch may be shorter."""
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        frames = iter(self)
        while chunk := list(islice(frames, num_frames)):
            yield FrameBatch.from_frames(chunk)

    def read(self, start: int | None = None, stop: int | None = None) -> FrameBatch:
        """Frames `start` to `stop` (not included) by index; the whole clip without them.

        Raises:
            MediaError: The range is empty, or begins behind the last frame. A `stop` behind it is not an error.
        """
        start = 0 if start is None else start
        if start < 0 or (stop is not None and stop <= start):
            raise MediaError(f"{self.path}: frames {start} to {stop} were asked for; a range needs 0 <= start < stop")
        with closing(self._frames(None, None)) as frames:
            batch = list(islice(frames, start, stop))
        if not batch:
            raise MediaError(f"{self.path}: frame {start} was asked for, the clip has fewer frames")
        return FrameBatch.from_frames(batch)

    def read_seconds(self, start: float, stop: float) -> FrameBatch:
        """The frames that are on screen at some time in `[start, stop)`, on the file's clock (`info.start_seconds`).

        Raises:
            MediaError: The range is empty, or no frame is shown in it.
        """
        if stop <= start:
            raise MediaError(f"{self.path}: {start} to {stop} seconds were asked for; a range needs start < stop")
        with closing(self._frames(start, stop)) as frames:
            batch = list(frames)
        if not batch:
            end = "" if self.info.duration_seconds is None else f" and lasts {self.info.duration_seconds:.3f} s"
            raise MediaError(
                f"{self.path}: no frame is shown from {start} to {stop} s; "
                f"the clip starts at {self.info.start_seconds:.3f} s{end}"
            )
        return FrameBatch.from_frames(batch)

    def _frames(self, start: float | None, stop: float | None) -> Iterator[Frame]:
        if self._closed:
            raise MediaError(f"{self.path}: the reader is closed")
        return self._decode_range(start, stop)

    def _decode_range(self, start: float | None, stop: float | None) -> Iterator[Frame]:
        losses = Losses()
        with open_container(self.path) as container:
            stream = choose_stream(container, self.path, self.stream)
            pictures = decode_pictures(container, stream, losses)
            convert: color.RgbConverter | None = None
            for time, duration, picture in _with_true_durations(pictures):
                if self._closed:
                    return
                if start is not None and time + duration <= start:
                    continue
                if stop is not None and time >= stop:
                    return
                if convert is None:
                    convert = color.RgbConverter(picture, self.info.sample_aspect_ratio, self.square_pixels)
                yield Frame(convert(picture), float(time), float(duration))
            first = Fraction(self.info.start_seconds)
            losses.warn(self.path, self.info.num_frames, ends_early(losses, stream, container, first))

    def _probe(self, container: InputContainer) -> VideoInfo:
        stream = choose_stream(container, self.path, self.stream)
        losses = Losses()
        first = next(decode_pictures(container, stream, losses), None)
        if first is None:
            damage = f"; {losses.damaged_packets} packets are damaged or encrypted" if losses.damaged_packets else ""
            raise MediaError(f"{self.path}: not one video frame can be decoded{damage}")
        time, _, picture = first
        self._transparent = color.has_alpha(picture) and color.is_transparent(picture)
        return self._describe(container, stream, picture, time)

    def _describe(
        self, container: InputContainer, stream: VideoStream, picture: VideoFrame, time: Fraction
    ) -> VideoInfo:
        aspect = Fraction(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
        converter = color.RgbConverter(picture, aspect, self.square_pixels)
        duration = stream.duration * stream.time_base if stream.duration and stream.time_base else None
        if duration is None and container.duration:
            duration = Fraction(container.duration, 1_000_000)
        return VideoInfo(
            path=self.path,
            width=converter.width,
            height=converter.height,
            stored_width=picture.width,
            stored_height=picture.height,
            fps=average_fps(stream),
            num_frames=stream.frames or None,
            duration_seconds=None if duration is None else float(duration),
            start_seconds=float(time),
            codec=stream.codec_context.codec.canonical_name,
            container=container.format.name,
            pixel_format=picture.format.name,
            bit_depth=color.bit_depth(picture),
            rotation=picture.rotation,
            sample_aspect_ratio=aspect,
            color_range=color.color_range_name(picture),
            color_matrix=color.color_matrix_name(picture.colorspace),
            color_transfer=color.color_transfer_name(picture.color_trc),
            has_alpha=self._transparent or stream.metadata.get("alpha_mode") == "1",
            has_audio=bool(container.streams.audio),
            num_video_streams=len(video_streams(container)),
        )

    def _warn_of_dropped_qualities(self) -> None:
        if self.info.has_alpha:
            warnings.warn(f"{self.path}: its alpha channel is dropped", MediaWarning, stacklevel=3)
        if self.info.is_hdr:
            transfer = self.info.color_transfer.upper()
            message = f"{self.path}: high dynamic range ({transfer}) is read without tone mapping"
            warnings.warn(message, MediaWarning, stacklevel=3)


def _with_true_durations(
    pictures: Iterator[tuple[Fraction, Fraction, VideoFrame]],
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Replaces each picture's nominal duration by the time to the next one; the last keeps its own."""
    held = next(pictures, None)
    for following in pictures:
        assert held is not None
        yield held[0], following[0] - held[0], held[2]
        held = following
    if held is not None:
        yield held
