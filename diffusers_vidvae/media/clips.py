r"""Everything that counts as a clip, brought to one form: frames one after the other.

Frames stay as they were given, 8 bits if they had 8 bits, until a piece of them is asked for as pixels
`(1, C, t, H, W)` in [-1, 1].

Example:

    >>> (clip,) = open_clips("clip.mp4")
    >>> print(clip.width, clip.height, clip.fps)
    >>> for pixels in clip.pieces(32):  # (1, 3, t, H, W), t <= 32
    ...     process(pixels)

    >>> (clip,) = open_clips(frames, layout="TCHW", value_range=(0, 255))
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .clip import Clip, ClipFrame
from .errors import MediaWarning
from .frames import Frame, FrameBatch
from .layouts import (
    LAYOUTS_OF_ARRAYS,
    LAYOUTS_OF_TENSORS,
    OVERSHOOT,
    ROUNDING,
    SIGNED_LAYOUTS,
    FrameConverter,
    Layout,
    ReadOptions,
    ValueRange,
    check_range,
    describe,
    layout_of,
    layouts_of,
    only_layout,
    warn_of_positive_values,
)
from .rgb import to_rgb


if TYPE_CHECKING:
    from .reader import VideoReader


# What `open_clips` takes.
ClipInput: TypeAlias = Union[
    str, os.PathLike, bytes, BinaryIO, "VideoReader", Image.Image, np.ndarray, torch.Tensor, FrameBatch, Iterable[Any]
]

ACCEPTED = (
    "a path, a URL, bytes, an open file, a folder of numbered pictures, a VideoReader, a PIL image, a list or an"
    " iterator of frames, an array (T, H, W, C) of uint8 or of floats in [0, 1], or a tensor (B, C, T, H, W) in"
    " [-1, 1], (B, T, C, H, W) or (T, C, H, W) in [0, 1] or of uint8"
)


def open_clips(
    video: ClipInput,
    fps: float | Fraction | None = None,
    *,
    layout: Layout | None = None,
    value_range: ValueRange | None = None,
    channels: int = 3,
) -> list[Clip]:
    r"""Opens a clip, or every clip of a batch. No more than the first frame is read.

    | one clip | |
    |---|---|
    | path, http(s) URL, bytes, open binary file, `{"bytes": ...}` of a data set | any video, animation or image |
    | path of a folder | numbered pictures, as `VideoWriter` writes them |
    | `VideoReader`, `FrameBatch`, list or iterator of `Frame` | frames with their times |
    | PIL image, list or iterator of PIL images | |
    | list or iterator of frames | arrays `(H, W, C)`, tensors `(C, H, W)` |
    | array `(T, H, W, C)`, `(H, W, C)` | uint8, or floats in [0, 1] |
    | tensor `(T, C, H, W)`, `(T, H, W, C)` | uint8, or floats in [0, 1], as torchvision and diffusers have them |

    A batch is a list of any of these, a floating tensor `(B, C, T, H, W)` in [-1, 1] or `(B, T, C, H, W)` in [0, 1],
    or an array or uint8 tensor of five dimensions. Grey frames are spread over three channels; alpha is dropped with a
    `MediaWarning`.

    Args:
        video: What to open.
        fps: Frame rate. What has times of its own (files, readers, `Frame`s) is resampled to it by them; for other
            frames it is their rate. Floats such as 29.97003 mean the quotient nearest to them, 30000/1001.
        layout: Order of an array's or tensor's dimensions, or of those of every frame of a list; needed where
            its shape fits two. B stands for clips, T for frames, C for channels.
        value_range: What black and white are, if not 0 and 1 (arrays, `(B, T, C, H, W)` and `(T, C, H, W)` tensors)
            or -1 and 1 (`(B, C, T, H, W)`, `(C, T, H, W)` and `(C, H, W)` tensors). uint8 always means 0 to 255.
        channels: Channels of the pixels to give. 3 is RGB.

    Raises:
        ValueError: The input is none of these, has no frame, its values are out of range, or its layout is ambiguous.
        MediaError: A file cannot be read, see `VideoReader`.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"`fps` must be positive, got {fps}.")
    options = ReadOptions(None if fps is None else exact_rate(fps), layout, value_range, channels)
    return _open_any(video, options)


def to_pixels(
    video: ClipInput,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    layout: Layout | None = None,
    value_range: ValueRange | None = None,
) -> torch.Tensor:
    r"""Reads whatever `open_clips` takes into one tensor `(B, 3, T, H, W)` in [-1, 1].

    Raises:
        ValueError: See `open_clips`; or the clips of a batch differ in size or length.
        MediaError: A file cannot be read.
    """
    clips = open_clips(video, layout=layout, value_range=value_range)
    return stack_clips([clip.read(device, dtype) for clip in clips])


def stack_clips(clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Joins clips `(1, C, T, H, W)` to a batch.

    Raises:
        ValueError: They differ in size or length.
    """
    first = clips[0].shape[2:]
    for index, clip in enumerate(clips):
        if clip.shape[2:] != first:
            raise ValueError(
                f"All clips of a batch must have one size: clip 0 has (T, H, W) = {tuple(first)}, clip {index} has"
                f" {tuple(clip.shape[2:])}."
            )
    return torch.cat(list(clips))


def open_images(image: Any, *, value_range: ValueRange | None = None, channels: int = 3) -> list[Clip]:
    r"""Opens an image, or every image of a batch, as a clip of one frame.

    Args:
        image: A path, an http(s) URL, bytes, an open file, a PIL image, an array `(H, W, C)` or `(B, H, W, C)`, a
            tensor `(C, H, W)` or `(B, C, H, W)` in [-1, 1], or a list of images.
        value_range, channels: See `open_clips`.

    Raises:
        ValueError: It is none of these.
        MediaError: A file cannot be read.
    """
    options = ReadOptions(value_range=value_range, channels=channels)
    if isinstance(image, torch.Tensor) and image.ndim == 4:
        return _open_tensor(image[:, :, None], replace(options, layout="BCTHW"))
    if isinstance(image, np.ndarray) and image.ndim == 4:
        return _open_array(image[:, None], options)
    if isinstance(image, (list, tuple)):
        if not image:
            raise ValueError("An empty list holds no image.")
        return [clip for item in image for clip in open_images(item, value_range=value_range, channels=channels)]
    if _is_file(image):
        from .images import load_image

        return [
            _open_frames([load_image(image)], options, str(image) if isinstance(image, (str, os.PathLike)) else "")
        ]
    return [_open_frames([image], options, "the image")]


def exact_rate(fps: float | Fraction) -> Fraction:
    """The quotient that a frame rate means: 29.97002997 is 30000/1001; fractions stay as they are."""
    if isinstance(fps, (int, Fraction)):
        return Fraction(fps).limit_denominator(1_000_000)
    return Fraction(fps).limit_denominator(1001) or Fraction(fps).limit_denominator(1_000_000)


def _open_any(video: Any, options: ReadOptions) -> list[Clip]:
    if isinstance(video, torch.Tensor):
        return _open_tensor(video, options)
    if isinstance(video, np.ndarray):
        return _open_array(video, options)
    if _is_file(video):
        return [_open_file(video, options)]
    if isinstance(video, Sequence) and video and _is_clip(video[0]):
        return [clip for item in video for clip in _open_any(item, options)]
    if isinstance(video, (Frame, Image.Image)):
        return [_open_frames([video], options)]
    if isinstance(video, FrameBatch) or (isinstance(video, Sequence) and not isinstance(video, str)):
        return [_open_frames(video, options)]
    if hasattr(video, "iter_chunks") and hasattr(video, "info"):
        return [_open_reader(video, options)]
    if isinstance(video, Iterable) and not isinstance(video, Mapping):
        return [_open_frames(video, options)]
    raise ValueError(f"A video must be {ACCEPTED}, got {describe(video)}.")


def _is_file(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get("bytes") is not None or value.get("path") is not None
    is_bytes = isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview))
    # PIL images and arrays have no `read`; tensors and readers neither.
    return is_bytes or (hasattr(value, "read") and hasattr(value, "seek"))


def _is_clip(item: Any) -> bool:
    """Whether an item of a list is a clip by itself, not a frame."""
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim >= 4
    return _is_file(item) or isinstance(item, (FrameBatch, list, tuple)) or hasattr(item, "iter_chunks")


def _open_file(source: Any, options: ReadOptions) -> Clip:
    from .images import is_image_file, load_image
    from .inputs import MediaFile
    from .reader import VideoReader

    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        return _open_reader(VideoReader(source), options)
    file = MediaFile.of(source)
    if is_image_file(file):
        return _open_frames([load_image(file)], options, file.name)
    return _open_reader(VideoReader(file), options)


def _open_reader(reader: VideoReader, options: ReadOptions) -> Clip:
    from .background import read_ahead, waiting_frames
    from .resample import resample_frames

    if options.channels != 3:
        raise ValueError(f"{reader.name}: a file has 3 channels, {options.channels} were asked for.")
    fps = options.fps

    def read() -> Iterator[ClipFrame]:
        if fps is not None and not reader.knows_rate:
            return _with_even_times((frame.data for frame in reader), fps)
        frames = _warning_of_uneven_times(reader) if fps is None else resample_frames(reader, fps)
        frames = read_ahead(frames, waiting_frames(reader.info.height, reader.info.width))
        return (ClipFrame(frame.data, frame.pts_seconds, frame.duration_seconds) for frame in frames)

    def count() -> int:
        return reader.count_frames() if fps is None or not reader.knows_rate else sum(1 for _ in read())

    info = reader.info
    return Clip(read, info.height, info.width, fps or info.fps, name=reader.name, info=info, count=count)


def _warning_of_uneven_times(reader: VideoReader) -> Iterator[Frame]:
    """The reader's frames, and a warning behind the last one if they are shown for times of different length."""
    shortest, longest = float("inf"), 0.0
    last = 0.0  # the last frame's duration is often a guess, and does not count
    for index, frame in enumerate(reader):
        if index:
            shortest, longest = min(shortest, last), max(longest, last)
        yield frame
        last = frame.duration_seconds
    if longest > 1.5 * shortest:
        warnings.warn(
            f"{reader.name}: its frames last from {1000 * shortest:.0f} to {1000 * longest:.0f} ms; `fps` resamples"
            " them by time where evenly spaced frames are needed.",
            MediaWarning,
            stacklevel=2,
        )


def _open_array(array: NDArray, options: ReadOptions) -> list[Clip]:
    layout = layout_of(array, LAYOUTS_OF_ARRAYS, options)
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"An array must hold uint8 or floats in [0, 1], got {describe(array)}.")
        check_range(array, float(array.min()), float(array.max()), options.value_range or (0.0, 1.0), ROUNDING)
    return _open_block(array, layout, options.value_range or (0.0, 1.0), options)


def _open_tensor(tensor: torch.Tensor, options: ReadOptions) -> list[Clip]:
    tensor = tensor.detach() if not tensor.is_floating_point() else tensor
    layouts = layouts_of(tensor, LAYOUTS_OF_TENSORS, options)
    if tensor.dtype == torch.uint8:
        return _open_block(tensor, only_layout(layouts, tensor), (0.0, 255.0), options)
    if not tensor.is_floating_point():
        raise ValueError(f"A video tensor must hold uint8 or floats, got {describe(tensor)}.")
    low, high = (float(bound) for bound in tensor.detach().float().aminmax())
    value_range, positive = options.value_range, False
    if value_range is None and low < -ROUNDING and any(layout in SIGNED_LAYOUTS for layout in layouts):
        # Only these layouts have negative values.
        layouts = [layout for layout in layouts if layout in SIGNED_LAYOUTS]
    layout = only_layout(layouts, tensor)
    if value_range is None:
        value_range = (-1.0, 1.0) if layout in SIGNED_LAYOUTS else (0.0, 1.0)
        positive = value_range[0] < 0 <= low
    check_range(tensor, low, high, value_range, OVERSHOOT if value_range[0] < 0 else ROUNDING)
    if positive:
        warn_of_positive_values(f"A {layout} tensor")
    return _open_block(tensor, layout, value_range, options)


def _open_block(block: Any, layout: str, value_range: ValueRange, options: ReadOptions) -> list[Clip]:
    """The clips of an array or tensor."""
    order = [layout.index(name) for name in "BTCHW" if name in layout]
    if isinstance(block, torch.Tensor):
        block = block.permute(order)
    else:
        block = block.transpose(order)
    for missing, name in enumerate("BT"):
        block = block if name in layout else block.reshape(*block.shape[:missing], 1, *block.shape[missing:])
    # (B, T, C, H, W)
    convert = FrameConverter("CHW", value_range, options.channels)
    height, width = block.shape[3:]

    def reader(clip: Any) -> Callable[[], Iterator[ClipFrame]]:
        return lambda: _with_even_times(map(convert, clip), options.fps)

    return [Clip(reader(clip), height, width, options.fps, len(clip)) for clip in block]


def _with_even_times(frames: Iterable[Any], fps: Fraction | None) -> Iterator[ClipFrame]:
    for index, frame in enumerate(frames):
        yield ClipFrame(frame) if fps is None else ClipFrame(frame, float(index / fps), float(1 / fps))


def _open_frames(frames: Iterable[Any], options: ReadOptions, name: str = "the clip") -> Clip:
    """Opens frames in memory, or an iterator of frames, whose first one tells the size of all."""
    once = isinstance(frames, Iterator)
    iterator = _one_by_one(frames)
    first = next(iterator, None)
    if first is None:
        got = describe(frames) if isinstance(frames, Sequence) else "none"
        raise ValueError(f"A clip must have at least one frame, got {got}.")
    height, width = _frame_size(_FrameReader(options, name).convert(first))
    resampled = isinstance(first, Frame) and options.fps is not None
    started = False

    def read() -> Iterator[ClipFrame]:
        nonlocal started
        if once and started:
            raise ValueError(f"{name}: the frames of an iterator can be read only once.")
        started = True
        items = chain([first], iterator) if once else _one_by_one(frames)
        return _FrameReader(options, name).read(_resampled(items, options.fps) if resampled else items)

    num_frames = None if once or resampled else sum(1 for _ in _one_by_one(frames))
    count = (lambda: sum(1 for _ in read())) if resampled and not once else None
    fps = options.fps or (None if once else _average_fps(frames))
    return Clip(read, height, width, fps, num_frames, name, count=count)


def _resampled(frames: Iterator[Frame], fps: Fraction | None) -> Iterator[Frame]:
    from .resample import resample_frames

    assert fps is not None
    return resample_frames(frames, fps)


def _one_by_one(frames: Iterable[Any]) -> Iterator[Any]:
    """Frames, also where several of them come in one piece."""
    for item in frames:
        if isinstance(item, FrameBatch) or (isinstance(item, np.ndarray) and item.ndim == 4):
            yield from item
        else:
            yield item


def _average_fps(frames: Iterable[Any]) -> Fraction | None:
    """Frames per second of frames with times."""
    timed = [frame for frame in _one_by_one(frames) if isinstance(frame, Frame)]
    seconds = timed[-1].end_seconds - timed[0].pts_seconds if timed else 0
    return exact_rate(len(timed) / seconds) if seconds > 0 else None


class _FrameReader:
    """Brings frames of any kind, all of one size, to `ClipFrame`s."""

    def __init__(self, options: ReadOptions, name: str):
        self.options = options
        self.name = name
        # Of all tensors in [-1, 1] so far; -1 once there is nothing to warn of.
        self._lowest = float("inf")
        self._converters: dict[tuple[str, ValueRange], FrameConverter] = {}

    def read(self, frames: Iterator[Any]) -> Iterator[ClipFrame]:
        size = None
        for index, frame in enumerate(frames):
            data = self.convert(frame)
            size = size or _frame_size(data)
            if _frame_size(data) != size:
                raise ValueError(
                    f"All frames of a clip must have one size: frame 0 of {self.name} is {size}, frame {index} is"
                    f" {_frame_size(data)}."
                )
            yield ClipFrame(data, *self._times(frame, index))
        if 0 <= self._lowest < float("inf"):
            warn_of_positive_values(f"{self.name}: frames")

    def convert(self, frame: Any) -> NDArray[np.uint8] | torch.Tensor:
        if isinstance(frame, Image.Image):
            frame = self._levels(frame)
        if isinstance(frame, Frame):
            frame = frame.data
        if not isinstance(frame, (np.ndarray, torch.Tensor)) or frame.ndim != 3:
            raise ValueError(
                f"A frame must be a PIL image, an (H, W, C) array or a (C, H, W) tensor, got {describe(frame)}."
            )
        is_tensor = isinstance(frame, torch.Tensor)
        own_layout = self.options.layout and self.options.layout.lstrip("BT")
        options = replace(self.options, layout=own_layout)  # type: ignore[arg-type]
        layout = layout_of(frame, LAYOUTS_OF_TENSORS if is_tensor else LAYOUTS_OF_ARRAYS, options)
        value_range = self._value_range(frame, layout)
        converter = FrameConverter(layout, value_range, self.options.channels)
        return self._converters.setdefault((layout, value_range), converter)(frame)

    def _levels(self, image: Image.Image) -> NDArray[np.uint8]:
        upright = ImageOps.exif_transpose(image)
        if self.options.channels == 3:
            return np.asarray(to_rgb(upright, self.name))
        levels = np.asarray(upright.convert("L" if self.options.channels == 1 else "RGBA"))
        return levels.reshape(*levels.shape[:2], -1)

    def _value_range(self, frame: Any, layout: str) -> ValueRange:
        """Checks the values of a frame, and says which are black and white."""
        dtype = str(frame.dtype).removeprefix("torch.")
        if dtype == "uint8":
            return (0.0, 255.0)
        if "float" not in dtype:
            raise ValueError(f"A frame must hold uint8 or floats, got {describe(frame)}.")
        is_signed = isinstance(frame, torch.Tensor) and layout in SIGNED_LAYOUTS
        value_range = self.options.value_range or ((-1.0, 1.0) if is_signed else (0.0, 1.0))
        low, high = float(frame.min()), float(frame.max())
        check_range(frame, low, high, value_range, OVERSHOOT if value_range[0] < 0 else ROUNDING)
        if is_signed and self.options.value_range is None:
            self._lowest = min(self._lowest, low)
        return value_range

    def _times(self, frame: Any, index: int) -> tuple[float | None, float | None]:
        if isinstance(frame, Frame):
            return frame.pts_seconds, frame.duration_seconds
        fps = self.options.fps
        return (None, None) if fps is None else (float(index / fps), float(1 / fps))


def _frame_size(data: NDArray[np.uint8] | torch.Tensor) -> tuple[int, int]:
    """Height and width."""
    height, width = data.shape[1:] if isinstance(data, torch.Tensor) else data.shape[:2]
    return height, width
