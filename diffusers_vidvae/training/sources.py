r"""Where training clips come from: folders, lists of files and indexes, each file looked at once.

A folder is searched and its new or changed files are probed, in parallel, once: what was found stays in a hidden file
in the folder, or at a given place. Probing that was interrupted goes on where it was.
"""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from diffusers_vidvae.media import MediaError, MediaWarning, VideoReader, load_image, media_kind

from .media_index import (
    HEADER,
    ROW,
    MediaIndex,
    Strings,
    concatenate,
    index_line,
    index_row,
    is_index,
    read_index,
    write_index,
)


INDEX_NAME = ".vidvae-index.jsonl"

# What lists of files look like; the others are media.
LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
CAPTION_SUFFIX = ".txt"

# Probed files are written down in blocks of so many.
_BLOCK = 256
# Content at both ends of a file that its fingerprint covers, together with its size.
_FINGERPRINTED_BYTES = 65536


def index_sources(
    sources: Sequence[str | Path], index_file: str | Path | None = None, num_threads: int | None = None
) -> MediaIndex:
    r"""Everything that can be trained on, with what is known of it.

    Args:
        sources: Folders, searched with their subfolders; media files; lists of files: `.txt` with a path in every
            line, `.csv`, `.tsv` or `.jsonl` with a column `path` and, if there is one, `caption`; or indexes, which
            are used as they are, without a look at the files. In folders, the caption of `clip.mp4` is in `clip.txt`.
            Paths in a list are relative to its folder.
        index_file: Where to keep what was found. By default a folder's index is a hidden file in it, that of a list
            lies beside it, and single files are looked at every time.
        num_threads: Files probed at once; by default as many as there are processors.

    Raises:
        ValueError: There is no such file or folder, or a list or an index is none.
    """
    found: list[_Listing] = []
    indexes: list[MediaIndex] = []
    for source in map(Path, sources):
        if not source.exists():
            raise ValueError(f"{source}: there is no such file or folder.")
        if source.is_file() and is_index(source):
            indexes.append(read_index(source))
            continue
        listing, place = _list_source(source)
        if index_file is not None:
            found.append(listing)
        else:
            indexes.append(_probe_listing(listing, place, num_threads))
    if found:
        indexes.append(_probe_listing(_Listing.joined(found), Path(index_file or ""), num_threads))
    return concatenate(indexes)


@dataclass
class _Listing:
    """Files of a source as they lie on the disk."""

    paths: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def add(self, path: str, stat: os.stat_result, caption: str = "") -> None:
        self.paths.append(path)
        self.captions.append(caption)
        self.sizes.append(stat.st_size)
        self.times.append(stat.st_mtime_ns)

    @classmethod
    def joined(cls, listings: Sequence[_Listing]) -> _Listing:
        joined = cls()
        for listing in listings:
            for name in ("paths", "captions", "sizes", "times"):
                getattr(joined, name).extend(getattr(listing, name))
        return joined


def _list_source(source: Path) -> tuple[_Listing, Path | None]:
    """The files of a folder, a list or a single file, and where their index is kept."""
    if source.is_dir():
        return _list_folder(source), source / INDEX_NAME
    if source.suffix in LIST_SUFFIXES:
        return _read_list(source), source.with_name(f"{source.name}.index.jsonl")
    listing = _Listing()
    listing.add(str(source), source.stat())
    return listing, None


def _list_folder(folder: Path) -> _Listing:
    """Visible files of a folder and its subfolders in order, text files beside media of the same name as captions."""
    listing = _Listing()
    _add_folder(listing, str(folder))
    return listing


def _add_folder(listing: _Listing, folder: str) -> None:
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
            _add_folder(listing, entry.path)
        elif entry.is_file() and not (suffix == CAPTION_SUFFIX and stem in captions):
            listing.add(entry.path, entry.stat(), captions.get(stem, ""))


def _read_caption(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return " ".join(file.read().split())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no caption, since it is not UTF-8 text.") from error


def _read_list(source: Path) -> _Listing:
    listing = _Listing()
    for number, row in enumerate(_list_rows(source), start=1):
        if not isinstance(row.get("path"), str) or not row["path"]:
            raise ValueError(f"{source}: entry {number} has no column `path`, only {', '.join(map(str, row))}.")
        path = str(source.parent / row["path"])
        if not os.path.isfile(path):
            raise ValueError(f"{source}: entry {number} is {path}, which does not exist.")
        listing.add(path, os.stat(path), str(row.get("caption") or ""))
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


def _probe_listing(listing: _Listing, place: Path | None, num_threads: int | None) -> MediaIndex:
    """What is known of listed files, by their index where it has them as they are and by looking where it has not."""
    known = _known_entries(place)
    keys = [
        _key(path, size, time) for path, size, time in zip(listing.paths, listing.sizes, listing.times, strict=True)
    ]
    order = {key: row for row, key in enumerate(known_keys(known))}
    missing = [i for i, key in enumerate(keys) if key not in order]
    journal = _Journal(place)
    probed = MediaIndex()
    if missing:
        with journal:
            probed = _probe_files(listing, missing, num_threads, journal)
    order |= {keys[i]: len(known) + row for row, i in enumerate(missing)}
    rows = np.array([order[key] for key in keys], dtype=np.int64)
    found = concatenate([known, probed]).take(rows)
    changed = bool(missing) or len(known) != len(found) or list(found.captions) != listing.captions
    found.captions = Strings(listing.captions)
    if changed and place is not None and journal.is_writable:
        write_index(found, place)
    return found


def _known_entries(place: Path | None) -> MediaIndex:
    if place is None or not place.is_file():
        return MediaIndex()
    return read_index(place)


def known_keys(index: MediaIndex) -> Iterator[int]:
    """Keys of an index's files, under which they are found again as long as they do not change."""
    sizes, times = index.rows["size"].tolist(), index.rows["modified"].tolist()
    return (_key(path, size, time) for path, size, time in zip(index.paths, sizes, times, strict=True))


def _key(path: str, size: int, modified: int) -> int:
    text = f"{os.path.abspath(path)}\0{size}\0{modified}".encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


class _Journal:
    """Appends entries to an index while files are probed, so that an interruption loses a block of them at most."""

    def __init__(self, path: Path | None):
        self.path = path
        self.is_writable = path is not None
        self._file: Any = None

    def __enter__(self) -> _Journal:
        if self.path is None:
            return self
        try:
            new = not self.path.is_file()
            if not new:
                _cut_half_line(self.path)
            self._file = open(self.path, "ab")
            if new:
                self._file.write(json.dumps(HEADER).encode() + b"\n")
        except OSError as error:
            self.is_writable = False
            warnings.warn(
                f"{self.path}: cannot be written ({error.strerror}), so every start looks at all files anew; keep the"
                " index at another place.",
                stacklevel=2,
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, index: MediaIndex) -> None:
        """Writes entries down at once."""
        if self._file is not None and self.path is not None:
            self._file.write(b"".join(index_line(index, place, self.path.parent) for place in range(len(index))))
            self._file.flush()


def _cut_half_line(path: Path) -> None:
    """Takes from a file what was written after its last whole line."""
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _probe_files(listing: _Listing, places: list[int], num_threads: int | None, journal: _Journal) -> MediaIndex:
    blocks = []
    bar = tqdm(total=len(places), desc="Probing files", delay=2)
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        for start in range(0, len(places), _BLOCK):
            block = places[start : start + _BLOCK]
            paths = [listing.paths[i] for i in block]
            entries = [
                entry | {"size": listing.sizes[i], "modified": listing.times[i]}
                for i, entry in zip(block, pool.map(probe_file, paths), strict=True)
            ]
            errors = {row: entry["error"] for row, entry in enumerate(entries) if entry.get("error")}
            captions = Strings(listing.captions[i] for i in block)
            found = MediaIndex(
                Strings(paths), captions, np.array([index_row(entry) for entry in entries], ROW), errors
            )
            journal.append(found)
            blocks.append(found)
            bar.update(len(block))
    bar.close()
    return concatenate(blocks)


def probe_file(path: str | Path) -> dict[str, Any]:
    """What is found in a file, or its `"error"`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MediaWarning)
            return {"fingerprint": file_fingerprint(path), **_probe(path)}
    except (MediaError, OSError) as error:
        return {"error": str(error)}


def _probe(path: str | Path) -> dict[str, Any]:
    if media_kind(path) == "image":
        width, height = load_image(path).size
        return {
            "kind": "image",
            "width": width,
            "height": height,
            "num_frames": 1,
            "fps": 0.0,
            "seconds": 0.0,
            "start": 0.0,
        }
    with VideoReader(path) as reader:
        info = reader.info
        num_frames, seconds = info.num_frames, info.duration_seconds
        if num_frames is None or seconds is None:
            num_frames, seconds = _measured(reader)
    return {
        "kind": "video",
        "width": info.width,
        "height": info.height,
        "num_frames": num_frames,
        "fps": float(info.fps),
        "seconds": float(seconds),
        "start": info.start_seconds,
    }


def _measured(reader: VideoReader) -> tuple[int, float]:
    """Frames and seconds of a file that does not say them, by decoding it."""
    count, end = 0, reader.info.start_seconds
    for frame in reader:
        count, end = count + 1, frame.pts_seconds + frame.duration_seconds
    return count, end - reader.info.start_seconds


def file_fingerprint(path: str | Path) -> str:
    """16 hexadecimal digits of a file's size and of the content at its two ends."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = blake2b(str(size).encode(), digest_size=8)
        for offset in (0, max(size - _FINGERPRINTED_BYTES, 0)):
            file.seek(offset)
            digest.update(file.read(_FINGERPRINTED_BYTES))
    return digest.hexdigest()
