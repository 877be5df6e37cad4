r"""Clips in WebDataset shards: tar files in which `0001.mp4`, `0001.txt` and `0001.json` are one sample.

A clip is known by where it lies in its shard, so that clips can be read in any order. The path of one that begins at
byte 1536 of a shard is `shard-0000.tar#1536+81920/0001.mp4`. Shards behind URLs are copied into a cache first.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any, cast

from diffusers_vidvae.media import MediaError

from .columns import CAPTION
from .remote_files import is_url, local_copy


SUFFIX = ".tar"
CAPTION_SUFFIX = "txt"

# Members that are clips; of the others, those are read whose columns are asked for.
_MEDIA = frozenset("mp4 m4v mov mkv webm avi mpg mpeg ts gif apng webp avif png jpg jpeg bmp tif tiff".split())

_PATH = re.compile(r"(?P<shard>.+\.tar)#(?P<offset>\d+)\+(?P<size>\d+)/(?P<name>.+)", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """Where a clip lies, and what its sample says of it."""

    shard: str
    offset: int
    size: int
    name: str
    fields: Mapping[str, Any]

    @property
    def path(self) -> str:
        return f"{self.shard}#{self.offset}+{self.size}/{self.name}"


def expand_shards(source: str) -> list[str]:
    """Shards that a source with braces names, such as `shards/{0000..0099}.tar`; otherwise the source itself."""
    if "{" not in source or not source.endswith(SUFFIX):
        return [source]
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise ValueError(
            f"{source}: braces need webdataset: pip install 'diffusers-vidvae[data]' brings it."
        ) from error
    return list(braceexpand(source))


def local_shard(shard: str) -> Path:
    """Path of a shard on this machine."""
    return local_copy(shard) if is_url(shard) else Path(shard)


def list_members(shard: str, columns: Sequence[str]) -> Iterator[Member]:
    """The clips of a shard in order, each with those of the named columns that its sample has.

    Raises:
        ValueError: The shard is no tar file, is cut off, or its URL does not answer.
    """
    path = local_shard(shard)
    try:
        with tarfile.open(path, "r:") as tar:
            files = (member for member in tar if member.isfile())
            for key, group in groupby(files, key=lambda member: _key_and_suffix(member.name)[0]):
                yield from _clips_of_sample(shard, tar, key, list(group), columns)
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: is no whole tar file ({error}).") from error


def _clips_of_sample(
    shard: str, tar: tarfile.TarFile, key: str, members: list[tarfile.TarInfo], columns: Sequence[str]
) -> Iterator[Member]:
    clips: list[tarfile.TarInfo] = []
    fields: dict[str, Any] = {}
    for member in members:
        suffix = _key_and_suffix(member.name)[1]
        if suffix.rpartition(".")[2] in _MEDIA:
            clips.append(member)
        elif suffix == "json":
            fields |= _read_object(shard, tar, member)
        elif suffix in (CAPTION_SUFFIX, *columns):
            fields[suffix] = _read_text(shard, tar, member)
    if CAPTION_SUFFIX in fields:
        fields.setdefault(CAPTION, fields[CAPTION_SUFFIX])
    for clip in clips:
        # No name leads out of the shard.
        name = posixpath.normpath(f"/{clip.name}").lstrip("/")
        yield Member(shard, clip.offset_data, clip.size, name, fields)


def _key_and_suffix(name: str) -> tuple[str, str]:
    """What the files of a sample have in common, and the rest of a file's name, as `webdataset` splits them."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}/{stem}", suffix.lower()


def _read_text(shard: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    data = cast(IO[bytes], tar.extractfile(member)).read()
    try:
        return " ".join(data.decode().split())
    except UnicodeDecodeError as error:
        raise ValueError(f"{shard}: {member.name} is no UTF-8 text.") from error


def _read_object(shard: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    try:
        values = json.loads(cast(IO[bytes], tar.extractfile(member)).read())
    except ValueError as error:
        raise ValueError(f"{shard}: {member.name} is no JSON ({error}).") from error
    return values if isinstance(values, dict) else {}


def read_member(path: str) -> tuple[str, bytes] | None:
    """Name and content of a clip by its path; None if the path is of something else.

    Raises:
        MediaError: The shard is not there any more, or was cut off.
        ValueError: Its URL does not answer.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    shard, size = found["shard"], int(found["size"])
    try:
        with open(local_shard(shard), "rb") as file:
            file.seek(int(found["offset"]))
            content = file.read(size)
    except OSError as error:
        raise MediaError(f"{shard}/{found['name']}: cannot be read ({error.strerror}).") from error
    if len(content) < size:
        raise MediaError(f"{shard}/{found['name']}: is cut off with its shard.")
    return f"{shard}/{found['name']}", content
