from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from .errors import FsvError


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_file(path: Path, overwrite: bool) -> Iterator[FileIO]:
    """A file that takes the name `path` when the block ends well, and leaves nothing behind when it does not.

    Raises:
        FsvError: `path` exists without `overwrite`, or the file cannot be created or finished.
    """
    target = path.resolve()
    temporary = target.parent / f".{secrets.token_hex(8)}.fsv.tmp"
    refuse_existing(path, overwrite)
    with naming_disk_errors(path):
        # Unbuffered, so that closing after a failed write does not try it again.
        file = open(temporary, "xb", buffering=0)
    try:
        with file:
            yield file
            with naming_disk_errors(path):
                os.fsync(file.fileno())
        refuse_existing(path, overwrite)
        with naming_disk_errors(path):
            os.replace(temporary, target)
            _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_all(file: FileIO, data: bytes | bytearray | memoryview, path: Path) -> None:
    """Writes all of `data` to `file`, which is to become `path`.

    Raises:
        FsvError: The disk is full or refuses to write.
    """
    rest = memoryview(data).cast("B")
    with naming_disk_errors(path):
        while rest:
            rest = rest[file.write(rest) :]


def refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise FsvError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise FsvError(f"{path}: exists already; overwrite=True replaces it")


@contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors in writing `path` into `FsvError`s."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise FsvError(f"{path}: cannot be written ({error.strerror})") from error
        free = shutil.disk_usage(path.resolve().parent).free
        raise FsvError(f"{path}: not enough disk space ({error.strerror}, {free} bytes are free)") from error


def _sync_folder(folder: Path) -> None:
    # A rename is durable once its folder is; Windows has no handle for that.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
