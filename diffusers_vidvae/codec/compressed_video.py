"""A compressed clip, in memory or read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusers_vidvae.files import atomic_file
from diffusers_vidvae.metrics.rate import bits_per_pixel, kilobits_per_second

from .coded_container import MAGIC
from .coded_reader import CodedFsvReader
from .container import StoredTensor, payload_bytes, prologue_size, stored_tensors
from .errors import FsvError, naming_file
from .fsv_file import FsvFile
from .header import FsvHeader
from .reader import FsvReader
from .window import LatentWindow, WindowSelection
from .writer import FsvWriter


_STATISTICS = (
    "kept_frames",
    "keep_rate",
    "num_values",
    "values_per_pixel",
    "latent_bits",
    "mask_bits",
    "payload_bits",
    "num_bytes",
    "bits_per_pixel",
    "kbps",
    "tokens_per_second",
)


@dataclass(eq=False, repr=False)
class CompressedVideo:
    """A clip as the latents of its kept frames.

    The figures count everything that an `.fsv` file of the clip holds: latents, gaps, window table and header.

    Attributes:
        header: Frames, sizes, frame rate, model and storage of the clip.
        windows: The windows in the clip's order, in memory or (`FsvReader`) read from disk one by one. In memory they
            keep the precision they were made with; `header.quantization` is applied when they are saved.
        path: The file they were read from; None for a clip in memory.

    Raises:
        FsvError: The windows do not cover the header's frames, or have other latents than it says.
    """

    header: FsvHeader
    windows: Sequence[LatentWindow]
    path: Path | None = None

    def __post_init__(self) -> None:
        frames = 0
        for window in self.selections:
            if window.start != frames:
                raise FsvError(f"start: a window begins at frame {window.start}, the one before it ends at {frames}.")
            frames += window.num_frames
        if frames != self.header.num_frames or not frames:
            raise FsvError(f"num_frames: the windows cover {frames} frames, the header says {self.header.num_frames}.")

    def __repr__(self) -> str:
        header = self.header
        return (
            f"CompressedVideo({header.num_frames} frames of {header.height} x {header.width}, {self.kept_frames} kept "
            f"in {len(self.windows)} windows as {header.quantization}, {self.num_bytes} bytes)"
        )

    @classmethod
    def load(cls, path: str | Path, lazy: bool = True) -> CompressedVideo:
        """Opens an `.fsv` file and checks all of it.

        Args:
            path: The file.
            lazy: Whether windows are read when they are used, in constant memory; otherwise all of them are read now.

        Raises:
            FsvError: The file cannot be read, is not a compressed video, or is damaged.
        """
        reader = open_fsv(path)
        return cls(reader.header, reader if lazy else list(reader), Path(path))

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes an `.fsv` file, all of it or nothing.

        A clip read from a file with the same header is copied byte by byte; otherwise its latents are quantised as the
        header says.

        Args:
            path: The file to write.
            overwrite: Whether an existing file may be replaced.

        Raises:
            FsvError: The file exists or cannot be written, the disk is full, or a window contradicts the header.
        """
        path = Path(path)
        if isinstance(self.windows, FsvFile) and self.windows.header == self.header:
            _copy_file(self.windows, path, overwrite)
        else:
            if self.header.is_coded:
                raise FsvError(f"{path}: quantization: these latents are not coded; a pipeline codes them.")
            with FsvWriter(path, self.header, overwrite) as writer:
                for window in self.windows:
                    writer.write_window(window)
            self.header = writer.header
        if isinstance(self.windows, FsvFile) and self.windows.path and path.samefile(self.windows.path):
            self.windows = _reopened(self.windows)
        return path

    @property
    def selections(self) -> Sequence[WindowSelection]:
        """Frames and kept frames of every window, without latents."""
        return self.windows.selections if isinstance(self.windows, FsvFile) else self.windows

    @property
    def keep_mask(self) -> Tensor:
        """bool `(num_frames,)`: True where the frame's latents are kept."""
        return torch.cat([window.keep_mask for window in self.selections])

    @property
    def positions(self) -> Tensor:
        """int64 `(kept_frames,)`: indices of the kept frames in the clip."""
        return torch.cat([window.start + window.positions for window in self.selections])

    @property
    def kept_frames(self) -> int:
        return sum(window.num_kept for window in self.selections)

    @property
    def keep_rate(self) -> float:
        """Kept frames per frame."""
        return self.kept_frames / self.header.num_frames

    @property
    def num_values(self) -> int:
        """Latent values of the kept frames."""
        channels, height, width = self.header.latent_shape
        return self.kept_frames * channels * height * width

    @property
    def values_per_pixel(self) -> float:
        """Latent values per pixel (not per colour sample) of the clip at its own size."""
        return self.num_values / self._num_pixels

    @property
    def latent_bits(self) -> int:
        """Bits of the latents and their scales."""
        if isinstance(self.windows, CodedFsvReader):
            return 8 * self.windows.latent_bytes
        tensors = self._stored_tensors()
        return 8 * sum(tensors[name].num_bytes for name in ("latents", "scales") if name in tensors)

    @property
    def mask_bits(self) -> int:
        """Bits that say which frames are kept: gaps and window table."""
        if isinstance(self.windows, CodedFsvReader):
            return 8 * self.windows.index_bytes
        tensors = self._stored_tensors()
        return 8 * sum(tensors[name].num_bytes for name in ("gaps", "window_frames", "window_kept"))

    @property
    def payload_bits(self) -> int:
        """Bits of everything but the header."""
        if isinstance(self.windows, CodedFsvReader):
            return self.latent_bits + self.mask_bits
        return 8 * payload_bytes(self._stored_tensors())

    @property
    def num_bytes(self) -> int:
        """Size of the file; before it is saved, the size that it will have."""
        if isinstance(self.windows, FsvFile) and self.windows.header == self.header:
            return self.windows.num_bytes
        return prologue_size(self.header) + payload_bytes(self._stored_tensors())

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the file per pixel (not per colour sample) of the clip at its own size."""
        return bits_per_pixel(8 * self.num_bytes, self.header.num_frames, self.header.height, self.header.width)

    @property
    def kbps(self) -> float | None:
        """Thousands of bits of the file per second of the clip; None when the frame rate is unknown."""
        if self.header.fps is None:
            return None
        return kilobits_per_second(8 * self.num_bytes, self.header.num_frames, self.header.fps)

    @property
    def tokens_per_second(self) -> float | None:
        """Latent positions per second of the clip, what a generator of such latents has to make."""
        if self.header.fps is None:
            return None
        tokens = self.kept_frames * self.header.latent_height * self.header.latent_width
        return float(tokens * self.header.fps / self.header.num_frames)

    def statistics(self) -> dict[str, Any]:
        """The figures above, by name, as plain numbers."""
        return {"num_frames": self.header.num_frames} | {name: getattr(self, name) for name in _STATISTICS}

    @property
    def _num_pixels(self) -> int:
        return self.header.num_frames * self.header.height * self.header.width

    def _stored_tensors(self) -> dict[str, StoredTensor]:
        return stored_tensors(self.header, len(self.windows), self.kept_frames)


def open_fsv(source: str | Path | bytes) -> FsvFile:
    """Opens an `.fsv` file of any version, or its bytes, and checks all of it.

    Raises:
        FsvError: The file cannot be read, is not a compressed video, or is damaged.
    """
    if isinstance(source, bytes):
        start = source[: len(MAGIC)]
    else:
        with naming_file(source):
            try:
                with open(source, "rb") as file:
                    start = file.read(len(MAGIC))
            except OSError as error:
                raise FsvError(f"cannot be read ({error.strerror}).") from error
    return CodedFsvReader(source) if start == MAGIC else FsvReader(source)


def _reopened(reader: FsvFile) -> FsvFile:
    assert reader.path is not None
    fresh = open_fsv(reader.path)
    if isinstance(fresh, CodedFsvReader) and isinstance(reader, CodedFsvReader):
        fresh.basis = reader.basis
    return fresh


def _copy_file(reader: FsvFile, path: Path, overwrite: bool) -> None:
    with atomic_file(path, overwrite=overwrite, error=FsvError) as file:
        for chunk in reader.chunks():
            file.write(chunk)
