"""FFmpeg's side of reading: a file's packets to decoded pictures with sound timestamps, and what got lost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .errors import MediaError, MediaWarning, checked_input


FALLBACK_FPS = Fraction(25)

# Containers whose header counts the pictures that decoding yields; MP4 also counts those an edit list hides.
_COUNTED_EXACTLY = ("avi", "matroska", "nut", "gif", "apng")


@dataclass
class Losses:
    """What decoding a stream from its start to its end could not give."""

    decoded: int = 0
    damaged_packets: int = 0
    damaged_frames: int = 0
    end_seconds: float = field(default=float("nan"))

    def warn(self, path: Path, declared: int | None, missing_tail: bool) -> None:
        """Says how many frames were lost, if any were, in one `MediaWarning`."""
        lost = max(0, (declared or 0) - self.decoded) if self.damaged_packets or missing_tail else 0
        messages = []
        if lost:
            messages.append(f"{lost} of {declared} declared frames are lost, {self.decoded} decoded")
        elif self.damaged_packets:
            messages.append(f"{self.damaged_packets} damaged packets were skipped, {self.decoded} frames decoded")
        elif missing_tail:
            messages.append(f"the file ends before its declared length, {self.decoded} frames decoded")
        if self.damaged_frames:
            messages.append(f"{self.damaged_frames} of {self.decoded} decoded frames are damaged")
        if messages:
            warnings.warn(f"{path}: {'; '.join(messages)}", MediaWarning, stacklevel=4)


def open_container(path: Path) -> InputContainer:
    """Opens a media file by what it holds, whatever its name says.

    Raises:
        MediaError: It does not exist, cannot be read or holds no media that FFmpeg knows.
    """
    checked_input(path)
    try:
        # An absolute path keeps FFmpeg from reading "a:b.mp4" as a protocol and "-b.mp4" as an option.
        return av.open(f"file:{path.absolute()}", metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: not a readable video or image ({error.strerror})") from error


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams, without the cover pictures of music files."""
    return [s for s in container.streams.video if not (s.disposition & av.stream.Disposition.attached_pic)]


def choose_stream(container: InputContainer, path: Path, index: int) -> VideoStream:
    """The `index`-th video stream.

    Raises:
        MediaError: There is no such stream, or no decoder for it.
    """
    streams = video_streams(container)
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no streams at all"
        raise MediaError(f"{path}: holds no video stream (it holds: {kinds})")
    if not 0 <= index < len(streams):
        raise MediaError(
            f"{path}: video stream {index} was asked for, the file has {len(streams)} (0 to {len(streams) - 1})"
        )
    stream = streams[index]
    if stream.codec_context is None:
        raise MediaError(f"{path}: video stream {index} has a codec that this FFmpeg build cannot decode")
    return stream


def average_fps(stream: VideoStream) -> Fraction:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate:
            return Fraction(rate)
    return FALLBACK_FPS


def decode_pictures(
    container: InputContainer, stream: VideoStream, losses: Losses
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Yields `(time, nominal duration, picture)` in seconds, in order of presentation, with strictly growing times.

    Pictures that cannot be decoded are skipped and counted in `losses`.
    """
    nominal = 1 / average_fps(stream)
    previous, step = None, nominal
    for picture in _decoded(container, stream, losses):
        base = picture.time_base or stream.time_base or nominal
        duration = Fraction(picture.duration * base) if picture.duration else nominal
        time = None if picture.pts is None else Fraction(picture.pts * base)
        if time is None or (previous is not None and time <= previous):
            time = Fraction(0) if previous is None else previous + step
        losses.decoded += 1
        losses.damaged_frames += bool(picture.is_corrupt)
        losses.end_seconds = float(time + duration)
        yield time, duration, picture
        previous, step = time, duration


def _decoded(container: InputContainer, stream: VideoStream, losses: Losses) -> Iterator[VideoFrame]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            losses.damaged_packets += 1
            return
        try:
            pictures = packet.decode()
        except av.error.FFmpegError:
            # What comes before and after a damaged packet still decodes.
            losses.damaged_packets += 1
            continue
        yield from pictures


def ends_early(losses: Losses, stream: VideoStream, container: InputContainer, first_time: Fraction) -> bool:
    """Whether a stream that was decoded to its end holds less than its header declares."""
    if any(name in _COUNTED_EXACTLY for name in container.format.name.split(",")):
        return stream.frames > losses.decoded
    if not stream.duration or stream.time_base is None:
        return False
    missing = float(first_time + stream.duration * stream.time_base) - losses.end_seconds
    return missing > 1.5 / float(average_fps(stream))


def decodes_strictly(path: Path) -> bool:
    """Whether a JPEG's data is complete and sound; decoders otherwise fill the rest with grey and say nothing."""
    try:
        with open_container(path) as container:
            stream = choose_stream(container, path, 0)
            stream.codec_context.options = {"err_detect": "explode"}
            return next(container.decode(stream), None) is not None
    except av.error.FFmpegError:
        return False
