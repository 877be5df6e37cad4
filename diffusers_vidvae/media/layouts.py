"""In which order an array or tensor has its dimensions, and what its values mean: told apart, never guessed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import MediaWarning


Layout: TypeAlias = Literal["CHW", "HWC", "BCHW", "TCHW", "CTHW", "THWC", "BCTHW", "BTCHW", "BTHWC"]
ValueRange: TypeAlias = tuple[float, float]

# Those of floating tensors in [-1, 1] unless another range is given; the others are in [0, 1].
SIGNED_LAYOUTS = ("BCTHW", "CTHW", "BCHW", "CHW")
LAYOUTS_OF_TENSORS = {3: ("CHW", "HWC"), 4: ("TCHW", "CTHW", "THWC"), 5: ("BCTHW", "BTCHW", "BTHWC")}
LAYOUTS_OF_ARRAYS = {3: ("HWC",), 4: ("THWC",), 5: ("BTHWC",)}

# Models overshoot a little; what lies further out was never meant to be in the range.
OVERSHOOT = 0.25
ROUNDING = 1e-3


@dataclass(frozen=True)
class ReadOptions:
    """How to read what does not say itself how it is meant; see `open_clips`."""

    fps: Fraction | None = None
    layout: Layout | None = None
    value_range: ValueRange | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in get_args(Layout):
            raise ValueError(f"`layout` must be one of {', '.join(get_args(Layout))}, got {self.layout!r}.")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"`value_range` must be (lowest, highest), got {self.value_range}.")


def layouts_of(block: Any, known: Mapping[int, Sequence[str]], options: ReadOptions) -> list[str]:
    """The layouts that an array's or tensor's shape fits, at least one."""
    shape, wanted = tuple(block.shape), options.layout
    takes = (1, 3, 4) if options.channels == 3 else (options.channels,)
    if 0 in shape:
        raise ValueError(f"A video must have frames with pixels, got {describe(block)}.")
    if wanted is not None:
        if len(wanted) != len(shape) or shape[wanted.index("C")] not in takes:
            channels = " or ".join(map(str, takes))
            raise ValueError(f"`layout` {wanted!r} needs {channels} channels at C, got {describe(block)}.")
        return [wanted]
    names = known.get(len(shape), ())
    fitting = [name for name in names if shape[name.index("C")] == options.channels]
    last = [name for name in names if name.endswith("C") and shape[-1] in takes]
    if not fitting and not last:
        possible = names or [name for names in known.values() for name in names]
        shapes = " or ".join(f"({', '.join(name)})" for name in possible)
        raise ValueError(
            f"A clip must have shape {shapes} with C = {options.channels}, got {describe(block)}; `layout` names"
            " another order."
        )
    return fitting or last


def layout_of(block: Any, known: Mapping[int, Sequence[str]], options: ReadOptions) -> str:
    return only_layout(layouts_of(block, known, options), block)


def only_layout(layouts: list[str], block: Any) -> str:
    if len(layouts) > 1:
        raise ValueError(
            f"The layout is ambiguous: {describe(block)} may be {' or '.join(layouts)}; say which with `layout`."
        )
    return layouts[0]


def check_range(block: Any, low: float, high: float, value_range: ValueRange, tolerance: float) -> None:
    lowest, highest = value_range
    slack = tolerance * (highest - lowest)
    if not lowest - slack <= low <= high <= highest + slack:
        raise ValueError(
            f"Values must lie in [{lowest:g}, {highest:g}], got {describe(block)} with values from {low:g} to"
            f" {high:g}; `value_range` says what black and white are."
        )


def warn_of_positive_values(what: str) -> None:
    warnings.warn(
        f"{what} without values below 0 taken to lie in [-1, 1]; if black is 0, say `value_range=(0, 1)`.",
        MediaWarning,
        stacklevel=2,
    )


@dataclass
class FrameConverter:
    """Brings frames of one known form to uint8 `(H, W, C)` or floats `(C, H, W)` in [-1, 1]."""

    layout: str
    value_range: ValueRange
    channels: int
    has_warned: bool = False

    def __call__(self, frame: Any) -> NDArray[np.uint8] | torch.Tensor:
        if str(frame.dtype).removeprefix("torch.") == "uint8":
            levels = frame.cpu().numpy() if isinstance(frame, torch.Tensor) else frame
            levels = levels if self.layout == "HWC" else levels.transpose(1, 2, 0)
            return self._channels(levels, -1)
        pixels = frame if isinstance(frame, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(frame))
        pixels = pixels if self.layout == "CHW" else pixels.permute(2, 0, 1)
        pixels = self._channels(pixels, 0)
        low, high = self.value_range
        return pixels if (low, high) == (-1, 1) else (pixels.float() - low) * (2 / (high - low)) - 1

    def _channels(self, frame: Any, axis: int) -> Any:
        count = frame.shape[axis]
        if count == self.channels:
            return frame
        if count == 1:
            shape = [self.channels if dim == axis % 3 else size for dim, size in enumerate(frame.shape)]
            return np.broadcast_to(frame, shape) if isinstance(frame, np.ndarray) else frame.expand(*shape)
        if not self.has_warned:
            self.has_warned = True
            warnings.warn("the fourth channel of the frames (alpha) is dropped.", MediaWarning, stacklevel=2)
        return frame[..., : self.channels] if axis else frame[: self.channels]


def describe(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        return f"a {str(value.dtype).removeprefix('torch.')} {kind} of shape {tuple(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return f"an empty {type(value).__name__}" if not value else f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
