"""The files of a folder, a list, a shard or of a single file, as they lie there, before they are looked at."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .columns import CAPTION, Columns
from .dataset_rows import SCHEME
from .remote_files import cached_name, is_url
from .tar_shards import SUFFIX as TAR_SUFFIX
from .tar_shards import list_members, local_shard


INDEX_NAME = ".vidvae-index.jsonl"
INDEX_SUFFIX = ".index.jsonl"

# What lists of files look like; the others are media.
LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
CAPTION_SUFFIX = ".txt"


@dataclass
class Listing:
    """Files of a source as they lie on the disk or in a shard."""

    paths: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def add(self, path: str, size: int, time: int, texts: tuple[str, str]) -> None:
        """Adds a file, with its caption and its columns."""
        self.paths.append(path)
        self.captions.append(texts[0])
        self.columns.append(texts[1])
        self.sizes.append(size)
        self.times.append(time)

    def add_file(self, path: str, choice: Columns, fields: Mapping[str, Any]) -> None:
        stat = os.stat(path)
        self.add(path, stat.st_size, stat.st_mtime_ns, choice.pick(path, fields))

    @classmethod
    def joined(cls, listings: Sequence[Listing]) -> Listing:
        joined = cls()
        for listing in listings:
            for name in ("paths", "captions", "columns", "sizes", "times"):
                getattr(joined, name).extend(getattr(listing, name))
        return joined


def list_source(source: str, choice: Columns) -> tuple[Listing, Path | None]:
    """The files of a folder, a list, a shard or a single file, and where their index is kept."""
    path = Path(source)
    if source.endswith(TAR_SUFFIX):
        place = cached_name(source, INDEX_SUFFIX) if is_url(source) else path.with_name(f"{path.name}{INDEX_SUFFIX}")
        return _list_shard(source, choice), place
    if is_url(source):
        raise ValueError(f"{source}: a URL must be of a {TAR_SUFFIX} shard, or begin with {SCHEME}.")
    listing = Listing()
    if path.is_dir():
        _add_folder(listing, source, choice)
        return listing, path / INDEX_NAME
    if path.suffix in LIST_SUFFIXES:
        return _read_list(path, choice), path.with_name(f"{path.name}{INDEX_SUFFIX}")
    listing.add_file(source, choice, {})
    return listing, None


def _list_shard(shard: str, choice: Columns) -> Listing:
    listing = Listing()
    # A copy is as new as its fetching, which says nothing of the shard.
    time = 0 if is_url(shard) else local_shard(shard).stat().st_mtime_ns
    for member in list_members(shard, choice.names):
        listing.add(member.path, member.size, time, choice.pick(f"{shard}/{member.name}", member.fields))
    return listing


def _add_folder(listing: Listing, folder: str, choice: Columns) -> None:
    """Adds the visible files of a folder and its subfolders in order, text files beside media as their captions."""
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    media = {os.path.splitext(entry.name)[0] for entry in visible if not entry.name.endswith(CAPTION_SUFFIX)}
    captions = {}
    for entry in visible:
        stem, suffix = os.path.splitext(entry.name)
        if suffix == CAPTION_SUFFIX and stem in media and entry.is_file():
            captions[stem] = _read_caption(entry.path)
    for entry in visible:
        stem, suffix = os.path.splitext(entry.name)
        if entry.is_dir():
            _add_folder(listing, entry.path, choice)
        elif entry.is_file() and not (suffix == CAPTION_SUFFIX and stem in captions):
            listing.add_file(entry.path, choice, {CAPTION: captions.get(stem, "")})


def _read_caption(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return " ".join(file.read().split())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no caption, since it is not UTF-8 text.") from error


def _read_list(source: Path, choice: Columns) -> Listing:
    listing = Listing()
    for number, row in enumerate(_list_rows(source), start=1):
        if not isinstance(row.get("path"), str) or not row["path"]:
            raise ValueError(f"{source}: entry {number} has no column `path`, only {', '.join(map(str, row))}.")
        path = str(source.parent / row["path"])
        if not os.path.isfile(path):
            raise ValueError(f"{source}: entry {number} is {path}, which does not exist.")
        stat = os.stat(path)
        listing.add(path, stat.st_size, stat.st_mtime_ns, choice.pick(f"{source}: entry {number}", row))
    return listing


def _list_rows(source: Path) -> Iterator[Mapping[str, Any]]:
    with open(source, encoding="utf-8", newline="" if source.suffix in (".csv", ".tsv") else None) as lines:
        if source.suffix in (".csv", ".tsv"):
            yield from csv.DictReader(lines, delimiter="," if source.suffix == ".csv" else "\t")
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if source.suffix == ".txt":
                yield {"path": line.strip()}
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{source}: line {number} is no JSON ({error}).") from error
            yield row if isinstance(row, dict) else {}
