"""What writers of `.fsv` files share."""

from __future__ import annotations

import hashlib
import io
import sys
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from diffusers_vidvae.files import atomic_file, check_output

from .errors import FsvError


if TYPE_CHECKING:
    from typing_extensions import Buffer, Self


class WindowWriter(ABC):
    """A file with a checksum that appears, complete and synced to disk, when the `with` block ends without an error.

    Args:
        path: The file; None keeps its bytes in memory.
        overwrite: Whether an existing file may be replaced.

    Raises:
        FsvError: The file exists or cannot be written.
    """

    _file: BinaryIO

    def __init__(self, path: str | Path | None, overwrite: bool) -> None:
        self.path = None if path is None else Path(path)
        self.overwrite = overwrite
        if self.path is not None:
            check_output(self.path, overwrite=overwrite, error=FsvError)
        self._stack = ExitStack()
        self._digest = hashlib.sha256()

    @property
    def name(self) -> str:
        """What errors call the file."""
        return "compressed clip" if self.path is None else str(self.path)

    def __enter__(self) -> Self:
        self._file = io.BytesIO()
        if self.path is not None:
            self._file = self._stack.enter_context(atomic_file(self.path, overwrite=self.overwrite, error=FsvError))
        try:
            self._begin()
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._finish()

    @abstractmethod
    def _begin(self) -> None:
        """Writes what comes before the windows."""

    @abstractmethod
    def _finish(self) -> None:
        """Writes what comes behind them."""

    def _write(self, data: Buffer) -> None:
        self._digest.update(data)
        self._file.write(data)
