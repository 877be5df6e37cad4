"""Reading version 1 of `.fsv` files, which is how raw latents are stored."""

from __future__ import annotations

import hashlib
import struct
from typing import BinaryIO

import torch
from torch import Tensor

from .container import DTYPES, MAX_HEADER_BYTES, parse_prologue, payload_bytes, without_checksum
from .errors import FsvError
from .fsv_file import CHUNK_BYTES, FsvFile
from .quantization import QuantizedLatents, dequantize
from .selections import WindowSelections
from .window import LatentWindow


class FsvReader(FsvFile):
    """The windows of an `.fsv` file of raw latents, each read from disk when it is asked for.

    Opening checks the whole file (sizes, fields against each other and against limits, checksum) in constant memory;
    nothing is allocated that the file's own size does not bound.

    Raises:
        FsvError: The file cannot be read, is not a compressed video, is damaged or absurd; or it changed since it was
            opened.
    """

    def _read_start(self, file: BinaryIO) -> None:
        prologue = self._read_prologue(file)
        self.header, self._tensors = parse_prologue(prologue[8:])
        self._data_start = len(prologue)
        size = self._data_start + payload_bytes(self._tensors)
        if size != self.num_bytes:
            raise FsvError(f"data_offsets: the tensors end at byte {size}, the file at byte {self.num_bytes}.")
        self._check_checksum(file, prologue)
        self.selections = self._read_selections(file)
        self._check_scales(file)

    def _read_window(self, file: BinaryIO, index: int) -> LatentWindow:
        selection, first = self.selections[index], int(self.selections.first_kept[index])
        codes = self._read_rows(file, "latents", first, first + selection.num_kept)
        scales = self._read_rows(file, "scales", index, index + 1)[0] if "scales" in self._tensors else None
        latents = dequantize(QuantizedLatents(self.header.quantization, codes, scales, self.header.latent_shape))
        if not torch.isfinite(latents).all():
            raise FsvError(f"latents: window {index} holds values that are not finite.")
        return LatentWindow(
            start=selection.start, num_frames=selection.num_frames, gaps=selection.gaps, latents=latents
        )

    def _read_prologue(self, file: BinaryIO) -> bytes:
        start = file.read(8)
        if len(start) < 8:
            raise FsvError(f"header: the file has {self.num_bytes} bytes, not even the 8 of the header's length.")
        (length,) = struct.unpack("<Q", start)
        if not 2 <= length <= min(MAX_HEADER_BYTES, self.num_bytes - 8):
            raise FsvError(
                f"header: {length} bytes long in a file of {self.num_bytes}; cut short, or not a compressed video."
            )
        return start + self._read_exactly(file, length)

    def _check_checksum(self, file: BinaryIO, prologue: bytes) -> None:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        digest.update(without_checksum(prologue, self.header.sha256))
        if digest.hexdigest() != self.header.sha256:
            raise FsvError(f"sha256: {digest.hexdigest()[:12]}, the header says {self.header.sha256[:12]}; altered.")

    def _read_selections(self, file: BinaryIO) -> WindowSelections:
        frames, kept = (self._read_rows(file, name).numpy() for name in ("window_frames", "window_kept"))
        total = int(frames.sum(dtype="int64"))
        if frames.min() < 1 or frames.max() > self.header.clip_num_frames or total != self.header.num_frames:
            raise FsvError(
                f"window_frames: {total} frames in windows of {frames.min()} to {frames.max()}, the header says "
                f"{self.header.num_frames} in windows of at most {self.header.clip_num_frames}."
            )
        return WindowSelections(frames, kept, self._read_rows(file, "gaps").numpy())

    def _check_scales(self, file: BinaryIO) -> None:
        if "scales" not in self._tensors:
            return
        for index in range(len(self)):
            scales = self._read_rows(file, "scales", index, index + 1)
            if not torch.isfinite(scales).all() or not (scales[..., 0] > 0).all():
                raise FsvError(f"scales: window {index} has a scale that is not positive and finite.")

    def _read_rows(self, file: BinaryIO, name: str, first: int = 0, last: int | None = None) -> Tensor:
        tensor = self._tensors[name]
        last = tensor.shape[0] if last is None else last
        file.seek(self._data_start + tensor.start + first * tensor.row_bytes)
        data = self._read_exactly(file, (last - first) * tensor.row_bytes)
        return torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).reshape(last - first, *tensor.shape[1:])
