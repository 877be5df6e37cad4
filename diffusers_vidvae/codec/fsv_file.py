"""What readers of all versions of `.fsv` files share: where the bytes are."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast, overload

from .errors import FsvError, naming_file
from .header import FsvHeader
from .selections import WindowSelections
from .window import LatentWindow


CHUNK_BYTES = 1 << 18


class FsvFile(Sequence[LatentWindow]):
    """The windows of an `.fsv` file, each read when it is asked for.

    No file stays open between reads, so a reader can be sent to worker processes and needs no closing.

    Args:
        source: The file, or its bytes.

    Attributes:
        path: The file; None for bytes.
        header: What the file says of its clip.
        selections: Frames and kept frames of every window.
        num_bytes: Size of the file.
    """

    header: FsvHeader
    selections: WindowSelections

    def __init__(self, source: str | Path | bytes) -> None:
        self._data = source if isinstance(source, bytes) else None
        self.path = None if isinstance(source, bytes) else Path(source)
        self._identity: tuple[int, ...] | None = None
        with self._opened() as file:
            if self.path is not None:
                self._identity = _identity(os.fstat(file.fileno()))
            self.num_bytes = file.seek(0, io.SEEK_END)
            file.seek(0)
            self._read_start(file)

    @abstractmethod
    def _read_start(self, file: BinaryIO) -> None:
        """Reads and checks all but the latents."""

    @abstractmethod
    def _read_window(self, file: BinaryIO, index: int) -> LatentWindow:
        """Reads one window."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self)} windows)"

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
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        with naming_file(self.path or "compressed clip"):
            if self._data is not None:
                yield io.BytesIO(self._data)
                return
            try:
                with cast("Path", self.path).open("rb") as file:
                    if self._identity not in (None, _identity(os.fstat(file.fileno()))):
                        raise FsvError("the file changed since it was opened.")
                    yield file
            except OSError as error:
                raise FsvError(f"cannot be read ({error.strerror}).") from error

    def _read_exactly(self, file: BinaryIO, size: int) -> bytearray:
        data = bytearray(size)
        if file.readinto(data) != size:  # type: ignore[attr-defined]
            raise FsvError(f"the file ends before its {self.num_bytes} bytes.")
        return data


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
