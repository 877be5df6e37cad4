"""The errors and warnings of reading and writing media."""

from __future__ import annotations

import os
from pathlib import Path


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
