"""FFmpeg's side of reading: a file's packets to decoded pictures with sound timestamps, and what got lost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import av
import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .errors import MediaError, MediaWarning
from .inputs import FileInput, MediaFile
from .limits import CONTAINER_FORMATS, check_frame_size


FALLBACK_FPS = Fraction(25)

# A clip without a frame count that ends this much before its declared end was cut off.
_MISSING_SECONDS = 0.5


class DamagedError(Exception):
    """A file that is decoded on all cores has damage: frames that are still at work may be lost with it."""


@dataclass
class Losses:
    """What decoding a stream from its start to its end could not give."""

    decoded: int = 0
    damaged_packets: int = 0
    damaged_frames: int = 0
    end_seconds: float = field(default=float("nan"))

    def reset(self) -> None:
        """Begins anew, where the stream is decoded again."""
        self.decoded = self.damaged_packets = self.damaged_frames = 0
        self.end_seconds = float("nan")

    def cut_off(self, declared_end: float | None, frame_seconds: float) -> bool:
        """Whether the last frame ends well before the time that the header promises."""
        missing = 0.0 if declared_end is None else declared_end - self.end_seconds
        return missing > max(_MISSING_SECONDS, 1.5 * frame_seconds)

    def warn(self, file: MediaFile, declared: int | None, cut_off: bool) -> None:
        """Says how many frames were lost, if any were, in one `MediaWarning`.

        Args:
            file: The file.
            declared: Its frame count by the header, None where it has none.
            cut_off: Whether it ends before its declared length.
        """
        messages = []
        if declared is not None and declared > self.decoded:
            messages.append(
                f"{declared - self.decoded} of {declared} declared frames are lost, {self.decoded} decoded"
            )
        elif self.damaged_packets:
            messages.append(f"{self.damaged_packets} damaged packets were skipped, {self.decoded} frames decoded")
        elif cut_off:
            messages.append(f"the file ends before its declared length, {self.decoded} frames decoded")
        if self.damaged_frames:
            messages.append(f"{self.damaged_frames} of {self.decoded} decoded frames are damaged")
        if messages:
            warnings.warn(f"{file}: {'; '.join(messages)}.", MediaWarning, stacklevel=4)


def open_container(source: FileInput) -> InputContainer:
    """Opens a media file by what it holds, whatever its name says.

    Only containers that hold their media themselves are known: playlists and manifests, which name other files, are
    refused, and nothing but the file itself is read.

    Raises:
        MediaError: It does not exist, cannot be read or holds no media of a known kind.
    """
    file = MediaFile.of(source)
    # FFmpeg gets the bytes, not the name, which would have a say in what the file is, and no way to others.
    options = {"format_whitelist": ",".join(CONTAINER_FORMATS), "protocol_whitelist": "none"}
    try:
        opened = file.open_unbuffered()
        return cast(InputContainer, av.open(opened, metadata_errors="replace", container_options=options))
    except av.error.FFmpegError as error:
        raise MediaError(f"{file}: not a readable video or image ({error.strerror}).") from error


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams, without the cover pictures of music files."""
    return [s for s in container.streams.video if not (s.disposition & av.stream.Disposition.attached_pic)]


def choose_stream(container: InputContainer, file: MediaFile, index: int) -> VideoStream:
    """The `index`-th video stream.

    Raises:
        MediaError: There is no such stream, or no decoder for it.
    """
    streams = video_streams(container)
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no streams at all"
        raise MediaError(f"{file}: holds no video stream (it holds: {kinds}).")
    if not 0 <= index < len(streams):
        raise MediaError(
            f"{file}: video stream {index} was asked for, the file has {len(streams)} (0 to {len(streams) - 1})."
        )
    stream = streams[index]
    if stream.codec_context is None:
        raise MediaError(f"{file}: video stream {index} has a codec that this FFmpeg build cannot decode.")
    check_frame_size(file, stream.codec_context)
    return stream


def average_fps(stream: VideoStream) -> Fraction:
    """Frames per second over the whole clip, as far as the header tells."""
    if stream.codec_context.name == "gif" and stream.frames and stream.duration and stream.time_base:
        # Delays are whole hundredths of a second, so FFmpeg's guess from the first few is far off.
        return stream.frames / (stream.duration * stream.time_base)
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate:
            return Fraction(rate)
    return FALLBACK_FPS


def decode_pictures(
    container: InputContainer, stream: VideoStream, losses: Losses, all_cores: bool = False
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Yields `(time, nominal duration, picture)` in seconds, in order of presentation, with strictly growing times.

    Pictures that cannot be decoded are skipped and counted in `losses`.

    Raises:
        DamagedError: With `all_cores`, at the first damage.
    """
    if all_cores:
        stream.thread_type = "AUTO"
    nominal = 1 / average_fps(stream)
    previous, step = None, nominal
    for picture in _decoded(container, stream, losses, all_cores):
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


def _decoded(container: InputContainer, stream: VideoStream, losses: Losses, all_cores: bool) -> Iterator[VideoFrame]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            if all_cores:
                raise DamagedError from error
            losses.damaged_packets += 1
            return
        try:
            pictures = packet.decode()
        except av.error.FFmpegError as error:
            if all_cores:
                raise DamagedError from error
            # What comes before and after a damaged packet still decodes.
            losses.damaged_packets += 1
            continue
        yield from pictures


def declared_frames(container: InputContainer, stream: VideoStream) -> int | None:
    """How many frames the header promises; None where it does not say."""
    if "mov" in container.format.name and 0 < stream.frames == len(stream.index_entries):
        # MP4 counts the samples that an edit list hides, too.
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames or None


def declared_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """The length that the header promises; None where it does not say."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def decodes_strictly(file: MediaFile) -> bool:
    """Whether a JPEG's data is complete and sound; decoders otherwise fill the rest with grey and say nothing."""
    try:
        with open_container(file) as container:
            stream = choose_stream(container, file, 0)
            stream.codec_context.options = {"err_detect": "explode"}
            return next(container.decode(stream), None) is not None
    except av.error.FFmpegError:
        return False
