"""Writing version 2 of `.fsv` files: coded latents."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from .coded_container import encode_header, encode_index
from .errors import FsvError, naming_file
from .header import FsvHeader
from .latent_coder import GroupEncoder
from .latents_basis import LatentsBasis
from .window import LatentWindow
from .window_writer import WindowWriter
from .writer import check_window


class CodedFsvWriter(WindowWriter):
    """Writes coded latents window by window, in constant memory; see `FsvWriter`.

    Args:
        path: The file to write; None keeps its bytes as `data`.
        header: The clip's header.
        basis: Axes of the latents, those that the header names.
        overwrite: Whether an existing file may be replaced.

    Attributes:
        data: The file's bytes, once the block has ended, where there is no path.
        squared_error: Sum of the squares of what quantisation changed, in the axes of the basis.
    """

    def __init__(
        self, path: str | Path | None, header: FsvHeader, basis: LatentsBasis, overwrite: bool = False
    ) -> None:
        super().__init__(path, overwrite)
        self.header, self.basis = header, basis
        if header.basis != basis.name:
            raise FsvError(f"{path}: basis: {basis.name!r} was given, the header names {header.basis!r}.")
        if header.cycle != basis.cycle:
            raise FsvError(f"{path}: cycle: {basis.cycle} was given, the header says {header.cycle}.")
        self.data = b""
        self.squared_error = 0.0
        self._masks: list[np.ndarray] = []
        self._group_bytes: list[int] = []
        self._group: GroupEncoder | None = None

    @property
    def num_frames(self) -> int:
        """Frames covered by the windows so far."""
        return sum(map(len, self._masks))

    def _begin(self) -> None:
        self._write(encode_header(self.header))

    def write_window(self, window: LatentWindow) -> None:
        """Appends the next window of the clip.

        Raises:
            FsvError: The window does not begin where the last one ended, has more frames than the header allows or
                other latents than it says, its latents are not finite or too large for the step, or the disk is full.
        """
        with naming_file(self.name):
            check_window(self.header, window, self.num_frames)
            if len(self._masks) % self.header.windows_per_group == 0:
                self._end_group()
                self._group = GroupEncoder(self.header.latent_shape, self.basis, self.header.step)
                self._group_bytes.append(0)
            assert self._group is not None
            latents = window.latents.detach().double().cpu().numpy()
            data = self._group.encode(latents, (window.start + window.positions).tolist())
        self._group_bytes[-1] += len(data)
        self._write(data)
        self._masks.append(window.keep_mask.numpy())

    def _end_group(self) -> None:
        if self._group is not None:
            data = self._group.finish()
            self._group_bytes[-1] += len(data)
            self._write(data)
            self.squared_error += self._group.squared_error
        self._group = None

    def _finish(self) -> None:
        if not self._masks or self.header.num_frames not in (0, self.num_frames):
            raise FsvError(
                f"{self.path}: num_frames: {self.num_frames} frames were written of {self.header.num_frames or 'any'}."
            )
        self._end_group()
        self._write(encode_index(self._group_bytes, self._masks))
        checksum = self._digest.digest()
        self._file.write(checksum)
        self.header = replace(self.header, num_frames=self.num_frames, sha256=checksum.hex())
        if isinstance(self._file, io.BytesIO):
            self.data = self._file.getvalue()
