from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from .container import DTYPES, MAX_HEADER_BYTES, parse_prologue, payload_bytes, without_checksum
from .errors import FsvError, naming_file
from .quantization import QuantizedLatents, dequantize
from .window import LatentWindow, WindowSelection


_CHUNK_BYTES = 1 << 18


class FsvReader(Sequence[LatentWindow]):
    """The windows of an `.fsv` file, each read from disk when it is asked for.

    Opening checks the whole file (sizes, fields against each other and against limits, checksum) in constant memory;
    nothing is allocated that the file's own size does not bound. No file stays open between reads, so a reader can be
    sent to worker processes and needs no closing.

    Attributes:
        header: What the file says of its clip.
        selections: Frames and kept frames of every window.
        num_bytes: Size of the file.

    Raises:
        FsvError: The file cannot be read, is not a compressed video, is damaged or absurd; or it changed since it was
            opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._identity: tuple[int, ...] | None = None
        with self._opened() as file:
            status = os.fstat(file.fileno())
            self._identity = _identity(status)
            self.num_bytes = status.st_size
            prologue = self._read_prologue(file)
            self.header, self._tensors = parse_prologue(prologue[8:])
            self._data_start = len(prologue)
            size = self._data_start + payload_bytes(self._tensors)
            if size != self.num_bytes:
                raise FsvError(f"data_offsets: the tensors end at byte {size}, the file at byte {self.num_bytes}")
            self._check_checksum(file, prologue)
            self.selections = self._read_selections(file)
            self._check_scales(file)
        self._first_kept = _running_sums([selection.num_kept for selection in self.selections])

    def __repr__(self) -> str:
        return f"FsvReader({str(self.path)!r}, {len(self)} windows)"

    def __len__(self) -> int:
        return len(self.selections)

    @overload
    def __getitem__(self, index: int) -> LatentWindow: ...

    @overload
    def __getitem__(self, index: slice) -> list[LatentWindow]: ...

    def __getitem__(self, index: int | slice) -> LatentWindow | list[LatentWindow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        with self._opened() as file:
            return self._read_window(file, index)

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the whole file, a piece at a time."""
        with self._opened() as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def _read_window(self, file: BufferedReader, index: int) -> LatentWindow:
        selection, first = self.selections[index], self._first_kept[index]
        codes = self._read_rows(file, "latents", first, first + selection.num_kept)
        scales = self._read_rows(file, "scales", index, index + 1)[0] if "scales" in self._tensors else None
        latents = dequantize(QuantizedLatents(self.header.quantization, codes, scales, self.header.latent_shape))
        if not torch.isfinite(latents).all():
            raise FsvError(f"latents: window {index} holds values that are not finite")
        return LatentWindow(
            start=selection.start, num_frames=selection.num_frames, gaps=selection.gaps, latents=latents
        )

    @contextmanager
    def _opened(self) -> Iterator[BufferedReader]:
        with naming_file(self.path):
            try:
                with open(self.path, "rb") as file:
                    if self._identity not in (None, _identity(os.fstat(file.fileno()))):
                        raise FsvError("the file changed since it was opened")
                    yield file
            except OSError as error:
                raise FsvError(f"cannot be read ({error.strerror})") from error

    def _read_prologue(self, file: BufferedReader) -> bytes:
        start = file.read(8)
        if len(start) < 8:
            raise FsvError(f"header: the file has {self.num_bytes} bytes, not even the 8 of the header's length")
        (length,) = struct.unpack("<Q", start)
        if not 2 <= length <= min(MAX_HEADER_BYTES, self.num_bytes - 8):
            raise FsvError(
                f"header: {length} bytes long in a file of {self.num_bytes}; cut short, or not a compressed video"
            )
        return start + self._read_exactly(file, length)

    def _check_checksum(self, file: BufferedReader, prologue: bytes) -> None:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
        digest.update(without_checksum(prologue, self.header.sha256))
        if digest.hexdigest() != self.header.sha256:
            raise FsvError(f"sha256: {digest.hexdigest()[:12]}, the header says {self.header.sha256[:12]}; altered")

    def _read_selections(self, file: BufferedReader) -> list[WindowSelection]:
        frames, kept = (self._read_rows(file, name).tolist() for name in ("window_frames", "window_kept"))
        gaps = self._read_rows(file, "gaps").long()
        if min(frames) < 1 or max(frames) > self.header.clip_num_frames or sum(frames) != self.header.num_frames:
            raise FsvError(
                f"window_frames: {sum(frames)} frames in windows of {min(frames)} to {max(frames)}, the header says "
                f"{self.header.num_frames} in windows of at most {self.header.clip_num_frames}"
            )
        if min(kept) < 1 or sum(kept) != len(gaps):
            raise FsvError(f"window_kept: {sum(kept)} frames, {min(kept)} in the poorest window, for {len(gaps)} gaps")
        starts = _running_sums(frames)
        return [
            WindowSelection(start=start, num_frames=count, gaps=window_gaps)
            for start, count, window_gaps in zip(starts, frames, gaps.split(kept), strict=True)
        ]

    def _check_scales(self, file: BufferedReader) -> None:
        if "scales" not in self._tensors:
            return
        for index in range(len(self)):
            scales = self._read_rows(file, "scales", index, index + 1)
            if not torch.isfinite(scales).all() or not (scales[..., 0] > 0).all():
                raise FsvError(f"scales: window {index} has a scale that is not positive and finite")

    def _read_rows(self, file: BufferedReader, name: str, first: int = 0, last: int | None = None) -> Tensor:
        tensor = self._tensors[name]
        last = tensor.shape[0] if last is None else last
        file.seek(self._data_start + tensor.start + first * tensor.row_bytes)
        data = self._read_exactly(file, (last - first) * tensor.row_bytes)
        return torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).reshape(last - first, *tensor.shape[1:])

    def _read_exactly(self, file: BufferedReader, size: int) -> bytearray:
        data = bytearray(size)
        if file.readinto(data) != size:
            raise FsvError(f"the file ends before its {self.num_bytes} bytes")
        return data


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _running_sums(counts: list[int]) -> list[int]:
    """Sum of the counts before each one."""
    sums, total = [], 0
    for count in counts:
        sums.append(total)
        total += count
    return sums
