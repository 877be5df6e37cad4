"""Media of a data set by the paths that an index has: files, clips in tar shards, rows of data sets."""

from __future__ import annotations

import io
import os

from diffusers_vidvae.media import MediaError
from diffusers_vidvae.media.inputs import FileInput, MediaFile

from .dataset_rows import read_row
from .tar_shards import read_member


def locate(path: str) -> FileInput:
    """What the readers of media take for a path of an index: the path, or the clip in memory under its name.

    Raises:
        MediaError: The shard or data set does not have the clip.
        ValueError: The shard or data set cannot be reached.
    """
    found = read_member(path) or read_row(path)
    return path if found is None else named_file(*found)


def locate_unchanged(path: str, size: int) -> FileInput:
    """What `locate` gives, if it still has as many bytes as when it was looked at.

    Raises:
        MediaError: It has more or fewer.
    """
    media = locate(path)
    if isinstance(media, MediaFile):
        with media.open() as file:
            found = file.seek(0, io.SEEK_END)
    else:
        found = os.path.getsize(path) if os.path.isfile(path) else size
    if found != size:
        raise MediaError(f"{path}: has {found} bytes, not the {size} that its index says; index it again.")
    return media


def named_file(name: str, content: bytes) -> MediaFile:
    """A file in memory that messages call by a name.

    Raises:
        MediaError: It is empty.
    """
    if not content:
        raise MediaError(f"{name}: the file is empty (0 bytes).")
    return MediaFile(name, opened=io.BytesIO(content))
