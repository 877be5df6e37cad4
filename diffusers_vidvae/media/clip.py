"""A clip: frames one after the other, and what is known of them beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


if TYPE_CHECKING:
    from .frames import VideoInfo


class ClipFrame(NamedTuple):
    """A frame: uint8 `(H, W, C)` or floats `(C, H, W)` in [-1, 1], when it appears and how long it stays.

    Times are None where the clip has no frame rate.
    """

    data: NDArray[np.uint8] | torch.Tensor
    pts_seconds: float | None = None
    duration_seconds: float | None = None

    def to_pixels(self) -> torch.Tensor:
        """`(C, H, W)`, float32 in [-1, 1]."""
        if isinstance(self.data, torch.Tensor):
            return self.data.float()
        return torch.from_numpy(np.require(self.data, requirements="W")).permute(2, 0, 1).float() / 127.5 - 1

    def to_image(self) -> NDArray[np.uint8]:
        """`(H, W, C)`, uint8."""
        if isinstance(self.data, torch.Tensor):
            levels = (self.data.detach().float().clamp(-1, 1) + 1) * 127.5
            return levels.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return self.data


class ClipPiece(NamedTuple):
    """Consecutive frames of a clip."""

    frames: list[ClipFrame]

    def to_pixels(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`(1, C, t, H, W)` in [-1, 1]."""
        if all(isinstance(frame.data, np.ndarray) for frame in self.frames):
            levels = torch.from_numpy(self.to_images()).to(device).permute(3, 0, 1, 2)  # (C, t, H, W)
            return levels.to(torch.float32).div_(127.5).sub_(1).contiguous()[None].to(dtype)
        return torch.stack([frame.to_pixels() for frame in self.frames], dim=1)[None].to(device, dtype)

    def to_tensor(self) -> torch.Tensor:
        """`(1, C, t, H, W)`: levels of uint8 where that is what all frames are, else pixels in [-1, 1]."""
        if all(isinstance(frame.data, np.ndarray) for frame in self.frames):
            return torch.from_numpy(self.to_images()).permute(3, 0, 1, 2)[None]
        return self.to_pixels()

    def to_images(self) -> NDArray[np.uint8]:
        """`(t, H, W, C)`, uint8."""
        return np.stack([frame.to_image() for frame in self.frames])

    @property
    def pts_seconds(self) -> list[float] | None:
        """When each frame appears; None where the clip has no frame rate."""
        times = [frame.pts_seconds for frame in self.frames if frame.pts_seconds is not None]
        return times if len(times) == len(self.frames) else None


class Clip:
    """The frames of one clip in order, read as they are asked for, and what is known of the clip beforehand.

    A clip can be read again and again, from its start, unless its frames come from an iterator.

    Attributes:
        height, width: Of all frames, in pixels.
        fps: Frames per second; None when unknown.
        num_frames: Number of frames; None when only reading to the end tells.
        name: What messages call the clip.
        info: What the file says about itself; None for what is no video file.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[ClipFrame]],
        height: int,
        width: int,
        fps: Fraction | None = None,
        num_frames: int | None = None,
        name: str = "the clip",
        info: VideoInfo | None = None,
        count: Callable[[], int] | None = None,
    ):
        self._read = read
        self._count = count
        self.height = height
        self.width = width
        self.fps = fps
        self.num_frames = num_frames
        self.name = name
        self.info = info

    def __iter__(self) -> Iterator[ClipFrame]:
        return self._read()

    def __repr__(self) -> str:
        length = "" if self.num_frames is None else f", {self.num_frames} frames"
        rate = "" if self.fps is None else f", {float(self.fps):.3f} fps"
        return f"Clip({self.name!r}, {self.width}x{self.height}{length}{rate})"

    def cut(self, num_frames: int | None = None) -> Iterator[ClipPiece]:
        """Pieces of `num_frames` frames, the last one shorter; all frames in one by default."""
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"A piece must have at least 1 frame, got {num_frames}.")
        frames = iter(self)
        # A generator would hold the frames of one piece until those of the next are there, too.
        return iter(lambda: ClipPiece(list(islice(frames, num_frames))), ClipPiece([]))

    def pieces(
        self,
        num_frames: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[torch.Tensor]:
        """Pieces `(1, C, t, H, W)` in [-1, 1] of `num_frames` frames, the last one shorter."""
        return (piece.to_pixels(device, dtype) for piece in self.cut(num_frames))

    def read(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """All frames, `(1, C, T, H, W)` in [-1, 1]."""
        return next(self.pieces(None, device, dtype))

    def count_frames(self) -> int:
        """Number of frames, for a file by a pass over it.

        Raises:
            ValueError: The frames come from an iterator, which can be read only once.
        """
        if self.num_frames is not None:
            return self.num_frames
        if self._count is None:
            raise ValueError(f"{self.name}: an iterator does not tell its number of frames.")
        return self._count()
