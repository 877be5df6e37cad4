r"""Where training clips come from, each looked at once: folders, lists of files, tar shards, data sets and indexes.

A folder is searched and its new or changed files are probed, in parallel, once: what was found stays in a hidden file
in the folder, or at a given place. Probing that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from diffusers_vidvae.media import MediaError

from .columns import CAPTION, Columns
from .dataset_rows import SCHEME, DatasetRows
from .listings import INDEX_SUFFIX, Listing, list_source
from .located_media import named_file
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
from .probing import probe_file, probe_media
from .remote_files import cached_name, is_url
from .tar_shards import expand_shards


# Probed files are written down in blocks of so many.
_BLOCK = 256
# Rows of a data set are in memory while they are probed.
_BLOCK_OF_ROWS = 32


def index_sources(
    sources: Sequence[str | Path],
    index_file: str | Path | None = None,
    num_threads: int | None = None,
    columns: Sequence[str] = (),
    caption_column: str = CAPTION,
) -> MediaIndex:
    r"""Everything that can be trained on, with what is known of it.

    Args:
        sources: Folders, searched with their subfolders; media files; lists of files: `.txt` with a path in every
            line, `.csv`, `.tsv` or `.jsonl` with a column `path`; WebDataset shards, `.tar`, by path or URL, also with
            braces as in `shard-{0000..0099}.tar`; data sets as `datasets://owner/name?column=video`, see
            `dataset_rows`; or indexes, which are used as they are, without a look at the files. In folders, the
            caption of `clip.mp4` is in `clip.txt`, in shards there or in `clip.json`. Paths in a list are relative to
            its folder.
        index_file: Where to keep what was found. By default a folder's index is a hidden file in it, that of a list
            or a shard lies beside it, that of what is elsewhere in the cache, and single files are looked at every
            time.
        num_threads: Files probed at once; by default as many as there are processors.
        columns: Columns that are carried along with every clip.
        caption_column: The column of captions.

    Raises:
        ValueError: There is no such source or column, or a list, a shard or an index is none.
    """
    choice = Columns(tuple(columns), caption_column)
    found: list[Listing] = []
    indexes: list[MediaIndex] = []
    for source in (name for given in sources for name in expand_shards(str(given))):
        known = _known_source(source, choice, num_threads)
        if known is not None:
            indexes.append(known)
            continue
        listing, place = list_source(source, choice)
        if index_file is not None:
            found.append(listing)
        else:
            indexes.append(_probe_listing(listing, place, num_threads))
    if found:
        indexes.append(_probe_listing(Listing.joined(found), Path(index_file or ""), num_threads))
    whole = concatenate(indexes)
    if index_file is not None and len(indexes) > len(found[:1]):
        write_index(whole, Path(index_file))
    return whole


def _known_source(source: str, choice: Columns, num_threads: int | None) -> MediaIndex | None:
    """The index of a source that is not a list of files."""
    if source.startswith(SCHEME):
        return _index_rows(source, choice, num_threads)
    path = Path(source)
    if not is_url(source) and not path.exists():
        raise ValueError(f"{source}: there is no such file or folder.")
    if is_url(source) or not path.is_file() or not is_index(path):
        return None
    index = read_index(path)
    if choice.carried:
        texts = zip(index.paths, index.columns, strict=True)
        index.columns = Strings(
            choice.pick_carried(f"{path}: {name}", json.loads(text or "{}")) for name, text in texts
        )
    return index


def _probe_listing(listing: Listing, place: Path | None, num_threads: int | None) -> MediaIndex:
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
    texts = [list(found.captions), list(found.columns)]
    changed = bool(missing) or len(known) != len(found) or texts != [listing.captions, listing.columns]
    found.captions, found.columns = Strings(listing.captions), Strings(listing.columns)
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
    text = f"{path if is_url(path) else os.path.abspath(path)}\0{size}\0{modified}".encode("utf-8", "surrogateescape")
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


def _probe_files(listing: Listing, places: list[int], num_threads: int | None, journal: _Journal) -> MediaIndex:
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
            texts = [(listing.captions[i], listing.columns[i]) for i in block]
            found = _index_of(paths, entries, texts)
            journal.append(found)
            blocks.append(found)
            bar.update(len(block))
    bar.close()
    return concatenate(blocks)


def _index_of(paths: list[str], entries: list[dict[str, Any]], texts: list[tuple[str, str]]) -> MediaIndex:
    """Index of files by what was found in them, their captions and columns."""
    return MediaIndex(
        paths=Strings(paths),
        captions=Strings(caption for caption, _ in texts),
        rows=np.array([index_row(entry) for entry in entries], ROW),
        errors={row: entry["error"] for row, entry in enumerate(entries) if entry.get("error")},
        columns=Strings(columns for _, columns in texts),
    )


def _index_rows(source: str, choice: Columns, num_threads: int | None) -> MediaIndex:
    """Index of a data set, which is read once from end to end unless the cache knows these rows and columns."""
    rows = DatasetRows(source)
    choice.check(source, dict.fromkeys(rows.columns))
    place = cached_name(f"{rows.fingerprint} {choice}", INDEX_SUFFIX)
    if place.is_file():
        return read_index(place)
    blocks = []
    bar = tqdm(desc="Probing rows", delay=2)
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        iterator = iter(rows)
        while block := list(islice(iterator, _BLOCK_OF_ROWS)):
            paths = [path for path, _ in block]
            entries = list(pool.map(lambda row: _probe_row(rows, *row), block))
            blocks.append(_index_of(paths, entries, [choice.pick(source, values) for _, values in block]))
            bar.update(len(block))
    bar.close()
    index = concatenate(blocks)
    write_index(index, place)
    return index


def _probe_row(rows: DatasetRows, path: str, values: dict[str, Any]) -> dict[str, Any]:
    try:
        content = rows.content(values)
        return probe_media(named_file(path, content)) | {"size": len(content), "modified": 0}
    except (MediaError, OSError) as error:
        return {"error": str(error), "size": 0, "modified": 0}
