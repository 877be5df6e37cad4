"""The sound of a source clip, carried into a written one: packets copied where the container can hold them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import cast

import av.error
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet

from .decoding import Losses, decode_pictures, open_container, video_streams
from .errors import MediaWarning
from .inputs import MediaFile


# Codecs that players expect in each container; everything else is encoded anew.
_COPIED = {
    "mp4": {"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"},
    "mov": {"aac", "ac3", "alac", "eac3", "mp3", "pcm_s16le", "pcm_s24le"},
    "webm": {"opus", "vorbis"},
    "matroska": None,  # holds every codec
}
_ENCODER = {"mp4": "aac", "mov": "aac", "webm": "libopus", "matroska": "aac"}


class AudioTrack:
    """Feeds the first audio stream of `source` into `output`, shifted so that sound and picture stay together.

    Args:
        source: A media file. One without sound is announced in a `MediaWarning`, and nothing is written.
        output: The container being written, before its header.
        start_seconds: The time on the source's clock that falls on the output's 0; by default that of the source's
            first video frame.
    """

    def __init__(self, source: MediaFile, output: OutputContainer, start_seconds: float | None = None):
        self.source = source
        self._output = output
        self._damaged = 0
        self._written = 0
        self._input = open_container(source)
        stream = next(iter(self._input.streams.audio), None)
        self._has_sound = stream is not None and stream.codec_context is not None
        if stream is None or stream.codec_context is None:
            reason = "holds no sound" if stream is None else "its sound has a codec that cannot be decoded"
            warnings.warn(f"{source}: {reason}; the video is written without.", MediaWarning, stacklevel=4)
            self._packets: Iterator[Packet] = iter(())
        else:
            self._start = self._video_start() if start_seconds is None else Fraction(start_seconds)
            self._packets = self._copied(stream) if self._can_copy(stream) else self._encoded(stream)
        self._next: Packet | None = None

    def write_until(self, seconds: Fraction) -> None:
        """Writes the sound that begins before `seconds` on the output's clock."""
        while True:
            packet, self._next = self._next or next(self._packets, None), None
            if packet is None:
                return
            if (packet.pts or 0) * packet.time_base >= seconds:
                self._next = packet
                return
            self._output.mux(packet)
            self._written += 1

    def finish(self) -> None:
        """Announces what was left out, in `MediaWarning`s."""
        if self._has_sound and not self._written:
            message = f"{self.source}: none of its sound falls into the video; it is written without."
            warnings.warn(message, MediaWarning, stacklevel=5)
        if self._damaged:
            message = f"{self.source}: {self._damaged} damaged packets of its sound were left out."
            warnings.warn(message, MediaWarning, stacklevel=5)

    def close(self) -> None:
        self._input.close()

    def _can_copy(self, stream: AudioStream) -> bool:
        allowed = _COPIED[self._output.format.name]
        return allowed is None or stream.codec_context.codec.canonical_name in allowed

    def _video_start(self) -> Fraction:
        streams = video_streams(self._input)
        if not streams or streams[0].codec_context is None:
            return Fraction(0)
        with open_container(self.source) as container:
            stream = video_streams(container)[0]
            first = next(decode_pictures(container, stream, Losses()), None)
        return Fraction(0) if first is None else first[0]

    def _demux(self, stream: AudioStream) -> Iterator[Packet]:
        packets = self._input.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                self._damaged += 1
                return
            if packet is None:
                return
            yield packet

    def _copied(self, stream: AudioStream) -> Iterator[Packet]:
        written = self._output.add_stream_from_template(stream)
        return self._copy_packets(stream, written)

    def _copy_packets(self, stream: AudioStream, written: AudioStream) -> Iterator[Packet]:
        last = None
        for packet in self._demux(stream):
            if packet.pts is None or packet.size == 0:
                continue
            offset = round(self._start / packet.time_base)
            packet.pts -= offset
            packet.dts = packet.pts
            # Packets must come in order; a packet that begins before the picture is left out.
            if packet.pts < 0 or (last is not None and packet.pts <= last):
                continue
            last = packet.pts
            packet.stream = written
            yield packet

    def _encoded(self, stream: AudioStream) -> Iterator[Packet]:
        context = stream.codec_context
        rate = 48000 if _ENCODER[self._output.format.name] == "libopus" else context.sample_rate
        written = cast(AudioStream, self._output.add_stream(_ENCODER[self._output.format.name], rate=rate))
        written.layout = "mono" if context.channels == 1 else "stereo"
        return self._encode_packets(stream, written, rate)

    def _encode_packets(self, stream: AudioStream, written: AudioStream, rate: int) -> Iterator[Packet]:
        resampler: AudioResampler | None = None
        position: int | None = None
        for frame in self._decoded(stream):
            if resampler is None:
                resampler = AudioResampler(
                    format=written.codec_context.format,
                    layout=written.codec_context.layout,
                    rate=rate,
                    frame_size=written.codec_context.frame_size or None,
                )
            if position is None:
                time = Fraction(frame.pts or 0) * (frame.time_base or Fraction(1, rate)) - self._start
                if time < 0:
                    continue
                position = round(time * rate)
            frame.pts = None
            for piece in resampler.resample(frame):
                piece.pts, piece.time_base = position, Fraction(1, rate)
                position += piece.samples
                yield from written.encode(piece)
        if resampler is not None and position is not None:
            for piece in resampler.resample(None):
                piece.pts, piece.time_base = position, Fraction(1, rate)
                position += piece.samples
                yield from written.encode(piece)
            yield from written.encode(None)

    def _decoded(self, stream: AudioStream) -> Iterator[AudioFrame]:
        for packet in self._demux(stream):
            try:
                frames = cast(list[AudioFrame], packet.decode())
            except av.error.FFmpegError:
                self._damaged += 1
                continue
            yield from frames
