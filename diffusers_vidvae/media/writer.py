"""Writing video: H.264, lossless FFV1, VP9, GIF, WebP and folders of PNG frames, frame by frame."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusers_vidvae.files import AtomicOutput, naming_disk_errors

from .background import WriteBehind, waiting_frames
from .encoding import Codec, EncodedFile, EncodingOptions, PixelFormat, PngFolder
from .errors import MediaError
from .frames import Frame, FrameBatch
from .inputs import FileInput


_CODEC_OF_SUFFIX: dict[str, Codec] = {
    ".mp4": "h264",
    ".m4v": "h264",
    ".mov": "h264",
    ".mkv": "h264",
    ".webm": "vp9",
    ".gif": "gif",
    ".webp": "webp",
    "": "png",
}
_SUFFIXES_OF_CODEC: dict[Codec, tuple[str, ...]] = {
    "h264": (".mp4", ".m4v", ".mov", ".mkv"),
    "vp9": (".webm", ".mkv", ".mp4"),
    "ffv1": (".mkv",),
    "gif": (".gif",),
    "webp": (".webp",),
    "png": ("",),
}
_FRAME_NAME = re.compile(r"frame_\d+\.png")
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_LARGEST_CRF = {"h264": 51, "vp9": 63}


class VideoWriter:
    r"""Writes frames to a video file, an animation or a folder of PNG frames.

    What is written follows from the name: `.mp4`, `.m4v`, `.mov` and `.mkv` hold H.264, `.webm` VP9, `.gif` and
    `.webp` animations, and a name without an ending becomes a folder of `frame_00000.png`, ... `lossless=True` writes
    FFV1 to `.mkv`, whose frames read back bit for bit, or a lossless `.webp`.

    The frames' size is never changed. H.264 with halved colour resolution (4:2:0), which every player knows, exists
    for even sizes only; frames of an odd width or height are written as 4:4:4 instead, which browsers, VLC, mpv and
    FFmpeg play, but QuickTime and most hardware decoders do not. Where that matters, pad the frames to even sizes.
    The other formats have no such limit.

    Frames are encoded in a thread while the caller makes the next ones; what goes wrong there is raised by the next
    `write`, or by `close`. The file appears under its name when the `with` block (or `close`) ends well. After an
    error, or Ctrl-C, nothing is left.

    Args:
        path: The file or folder to write.
        fps: Frames per second, exact for a `Fraction`.
        codec: Overrides the codec that follows from the name.
        lossless: Keep every pixel exactly.
        crf: Constant quality of H.264 (0 to 51) and VP9 (0 to 63), lower is better; 18 and 24 by default.
        preset: x264's effort, "ultrafast" to "veryslow".
        pixel_format: "yuv420p" or "yuv444p" for H.264 and VP9; by default 4:2:0 wherever the size allows it.
        sample_aspect_ratio: Width over height of a pixel, for frames that were read with `square_pixels=False`.
        audio_from: A media file whose sound is carried over: copied where the container can hold it, else encoded.
        audio_start_seconds: Time on that file's clock that falls on the first written frame; by default that of its
            own first video frame.
        overwrite: Replace an existing file.

    Raises:
        MediaError: The file exists, its folder does not, the options do not fit together, or the disk is full.

    Example:

        >>> from diffusers_vidvae.media import VideoReader, VideoWriter

        >>> reader = VideoReader("in.mp4")
        >>> with VideoWriter("out.mp4", reader.info.fps, audio_from="in.mp4") as writer:
        ...     for chunk in reader.iter_chunks(32):
        ...         writer.write(chunk.data)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: Fraction | float,
        *,
        codec: Codec | None = None,
        lossless: bool = False,
        crf: int | None = None,
        preset: str = "medium",
        pixel_format: PixelFormat | None = None,
        sample_aspect_ratio: Fraction | None = None,
        audio_from: FileInput | None = None,
        audio_start_seconds: float | None = None,
        overwrite: bool = False,
    ):
        self.path = Path(path)
        self.num_frames = 0
        options = EncodingOptions(
            codec=_choose_codec(self.path, codec, lossless),
            fps=_exact_fps(self.path, fps),
            lossless=lossless,
            crf=crf,
            preset=preset,
            pixel_format=pixel_format,
            sample_aspect_ratio=sample_aspect_ratio,
            audio_from=audio_from,
            audio_start_seconds=audio_start_seconds,
        )
        _check_options(self.path, options)
        self.fps = options.fps
        self._size: tuple[int, int] | None = None
        self._variable_rate = False
        self._first_pts = Fraction(0)
        self._end = Fraction(0)
        self._finished = False
        self._behind: WriteBehind[tuple[Any, Fraction, Fraction]] | None = None
        self._output = AtomicOutput(
            self.path,
            overwrite=overwrite,
            folder=options.codec == "png",
            reason_to_keep=_other_files_than_frames,
            error=MediaError,
        )
        try:
            with naming_disk_errors(self.path, MediaError):
                self._sink = self._open_sink(options)
        except BaseException:
            self._output.discard()
            raise

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        # A writer that was never closed leaves no temporary file either.
        if hasattr(self, "_sink"):
            self.abort()

    def write(
        self,
        frames: NDArray[np.uint8] | Frame | FrameBatch | Sequence[Image.Image],
        pts_seconds: Sequence[float] | float | None = None,
    ) -> None:
        """Writes one frame `(H, W, 3)` or several `(T, H, W, 3)`, uint8 RGB, or a list of PIL images.

        Args:
            frames: The pixels. All frames of a file have the size of its first one.
            pts_seconds: When each frame is shown, to keep a variable frame rate; the file begins at the first one's
                time. Without it, frames follow each other at `fps`. Either all frames of a file have times or none.

        Raises:
            MediaError: Wrong shape, type or size, times that do not grow, or the disk is full. The file is given up.
        """
        try:
            self._write(frames, pts_seconds)
        except BaseException:
            self.abort()
            raise

    def close(self) -> None:
        """Finishes the file and gives it its name.

        Raises:
            MediaError: No frame was written, or the disk is full.
        """
        if self._finished:
            return
        try:
            if self._size is None:
                raise MediaError(f"{self.path}: no frames were written.")
            if self._behind is not None:
                self._behind.finish()
            with naming_disk_errors(self.path, MediaError):
                self._sink.finish()
            self._output.commit()
            self._finished = True
        finally:
            self.abort()

    def abort(self) -> None:
        """Gives the file up; nothing is left on disk. Does nothing after `close`."""
        if self._finished:
            return
        self._finished = True
        try:
            if self._behind is not None:
                self._behind.abort()
            self._sink.abort()
        except OSError:
            pass  # the file is removed, so that its end could not be written does not matter
        finally:
            self._output.discard()

    def _open_sink(self, options: EncodingOptions) -> EncodedFile | PngFolder:
        if options.codec == "png":
            return PngFolder(self._output.temporary, options.fps)
        return EncodedFile(self._output.temporary, self.path, options)

    def _write(self, frames: Any, pts_seconds: Sequence[float] | float | None) -> None:
        if self._finished:
            raise MediaError(f"{self.path}: the file is finished, no more frames can be written.")
        images = self._checked(frames)
        times = [None] * len(images) if pts_seconds is None else np.atleast_1d(pts_seconds).tolist()
        if len(times) != len(images):
            raise MediaError(f"{self.path}: {len(times)} times were given for {len(images)} frames.")
        for image, time in zip(images, times, strict=True):
            self._begin(image, time)
            assert self._behind is not None
            self._behind.put((self._sink.copy(image), self._time_of(time), 1 / self.fps))
            self.num_frames += 1

    def _checked(self, frames: Any) -> NDArray[np.uint8]:
        if isinstance(frames, list) and frames and isinstance(frames[0], Image.Image):
            frames = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
        images = frames.data if isinstance(frames, (Frame, FrameBatch)) else np.asarray(frames)
        if images.ndim not in (3, 4) or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise MediaError(
                f"{self.path}: frames must be uint8 of shape (H, W, 3) or (T, H, W, 3), "
                f"got {images.dtype} {images.shape}."
            )
        return images.reshape(-1, *images.shape[-3:])

    def _begin(self, image: NDArray[np.uint8], time: float | None) -> None:
        height, width = image.shape[:2]
        if self._size is None:
            self._size = (width, height)
            self._variable_rate = time is not None
            self._first_pts = Fraction(time or 0)
            self._sink.start(width, height, self._variable_rate)
            # The thread knows the sink, not the writer, so that a forgotten writer is found to be forgotten.
            write = partial(_write_frame, self._sink, self.path)
            self._behind = WriteBehind(write, waiting_frames(height, width))
        if (width, height) != self._size:
            raise MediaError(
                f"{self.path}: all frames must have the first one's size {self._size[0]}x{self._size[1]}, "
                f"frame {self.num_frames} is {width}x{height}."
            )
        if self._variable_rate != (time is not None):
            raise MediaError(f"{self.path}: either all frames have times or none.")

    def _time_of(self, time: float | None) -> Fraction:
        if time is None:
            return self.num_frames / self.fps
        begins = Fraction(time) - self._first_pts
        if self.num_frames and begins <= self._end:
            raise MediaError(
                f"{self.path}: frame {self.num_frames} at {time} s does not come after the one before it."
            )
        self._end = begins
        return begins


def _write_frame(sink: EncodedFile | PngFolder, path: Path, frame: tuple[Any, Fraction, Fraction]) -> None:
    with naming_disk_errors(path, MediaError):
        sink.write(*frame)


def _other_files_than_frames(folder: Path) -> str | None:
    others = sorted(entry.name for entry in folder.iterdir() if not _FRAME_NAME.fullmatch(entry.name))
    return f"holds other files than frames ({others[0]}); it is not replaced" if others else None


def _exact_fps(path: Path, fps: Fraction | float) -> Fraction:
    if not 0 < fps < 1_000_000:
        raise MediaError(f"{path}: fps must lie between 0 and 1000000, got {fps}.")
    # FFmpeg's rates are quotients of 32-bit numbers; this keeps 29.97002997... as 30000/1001.
    return Fraction(fps).limit_denominator(1001)


def _choose_codec(path: Path, codec: Codec | None, lossless: bool) -> Codec:
    suffix = path.suffix.lower()
    if codec is None:
        if suffix not in _CODEC_OF_SUFFIX:
            allowed = ", ".join(s for s in _CODEC_OF_SUFFIX if s)
            raise MediaError(f"{path}: the ending must be one of {allowed}, or none for a folder of PNG frames.")
        codec = "ffv1" if lossless and suffix == ".mkv" else _CODEC_OF_SUFFIX[suffix]
    if codec not in _SUFFIXES_OF_CODEC:
        raise MediaError(f"{path}: codec must be one of {', '.join(_SUFFIXES_OF_CODEC)}, got {codec!r}.")
    if suffix not in _SUFFIXES_OF_CODEC[codec]:
        allowed = ", ".join(repr(s) for s in _SUFFIXES_OF_CODEC[codec])
        raise MediaError(f"{path}: {codec} needs a name ending in {allowed}, got {suffix!r}.")
    if lossless and codec in ("h264", "vp9", "gif"):
        raise MediaError(f"{path}: {codec} is not lossless; use .mkv (FFV1), .webp or a folder of PNG frames.")
    return codec


def _check_options(path: Path, options: EncodingOptions) -> None:
    codec = options.codec
    if options.preset not in _PRESETS:
        raise MediaError(f"{path}: preset must be one of {', '.join(_PRESETS)}, got {options.preset!r}.")
    if options.pixel_format not in (None, *get_args(PixelFormat)):
        allowed = ", ".join(get_args(PixelFormat))
        raise MediaError(f"{path}: pixel_format must be one of {allowed}, got {options.pixel_format!r}.")
    if options.audio_from is not None and codec in ("gif", "webp", "png"):
        raise MediaError(f"{path}: {codec} holds no sound; write .mp4, .mkv or .webm, or leave audio_from out.")
    if options.crf is not None and codec not in _LARGEST_CRF:
        raise MediaError(f"{path}: crf is an option of {' and '.join(_LARGEST_CRF)}, not of {codec}.")
    if options.crf is not None and not 0 <= options.crf <= _LARGEST_CRF[codec]:
        raise MediaError(f"{path}: crf must lie between 0 and {_LARGEST_CRF[codec]} for {codec}, got {options.crf}.")
