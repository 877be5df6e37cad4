"""Media of a data set by the paths that an index has: files, clips in tar shards, rows of data sets."""

from __future__ import annotations

import io

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


def named_file(name: str, content: bytes) -> MediaFile:
    """A file in memory that messages call by a name.

    Raises:
        MediaError: It is empty.
    """
    if not content:
        raise MediaError(f"{name}: the file is empty (0 bytes).")
    return MediaFile(name, opened=io.BytesIO(content))
