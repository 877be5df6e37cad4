"""The kept frames of one window of a clip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import FsvError
from .quantization import dequantize, quantize


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class WindowSelection:
    """The kept frames of one window of a clip.

    Attributes:
        start: Index in the clip of the first frame the window covers.
        num_frames: Frames of the clip that the window covers, those it shares with the window before it not counted.
        gaps: int64 `(kept,)`: index within the window of the first kept frame (>= 0), then the distance of each kept
            frame to the one before it (>= 1).
    """

    start: int
    num_frames: int
    gaps: Tensor

    def __post_init__(self) -> None:
        if self.gaps.dim() != 1 or self.gaps.dtype != torch.int64:
            raise FsvError(f"gaps: expected int64 (kept,), got {self.gaps.dtype} {tuple(self.gaps.shape)}.")
        if not len(self.gaps):
            raise FsvError(f"gaps: the window at frame {self.start} keeps no frame.")
        if int(self.gaps[0]) < 0 or (self.gaps[1:] < 1).any():
            raise FsvError(f"gaps: the first must be >= 0 and the others >= 1 in the window at frame {self.start}.")
        # Bounding each gap first keeps the sum from overflowing.
        if int(self.gaps.max()) >= self.num_frames or int(self.gaps.sum()) >= self.num_frames:
            raise FsvError(
                f"gaps: the last kept frame {int(self.gaps.sum())} of the window at frame {self.start} "
                f"lies beyond its {self.num_frames} frames."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(start={self.start}, num_frames={self.num_frames}, gaps={self.gaps.tolist()})"

    @property
    def num_kept(self) -> int:
        return len(self.gaps)

    @property
    def positions(self) -> Tensor:
        """int64 `(kept,)`: indices within the window of the kept frames."""
        return self.gaps.cumsum(0)

    @property
    def keep_mask(self) -> Tensor:
        """bool `(num_frames,)`: True where the frame's latents are kept."""
        return torch.zeros(self.num_frames, dtype=torch.bool).index_fill(0, self.positions, True)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LatentWindow(WindowSelection):
    """The kept frames of one window of a clip and their latents.

    Attributes:
        latents: Floats `(channels, kept, height, width)`.
    """

    latents: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latents.dim() != 4 or not self.latents.is_floating_point():
            raise FsvError(
                "latents: expected floats (channels, kept, height, width), "
                f"got {self.latents.dtype} {tuple(self.latents.shape)}."
            )
        if self.latents.shape[1] != self.num_kept:
            raise FsvError(f"latents: {self.latents.shape[1]} frames of latents for {self.num_kept} gaps.")

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, latents={tuple(self.latents.shape)})"

    def quantized(self, kind: str) -> LatentWindow:
        """The window as it is read back after being written with this quantization."""
        return replace(self, latents=dequantize(quantize(self.latents, kind)))
