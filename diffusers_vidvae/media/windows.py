"""Some frames out of the middle of a file that is known already, in one opening of it."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .color import RgbConverter
from .decoding import Losses, choose_stream, decode_pictures, open_container
from .errors import MediaError
from .ffmpeg_source import SEEKABLE, TIME_TOLERANCE, WORTH_SEEKING_SECONDS, with_true_durations
from .frames import Frame, FrameBatch
from .inputs import FileInput, MediaFile
from .reader import VideoReader
from .webp_source import is_animated_webp


def read_window(
    source: FileInput,
    start: float,
    num_frames: int | None = None,
    stop: float = float("inf"),
    begins: float = 0.0,
) -> FrameBatch:
    r"""Consecutive frames from the one that is on screen at a time on; nothing before its key frame is decoded.

    `VideoReader` looks at a file before it reads from it. This does not: it is for many short reads of files that were
    looked at before.

    Args:
        source: The file.
        start: Time in seconds, on the file's clock.
        num_frames: Most frames to read; all up to `stop` by default.
        stop: Time before which the frames begin.
        begins: Time of the file's first frame, `VideoInfo.start_seconds`.

    Raises:
        MediaError: The file cannot be read, or shows nothing then.
    """
    file = MediaFile.of(source)
    if is_animated_webp(file):
        frames = list(islice(VideoReader(file).read_seconds(start, stop), num_frames))
        return FrameBatch.from_frames(frames)
    with open_container(file) as container:
        stream = choose_stream(container, file, 0)
        pictures = with_true_durations(_pictures_from(container, stream, file, start, begins))
        frames = list(islice(_converted(pictures, stream, start, stop), num_frames))
    if not frames:
        raise MediaError(f"{file}: no frame is shown from {start:.3f} s on.")
    return FrameBatch.from_frames(frames)


def _pictures_from(
    container: InputContainer, stream: VideoStream, file: MediaFile, start: float, begins: float
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Pictures from the last key frame at or before `start`, or from the beginning where that cannot be found."""
    can_seek = stream.time_base and any(name in SEEKABLE for name in container.format.name.split(","))
    if not can_seek or start < begins + WORTH_SEEKING_SECONDS:
        yield from decode_pictures(container, stream, Losses())
        return
    try:
        container.seek(int(start / (stream.time_base or 1)), stream=stream, backward=True)
    except av.error.FFmpegError:
        pass
    pictures = decode_pictures(container, stream, Losses())
    first = next(pictures, None)
    if first is not None and first[0] <= start:
        yield first
        yield from pictures
        return
    with open_container(file) as again:
        yield from decode_pictures(again, choose_stream(again, file, 0), Losses())


def _converted(
    pictures: Iterator[tuple[Fraction, Fraction, VideoFrame]], stream: VideoStream, start: float, stop: float
) -> Iterator[Frame]:
    aspect = Fraction(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    convert: RgbConverter | None = None
    for time, duration, picture in pictures:
        if time + duration <= start + TIME_TOLERANCE:
            continue
        if time >= stop - TIME_TOLERANCE:
            return
        convert = convert or RgbConverter(picture, aspect, True, True)
        yield Frame(convert(picture), float(time), float(duration))
