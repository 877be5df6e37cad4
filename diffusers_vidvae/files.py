r"""Files and folders that appear whole under their name, or not at all.

Everything is written under a temporary name beside its target, flushed to the disk and renamed. On any exception,
KeyboardInterrupt too, nothing is left behind and what was there before is untouched. Errors name the file and are of
the class that the caller asks for.

Example:

    >>> write_file("metrics.json", json.dumps(metrics), overwrite=True)

    >>> with atomic_path("model", folder=True, error=CommandError) as folder:  # or one file, for libraries with paths
    ...     model.save_pretrained(folder)

    >>> with atomic_file("clip.fsv", error=FsvError) as file:  # one file, piece by piece
    ...     for piece in pieces:
    ...         file.write(piece)
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias


if TYPE_CHECKING:
    from typing_extensions import Buffer

# Tells why an existing folder must stay as it is; None if it may be replaced.
ReasonToKeep: TypeAlias = Callable[[Path], str | None]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class AtomicOutput:
    """A file or folder under the name `temporary` beside `path`, which `commit` renames and `discard` removes.

    For writers that live longer than a block; `atomic_path` and `atomic_file` are easier where a block will do.

    Args:
        path: The final name. A link stays a link; what it points to is replaced.
        overwrite: Whether `path` may exist. An empty folder always may.
        folder: Make a folder instead of a file.
        reason_to_keep: Looks at an existing folder and says why it must not be replaced, even with `overwrite`.
        temporary: Name to write under, where several processes must agree on one; what has that name is removed.
        error: Class of the errors.

    Raises:
        ValueError: (or `error`) `path` exists without `overwrite`, its folder does not, or it cannot be written.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        overwrite: bool = False,
        folder: bool = False,
        reason_to_keep: ReasonToKeep | None = None,
        temporary: Path | None = None,
        error: type[Exception] = ValueError,
    ):
        self.path = Path(path)
        self.overwrite = overwrite
        self.is_folder = folder
        self.reason_to_keep = reason_to_keep
        self.error = error
        self.check_target()
        target = self.path.resolve()
        self.temporary = temporary or target.with_name(f".{secrets.token_hex(8)}.tmp{target.suffix}")
        with naming_disk_errors(self.path, error):
            _remove(self.temporary)
            if folder:
                self.temporary.mkdir()
            else:
                self.temporary.open("xb").close()

    def commit(self) -> None:
        """Gives the output its name; it is on the disk when this returns.

        Raises:
            ValueError: (or `error`) Something else took the name meanwhile, or the disk refuses.
        """
        self.check_target()
        with naming_disk_errors(self.path, self.error):
            sync(self.temporary)
            _replace(self.temporary, self.path.resolve())

    def discard(self) -> None:
        """Removes what was written; does nothing after `commit`."""
        _remove(self.temporary, ignore_errors=True)

    def check_target(self) -> None:
        check_output(
            self.path,
            overwrite=self.overwrite,
            folder=self.is_folder,
            reason_to_keep=self.reason_to_keep,
            error=self.error,
        )


@contextmanager
def atomic_path(
    path: str | PathLike[str],
    *,
    overwrite: bool = False,
    folder: bool = False,
    reason_to_keep: ReasonToKeep | None = None,
    error: type[Exception] = ValueError,
) -> Iterator[Path]:
    """Path of a file (empty) or folder that takes the name `path` when the block ends well; see `AtomicOutput`.

    The path has the ending of `path`, for libraries that go by it.
    """
    output = AtomicOutput(path, overwrite=overwrite, folder=folder, reason_to_keep=reason_to_keep, error=error)
    try:
        yield output.temporary
        output.commit()
    finally:
        output.discard()


@contextmanager
def atomic_file(
    path: str | PathLike[str], *, overwrite: bool = False, error: type[Exception] = ValueError
) -> Iterator[FileIO]:
    """A binary file, open for writing, that takes the name `path` when the block ends well; see `AtomicOutput`."""
    output = AtomicOutput(path, overwrite=overwrite, error=error)
    try:
        with _OutputFile(output) as file:
            yield file
        output.commit()
    finally:
        output.discard()


def write_file(
    path: str | PathLike[str],
    content: str | bytes | bytearray | memoryview,
    *,
    overwrite: bool = False,
    error: type[Exception] = ValueError,
) -> None:
    """Writes a whole file, text as UTF-8; see `AtomicOutput`."""
    with atomic_file(path, overwrite=overwrite, error=error) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def check_output(
    path: str | PathLike[str],
    *,
    overwrite: bool = False,
    folder: bool = False,
    reason_to_keep: ReasonToKeep | None = None,
    error: type[Exception] = ValueError,
) -> None:
    """Refuses a name that cannot be written to, before any work is done for it; see `AtomicOutput`.

    Raises:
        ValueError: (or `error`) It exists without `overwrite` or must be kept, or there is no folder for it.
    """
    path = Path(path)
    if not path.resolve().parent.is_dir():
        raise error(f"{path}: cannot be written, the folder {path.parent} does not exist.")
    if path.is_dir() and not folder:
        raise error(f"{path}: is a folder, not a file.")
    if path.exists() and not path.is_dir() and folder:
        raise error(f"{path}: exists already and is a file, not a folder.")
    is_empty_folder = path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_empty_folder:
        if folder and reason_to_keep is not None and (reason := reason_to_keep(path)):
            raise error(f"{path}: {reason}.")
        if not overwrite:
            raise error(f"{path}: exists already; overwrite=True replaces it.")


@contextmanager
def naming_disk_errors(path: Path, error: type[Exception] = ValueError) -> Iterator[None]:
    """Turns the system's errors in writing `path` into `error`s that name it."""
    try:
        yield
    except OSError as failure:
        if failure.errno not in _DISK_FULL:
            raise error(f"{path}: cannot be written ({failure.strerror or failure}).") from failure
        free = shutil.disk_usage(path.resolve().parent).free
        raise error(f"{path}: not enough disk space ({failure.strerror}, {free} bytes are free).") from failure


def sync(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk."""
    for inner in [*(path.rglob("*") if path.is_dir() else ()), path]:
        # Windows has no handle of a folder.
        if inner.is_file() or os.name == "posix":
            descriptor = os.open(inner, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class _OutputFile(FileIO):
    """Writes all it is given, and names the file if that fails.

    Unbuffered, so that closing after a failed write does not try it again.
    """

    def __init__(self, output: AtomicOutput):
        super().__init__(output.temporary, "w")
        self._output = output

    def write(self, data: Buffer, /) -> int:
        view = rest = memoryview(data).cast("B")
        with naming_disk_errors(self._output.path, self._output.error):
            while rest:
                rest = rest[super().write(rest) :]
        return len(view)


def _replace(temporary: Path, target: Path) -> None:
    """Renames a file or folder to a name that may be taken; the old one goes only once the new one is there."""
    old = target.with_name(f".{secrets.token_hex(8)}.old")
    has_old_folder = target.is_dir()
    if has_old_folder:
        target.rename(old)
    try:
        os.replace(temporary, target)
    except BaseException:
        if has_old_folder:
            old.rename(target)
        raise
    if has_old_folder:
        _remove(old, ignore_errors=True)
    if os.name == "posix":
        _sync_names(target.parent)


def _sync_names(folder: Path) -> None:
    """A rename lasts once the folder that it happened in is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path, ignore_errors: bool = False) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        if not ignore_errors:
            raise
