"""What `VideoWriter` writes into: a file encoded by FFmpeg, or a folder of PNG frames."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .audio import AudioTrack
from .color import FROM_RGB
from .errors import MediaError
from .folder_source import RATE_NOTE, TIME_NOTE
from .inputs import FileInput, MediaFile


Codec = Literal["h264", "vp9", "ffv1", "gif", "webp", "png"]
PixelFormat = Literal["yuv420p", "yuv444p"]

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".gif": "gif",
    ".webp": "webp",
}
_ENCODERS = {"h264": "libx264", "vp9": "libvpx-vp9", "ffv1": "ffv1", "gif": "gif", "webp": "libwebp_anim"}
# The index comes first, so that a browser can play while it loads; lengths are not rounded to milliseconds.
_MP4_OPTIONS = {"movflags": "faststart", "movie_timescale": "90000"}
_MUXER_OPTIONS = {"mp4": _MP4_OPTIONS, "mov": _MP4_OPTIONS}
_DEFAULT_CRF = {"h264": 18, "vp9": 24}

# Fine enough for every usual frame rate; used when frames come with their own times.
_VARIABLE_TIME_BASE = Fraction(1, 90_000)

_BT709, _LIMITED_RANGE = 1, 1


@dataclass(frozen=True)
class EncodingOptions:
    """How frames are stored; see `VideoWriter`."""

    codec: Codec
    fps: Fraction
    lossless: bool = False
    crf: int | None = None
    preset: str = "medium"
    pixel_format: PixelFormat | None = None
    sample_aspect_ratio: Fraction | None = None
    audio_from: FileInput | None = None
    audio_start_seconds: float | None = None


class EncodedFile:
    """Encodes frames into `file` with FFmpeg. `path` is the name that messages show.

    Raises:
        MediaError: The options do not fit the first frame's size, or the audio source cannot be read.
    """

    def __init__(self, file: Path, path: Path, options: EncodingOptions):
        self.path = path
        self.options = options
        container = CONTAINERS[path.suffix.lower()]
        self._container = av.open(
            f"file:{file.absolute()}", "w", format=container, options=_MUXER_OPTIONS.get(container)
        )
        encoder = _ENCODERS[options.codec]
        stream = self._container.add_stream(encoder, rate=options.fps, options=_encoder_options(options))
        self._stream = cast(VideoStream, stream)
        self._audio: AudioTrack | None = None
        if options.audio_from is not None:
            self._audio = AudioTrack(MediaFile.of(options.audio_from), self._container, options.audio_start_seconds)
        self._reformatter = VideoReformatter()
        self._palette: Graph | None = None
        self._end = Fraction(0)

    def start(self, width: int, height: int, variable_rate: bool) -> None:
        """Settles the frames' size and clock, before the first frame."""
        stream, options = self._stream, self.options
        stream.width, stream.height = width, height
        self._format = _stored_format(self.path, options, width, height)
        stream.pix_fmt = self._format
        context = stream.codec_context
        context.time_base = _VARIABLE_TIME_BASE if variable_rate else 1 / options.fps
        stream.time_base = context.time_base
        if self._format.startswith("yuv"):
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
        if options.sample_aspect_ratio is not None:
            context.sample_aspect_ratio = options.sample_aspect_ratio
        if options.codec == "gif":
            self._palette = _palette_graph(width, height, context.time_base)

    def copy(self, image: NDArray[np.uint8]) -> VideoFrame:
        """A frame `(H, W, 3)` as FFmpeg takes it."""
        return VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")

    def write(self, copied: VideoFrame, time: Fraction, duration: Fraction) -> None:
        """Encodes one frame that is shown at `time` seconds for `duration` seconds."""
        if self._audio is not None:
            self._audio.write_until(time)
        base = self._stream.codec_context.time_base
        picture = self._stored(copied)
        picture.time_base = base
        picture.pts = round(time / base)
        picture.duration = max(1, round((time + duration) / base) - picture.pts)
        self._end = time + duration
        self._container.mux(self._stream.encode(self._paletted(picture)))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        if self._audio is not None:
            self._audio.write_until(self._end)
            self._audio.finish()
            self._audio.close()
        self._container.close()

    def abort(self) -> None:
        if self._audio is not None:
            self._audio.close()
        # Without a first frame there is no header yet, and FFmpeg closes without writing.
        self._container.close()

    def _stored(self, picture: VideoFrame) -> VideoFrame:
        if self._palette is not None:
            return picture
        return self._reformatter.reformat(
            picture,
            format=self._format,
            dst_colorspace=_BT709,
            dst_color_range=_LIMITED_RANGE if self._format.startswith("yuv") else None,
            interpolation=FROM_RGB,
        )

    def _paletted(self, picture: VideoFrame) -> VideoFrame:
        if self._palette is None:
            return picture
        self._palette.push(picture)
        return cast(VideoFrame, self._palette.pull())


class PngFolder:
    """Writes frames to `folder/frame_00000.png`, `frame_00001.png`, ..., each with a note of the frame rate.

    Frames with times of their own get a note of them, too, so that reading the folder gives back the same clip.
    """

    def __init__(self, folder: Path, fps: Fraction):
        self.folder = folder
        self.fps = fps
        self._count = 0
        self._notes_times = False

    def start(self, width: int, height: int, variable_rate: bool) -> None:
        self._notes_times = variable_rate

    def copy(self, image: NDArray[np.uint8]) -> Image.Image:
        """A frame `(H, W, 3)` as Pillow takes it."""
        return Image.fromarray(image.copy())

    def write(self, copied: Image.Image, time: Fraction, duration: Fraction) -> None:
        notes = PngInfo()
        notes.add_text(RATE_NOTE, str(self.fps))
        if self._notes_times:
            notes.add_text(TIME_NOTE, str(time))
        path = self.folder / f"frame_{self._count:05d}.png"
        copied.save(path, compress_level=4, pnginfo=notes)
        self._count += 1

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


def _stored_format(path: Path, options: EncodingOptions, width: int, height: int) -> str:
    if options.codec == "gif":
        return "pal8"
    if options.codec in ("ffv1", "webp"):
        return "bgr0" if options.codec == "ffv1" else "bgra" if options.lossless else "yuv420p"
    even_only = options.codec == "h264" and (width % 2 or height % 2)
    if options.pixel_format == "yuv420p" and even_only:
        raise MediaError(
            f"{path}: H.264 in yuv420p needs an even width and height, got {width}x{height}; "
            "pad the frames, or use yuv444p (the default for odd sizes)."
        )
    return options.pixel_format or ("yuv444p" if even_only else "yuv420p")


def _encoder_options(options: EncodingOptions) -> dict[str, str]:
    crf = str(_DEFAULT_CRF.get(options.codec, 0) if options.crf is None else options.crf)
    match options.codec:
        case "h264":
            return {"crf": crf, "preset": options.preset}
        case "vp9":
            return {"crf": crf, "b": "0", "row-mt": "1", "cpu-used": "4"}
        case "ffv1":
            return {"level": "3", "slicecrc": "1", "coder": "1", "context": "1"}
        case "webp":
            return {"lossless": "1"} if options.lossless else {"quality": "90"}
    return {}


def _palette_graph(width: int, height: int, time_base: Fraction) -> Graph:
    # A palette of its own for every frame: frames leave at once, however long the clip is.
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=VideoFormat("rgb24"), time_base=time_base)
    split = graph.add("split")
    generate = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(generate, 1, 0)
    generate.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph
