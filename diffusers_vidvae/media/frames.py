"""Frames with their times, and what a file says about itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Attributes:
        data: RGB pixels, shape `(H, W, 3)`, uint8.
        pts_seconds: When the frame appears, on the file's own clock (a clip's first frame need not be at 0).
        duration_seconds: How long it stays: up to the next frame's time; for the last frame, what the file says.
    """

    data: NDArray[np.uint8]
    pts_seconds: float
    duration_seconds: float

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or self.data.shape[2] != 3 or self.data.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels of shape (H, W, 3), got {self.data.dtype} {self.data.shape}.")

    @property
    def end_seconds(self) -> float:
        return self.pts_seconds + self.duration_seconds

    def __repr__(self) -> str:
        return f"Frame(data={_shape(self.data)}, pts_seconds={self.pts_seconds:.3f})"


@dataclass(frozen=True)
class FrameBatch:
    """Consecutive decoded frames.

    Attributes:
        data: RGB pixels, shape `(T, H, W, 3)`, uint8.
        pts_seconds: Shape `(T,)`, float64; see `Frame`.
        duration_seconds: Shape `(T,)`, float64.
    """

    data: NDArray[np.uint8]
    pts_seconds: NDArray[np.float64]
    duration_seconds: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[3] != 3 or self.data.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels of shape (T, H, W, 3), got {self.data.dtype} {self.data.shape}.")
        for name in ("pts_seconds", "duration_seconds"):
            if getattr(self, name).shape != (len(self.data),):
                raise ValueError(f"{name} has shape {getattr(self, name).shape} for {len(self.data)} frames.")

    @classmethod
    def from_frames(cls, frames: Sequence[Frame]) -> FrameBatch:
        return cls(
            np.stack([frame.data for frame in frames]),
            np.array([frame.pts_seconds for frame in frames], dtype=np.float64),
            np.array([frame.duration_seconds for frame in frames], dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Frame:
        return Frame(self.data[index], float(self.pts_seconds[index]), float(self.duration_seconds[index]))

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        times = f"{self.pts_seconds[0]:.3f}..{self.pts_seconds[-1]:.3f}" if len(self) else "none"
        return f"FrameBatch(data={_shape(self.data)}, pts_seconds={times})"


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, as far as its header and its first frame tell.

    Attributes:
        path: The file; None for media in memory.
        width, height: Size of the frames a reader yields: turned upright, pixels made square (when asked).
        stored_width, stored_height: Size of the coded picture.
        fps: Average frame rate.
        num_frames: Frame count by the header, None where it has none. Decoding may give fewer.
        duration_seconds: Length by the header, None where it has none.
        start_seconds: Time of the first frame on the file's clock.
        codec: FFmpeg's name of the codec, such as "h264".
        container: FFmpeg's name of the container, such as "matroska".
        pixel_format: FFmpeg's name of the stored pixel format, such as "yuv420p10le".
        bit_depth: Bits per sample.
        rotation: Rotation tag in degrees, counter-clockwise; -90 means stored on its side and turned clockwise.
        sample_aspect_ratio: Width over height of one stored pixel.
        color_range: "full", "limited" or "unspecified" (then limited is meant for YUV).
        color_matrix: YUV matrix: "bt709", "bt601", "bt2020", "rgb" or "unspecified" (read as bt601, as FFmpeg does).
        color_transfer: "sdr", "pq", "hlg" or "unspecified".
        is_interlaced: Whether the frames are interlaced; they are read as they are, with both fields in one.
        has_alpha: Whether the stream carries an alpha channel, which reading drops.
        has_audio: Whether there is an audio stream.
        num_video_streams: Video streams in the file, cover pictures not counted.
    """

    path: Path | None
    width: int
    height: int
    stored_width: int
    stored_height: int
    fps: Fraction
    num_frames: int | None
    duration_seconds: float | None
    start_seconds: float
    codec: str
    container: str
    pixel_format: str
    bit_depth: int
    rotation: int
    sample_aspect_ratio: Fraction
    color_range: str
    color_matrix: str
    color_transfer: str
    is_interlaced: bool
    has_alpha: bool
    has_audio: bool
    num_video_streams: int

    @property
    def is_hdr(self) -> bool:
        return self.color_transfer in ("pq", "hlg")


def _shape(array: NDArray) -> str:
    return f"{array.dtype} {array.shape}"
