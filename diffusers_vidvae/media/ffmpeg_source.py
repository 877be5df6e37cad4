"""The frames of a file as FFmpeg decodes them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from fractions import Fraction
from functools import cached_property
from itertools import islice
from typing import TypeAlias

import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .color import RgbConverter, bit_depth, color_matrix_name, color_range_name, color_transfer_name, is_transparent
from .decoding import (
    DamagedError,
    Losses,
    average_fps,
    choose_stream,
    declared_frames,
    declared_seconds,
    decode_pictures,
    open_container,
    video_streams,
)
from .errors import MediaError
from .frames import Frame, VideoInfo
from .inputs import MediaFile


# Time and duration in seconds, and the picture.
Picture: TypeAlias = tuple[Fraction, Fraction, VideoFrame]

# Containers whose seeking lands on a key frame at or before the wanted time.
SEEKABLE = ("mov", "matroska", "webm")

# Codecs that give one picture for every packet, so that packets can be counted instead of pictures.
_ONE_PICTURE_A_PACKET = ("h264", "hevc", "vvc", "av1", "ffv1", "prores", "mjpeg", "png")

# Decoding so little is faster than opening an index and seeking.
WORTH_SEEKING_SECONDS = 2
_WORTH_SEEKING_FRAMES = 60

# Times pass through floats; a frame that overlaps a range by less than this is not in it.
TIME_TOLERANCE = 1e-6


class FfmpegSource:
    """One video stream of a file. Every call of `frames` opens the file anew.

    Args:
        file: The file.
        stream: Which of its video streams.
        square_pixels, tone_mapped: See `VideoReader`.

    Raises:
        MediaError: The file cannot be read, holds no such stream, or not one of its frames can be decoded.
    """

    def __init__(self, file: MediaFile, stream: int, square_pixels: bool, tone_mapped: bool):
        self.file = file
        self.stream = stream
        self.square_pixels = square_pixels
        self.tone_mapped = tone_mapped
        with open_container(file) as container:
            self.info = self._probe(container)

    def frames(self, start: float | None = None, stop: float | None = None) -> Generator[Frame, None, None]:
        """The frames on screen in `[start, stop)` seconds; only what is yielded is converted to RGB."""
        losses = Losses()
        convert: RgbConverter | None = None
        for time, duration, picture in with_true_durations(self._pictures(losses, start)):
            if start is not None and time + duration <= start + TIME_TOLERANCE:
                continue
            if stop is not None and time >= stop - TIME_TOLERANCE:
                return
            convert = convert or self._converter(picture)
            yield Frame(convert(picture), float(time), float(duration))
        if start is None:
            self._warn_of(losses)

    def frames_from(self, index: int) -> Generator[Frame, None, None]:
        """The frames from the `index`-th on, counted as decoding the whole file counts them."""
        times = self._frame_times if index >= _WORTH_SEEKING_FRAMES else None
        if times is not None and index < len(times):
            frames = self.frames(start=float(times[index]))
            first = next(frames, None)
            if first is not None and abs(first.pts_seconds - float(times[index])) < TIME_TOLERANCE:
                yield first
                yield from frames
                return
        yield from self._skipping(index)

    def _skipping(self, count: int) -> Iterator[Frame]:
        losses = Losses()
        convert: RgbConverter | None = None
        for index, (time, duration, picture) in enumerate(with_true_durations(self._pictures(losses))):
            if index >= count:
                convert = convert or self._converter(picture)
                yield Frame(convert(picture), float(time), float(duration))
        self._warn_of(losses)

    def _pictures(self, losses: Losses, start: float | None = None) -> Iterator[Picture]:
        """Pictures decoded on all cores and, from the first damage on, on one, which loses no sound neighbours."""
        given = 0
        with open_container(self.file) as container:
            stream = choose_stream(container, self.file, self.stream)
            try:
                for picture in self._pictures_from(container, stream, losses, start, all_cores=True):
                    yield picture
                    given += 1
                # A file that was cut off may end without an error.
                if start is not None or losses.decoded >= (self.info.num_frames or 0):
                    return
            except DamagedError:
                pass
        losses.reset()
        with open_container(self.file) as container:
            stream = choose_stream(container, self.file, self.stream)
            yield from islice(self._pictures_from(container, stream, losses, start, all_cores=False), given, None)

    def _pictures_from(
        self, container: InputContainer, stream: VideoStream, losses: Losses, start: float | None, all_cores: bool
    ) -> Iterator[Picture]:
        """Pictures from the last key frame at or before `start`, or from the beginning if that cannot be found."""
        if start is None or start < self.info.start_seconds + WORTH_SEEKING_SECONDS or not self._can_seek:
            yield from decode_pictures(container, stream, losses, all_cores)
            return
        assert stream.time_base is not None
        with open_container(self.file) as other:
            target = choose_stream(other, self.file, self.stream)
            try:
                other.seek(int(start / stream.time_base), stream=target, backward=True)
            except av.error.FFmpegError:
                pass
            pictures = decode_pictures(other, target, losses, all_cores)
            first = next(pictures, None)
            if first is not None and self.info.start_seconds < first[0] <= start:
                yield first
                yield from pictures
                return
        yield from decode_pictures(container, stream, losses, all_cores)

    @property
    def _can_seek(self) -> bool:
        return self.info.duration_seconds is not None and any(
            name in SEEKABLE for name in self.info.container.split(",")
        )

    @cached_property
    def _frame_times(self) -> list[Fraction] | None:
        """Every frame's time by the packets' headers, without decoding; None where these cannot be trusted."""
        if not self._can_seek or self.info.codec not in _ONE_PICTURE_A_PACKET:
            return None
        times = []
        with open_container(self.file) as container:
            stream = choose_stream(container, self.file, self.stream)
            try:
                for packet in container.demux(stream):
                    if packet.size == 0 or packet.is_discard:
                        continue
                    if packet.is_corrupt or packet.pts is None:
                        return None
                    times.append(packet.pts * packet.time_base)
            except av.error.FFmpegError:
                return None
        times.sort()
        distinct = len(set(times)) == len(times)
        return times if times and distinct and float(times[0]) == self.info.start_seconds else None

    def _probe(self, container: InputContainer) -> VideoInfo:
        stream = choose_stream(container, self.file, self.stream)
        losses = Losses()
        first = next(decode_pictures(container, stream, losses), None)
        if first is None:
            damage = f"; {losses.damaged_packets} packets are damaged or encrypted" if losses.damaged_packets else ""
            raise MediaError(f"{self.file}: not one video frame can be decoded{damage}.")
        time, _, picture = first
        return self._describe(container, stream, picture, time)

    def _describe(
        self, container: InputContainer, stream: VideoStream, picture: VideoFrame, time: Fraction
    ) -> VideoInfo:
        aspect = Fraction(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
        converter = RgbConverter(picture, aspect, self.square_pixels, self.tone_mapped)
        return VideoInfo(
            path=self.file.path,
            width=converter.width,
            height=converter.height,
            stored_width=picture.width,
            stored_height=picture.height,
            fps=average_fps(stream),
            num_frames=declared_frames(container, stream),
            duration_seconds=declared_seconds(container, stream),
            start_seconds=float(time),
            codec=stream.codec_context.codec.canonical_name,
            container=container.format.name,
            pixel_format=picture.format.name,
            bit_depth=bit_depth(picture),
            rotation=picture.rotation,
            sample_aspect_ratio=aspect,
            color_range=color_range_name(picture),
            color_matrix=color_matrix_name(picture.colorspace),
            color_transfer=color_transfer_name(picture.color_trc),
            is_interlaced=bool(picture.interlaced_frame),
            has_alpha=is_transparent(picture) or stream.metadata.get("alpha_mode") == "1",
            has_audio=bool(container.streams.audio),
            num_video_streams=len(video_streams(container)),
        )

    def _converter(self, picture: VideoFrame) -> RgbConverter:
        return RgbConverter(picture, self.info.sample_aspect_ratio, self.square_pixels, self.tone_mapped)

    def _warn_of(self, losses: Losses) -> None:
        end = None
        # With sound, the length is that of the longer of the two.
        if self.info.num_frames is None and self.info.duration_seconds is not None and not self.info.has_audio:
            end = self.info.start_seconds + self.info.duration_seconds
        losses.warn(self.file, self.info.num_frames, losses.cut_off(end, float(1 / self.info.fps)))


def with_true_durations(
    pictures: Iterator[Picture],
) -> Iterator[Picture]:
    """Replaces each picture's nominal duration by the time to the next one; the last keeps its own."""
    held = next(pictures, None)
    if held is None:
        return
    for following in pictures:
        yield held[0], following[0] - held[0], held[2]
        held = following
    yield held
