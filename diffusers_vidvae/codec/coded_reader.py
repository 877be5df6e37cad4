"""Reading version 2 of `.fsv` files: coded latents."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import torch

from .coded_container import (
    CHECKSUM_BYTES,
    MAGIC,
    PREFIX_BYTES,
    TRAILER_BYTES,
    decode_header,
    decode_index,
    decode_prefix,
    decode_trailer,
)
from .entropy_coder import lanes
from .errors import FsvError
from .fsv_file import CHUNK_BYTES, FsvFile
from .latent_coder import GroupDecoder
from .latents_basis import LatentsBasis
from .window import LatentWindow, WindowSelection


class CodedFsvReader(FsvFile):
    """The windows of an `.fsv` file of coded latents, each decoded when it is asked for.

    Windows that are read in order are decoded once; any other is decoded from the start of its group.

    Attributes:
        basis: Axes of the latents. Those of a model must be set before windows are read; a file of channels as they
            are has them itself.

    Raises:
        FsvError: The file cannot be read, is not a compressed video, of a newer version, damaged or absurd; or it
            changed since it was opened.
    """

    basis: LatentsBasis | None = None

    def _read_start(self, file: BinaryIO) -> None:
        self._group: tuple[int, int, GroupDecoder] | None = None
        prefix = self._read_exactly(file, min(PREFIX_BYTES, self.num_bytes))
        if len(prefix) < PREFIX_BYTES or not prefix.startswith(MAGIC):
            raise FsvError("header: not a compressed video, or cut short.")
        coder, length = decode_prefix(bytes(prefix))
        self._groups_start = PREFIX_BYTES + length
        if self._groups_start + TRAILER_BYTES > self.num_bytes:
            raise FsvError(f"header: {length} bytes long in a file of {self.num_bytes}; cut short.")
        body = bytes(self._read_exactly(file, length))
        self._check_checksum(file)
        file.seek(self.num_bytes - TRAILER_BYTES)
        num_windows, num_groups, index_bytes, plain_bytes, _ = decode_trailer(
            bytes(self._read_exactly(file, TRAILER_BYTES))
        )
        header = decode_header(body, 0, coder)
        index_start = self.num_bytes - TRAILER_BYTES - index_bytes
        least = self._groups_start + num_groups * 4 * lanes(math.prod(header.latent_shape))
        if index_start < least or num_groups != -(-num_windows // header.windows_per_group) or not num_groups:
            raise FsvError(
                f"index: {num_windows} windows in {num_groups} groups and {index_bytes} bytes do not fit a file of"
                f" {self.num_bytes} bytes."
            )
        file.seek(index_start)
        groups, self.selections = decode_index(
            bytes(self._read_exactly(file, index_bytes)), num_windows, num_groups, plain_bytes, header.clip_num_frames
        )
        ends = self._groups_start + np.cumsum(groups)
        if (groups < 4 * lanes(math.prod(header.latent_shape))).any() or ends[-1] != index_start:
            raise FsvError(f"index: the groups end at byte {ends[-1]}, the index begins at {index_start}.")
        self._group_edges = [self._groups_start, *ends.tolist()]
        self.latent_bytes, self.index_bytes = int(groups.sum()), index_bytes
        self.header = replace(header, num_frames=int(self.selections.frames.sum()), sha256=self._checksum)
        if self.header.channel_statistics:
            mean, deviations = zip(*self.header.channel_statistics, strict=True)
            self.basis = LatentsBasis.of_channels(mean, deviations, self.header.cycle)

    def _check_checksum(self, file: BinaryIO) -> None:
        file.seek(0)
        digest, rest = hashlib.sha256(), self.num_bytes - CHECKSUM_BYTES
        while rest:
            chunk = self._read_exactly(file, min(CHUNK_BYTES, rest))
            digest.update(chunk)
            rest -= len(chunk)
        stored = self._read_exactly(file, CHECKSUM_BYTES).hex()
        self._checksum = digest.hexdigest()
        if self._checksum != stored:
            raise FsvError(f"sha256: {self._checksum[:12]}, the file says {stored[:12]}; altered.")

    def _read_window(self, file: BinaryIO, index: int) -> LatentWindow:
        selection = self.selections[index]
        decoder = self._decoder_at(file, index)
        latents = torch.from_numpy(decoder.decode(_frames(selection)))
        # The next window goes on from here.
        self._group = (index // self.header.windows_per_group, index + 1, decoder)
        return LatentWindow(
            start=selection.start, num_frames=selection.num_frames, gaps=selection.gaps, latents=latents
        )

    def read_codes(self, index: int) -> np.ndarray:
        """Codes int32 `(channels, kept, height, width)` of a window, the same on every machine."""
        with self._opened() as file:
            codes = self._decoder_at(file, index).decode_codes(_frames(self.selections[index]))
        self._group = None
        return codes

    def _decoder_at(self, file: BinaryIO, index: int) -> GroupDecoder:
        """A decoder whose next frame is the first one of a window."""
        group, first = divmod(index, self.header.windows_per_group)
        first = index - first
        if self._group is not None and self._group[0] == group and self._group[1] <= index:
            _, first, decoder = self._group
        else:
            decoder = self._open_group(file, group)
        self._group = None
        for earlier in range(first, index):
            decoder.decode_codes(_frames(self.selections[earlier]))
        return decoder

    def _open_group(self, file: BinaryIO, group: int) -> GroupDecoder:
        if self.basis is None:
            raise FsvError(f"basis: the latents need the basis {self.header.basis} of their model to be read.")
        if self.basis.cycle != self.header.cycle:
            raise FsvError(f"cycle: {self.header.cycle} in the file, {self.basis.cycle} in the basis.")
        start, stop = self._group_edges[group : group + 2]
        file.seek(start, io.SEEK_SET)
        per_group = self.header.windows_per_group
        kept = int(self.selections.kept[group * per_group : (group + 1) * per_group].sum())
        data = bytes(self._read_exactly(file, stop - start))
        return GroupDecoder(self.header.latent_shape, self.basis, self.header.step, data, kept)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_group": None}


def _frames(selection: WindowSelection) -> list[int]:
    """Indices in the clip of the kept frames of a window."""
    return (selection.start + selection.positions).tolist()
