from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class MediaError(ValueError):
    """A video or an image cannot be read or written; the message names the file."""


class MediaWarning(UserWarning):
    """A file was read, but not all of it: lost or damaged frames, dropped alpha, high dynamic range."""


def checked_input(path: str | os.PathLike[str]) -> Path:
    """The path of an existing, readable file with something in it.

    Raises:
        MediaError: There is no such file, it is a folder, it is empty or it may not be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise MediaError(f"{path}: is a folder, not a media file")
        if path.exists() and not path.is_file():
            raise MediaError(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            if not file.read(1):
                raise MediaError(f"{path}: the file is empty (0 bytes)")
    except FileNotFoundError as error:
        raise MediaError(f"{path}: no such file") from error
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror})") from error
    return path


@contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors in writing `path` into `MediaError`s."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise MediaError(f"{path}: cannot be written ({error.strerror or error})") from error
        free = shutil.disk_usage(path.resolve().parent).free
        raise MediaError(f"{path}: not enough disk space ({error.strerror}, {free} bytes are free)") from error
