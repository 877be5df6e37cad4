r"""What is known of every file of a data set before it is read, kept as lines of JSON.

    {"path": "a/clip.mp4", "size": 81920, "modified": 1700000000000000000, "fingerprint": "9f86d081884c7d65",
     "kind": "video", "width": 640, "height": 360, "num_frames": 250, "fps": 25.0, "seconds": 10.0, "start": 0.0,
     "caption": "a dog runs along a beach", "columns": {"author": "someone"}}

Paths are relative to the folder of the index; those of clips in shards and data sets are as `located_media` has them.
Files that cannot be read have an `"error"` in place of what was found.
In memory an index takes about 200 bytes a file, in a few large blocks that forked processes share.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusers_vidvae.files import atomic_file


HEADER = {"format": "vidvae media index", "version": 1}

ROW = np.dtype(
    [
        ("size", np.int64),
        ("modified", np.int64),
        ("fingerprint", "S16"),
        ("is_image", np.bool_),
        ("width", np.int32),
        ("height", np.int32),
        ("num_frames", np.int64),
        ("fps", np.float64),
        ("seconds", np.float64),
        ("start", np.float64),
    ]
)


class Strings:
    """Many strings in one block of bytes."""

    def __init__(self, strings: Iterable[str] = ()):
        self.data = bytearray()
        self.ends = array("q", [0])
        for string in strings:
            self.add(string)

    @classmethod
    def empty(cls, count: int) -> Strings:
        """So many strings without a character."""
        strings = cls()
        strings.ends = array("q", bytes(8 * (count + 1)))
        return strings

    def add(self, string: str) -> None:
        self.data += string.encode("utf-8", "surrogateescape")
        self.ends.append(len(self.data))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return self.data[self.ends[index] : self.ends[index + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


@dataclass
class MediaIndex:
    r"""Files and what is known of them.

    Attributes:
        paths: Path of every file.
        captions: Caption of every file, empty where there is none.
        rows: What was found, one row of `ROW` for every file; `num_frames` is 0 for files that cannot be read.
        errors: Why files cannot be read, by their place.
        columns: What else is carried along with every file, as JSON; empty where there is nothing.
    """

    paths: Strings = field(default_factory=Strings)
    captions: Strings = field(default_factory=Strings)
    rows: NDArray[Any] = field(default_factory=lambda: np.empty(0, ROW))
    errors: dict[int, str] = field(default_factory=dict)
    columns: Strings = field(default_factory=Strings)

    def __post_init__(self) -> None:
        if not len(self.columns):
            self.columns = Strings.empty(len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, index: int) -> Path:
        """Path of a file."""
        return Path(self.paths[index])

    def readable(self) -> MediaIndex:
        """The files that can be read."""
        return self.take(np.flatnonzero(self.rows["num_frames"] > 0))

    def take(self, order: NDArray[np.int64]) -> MediaIndex:
        """Files by their places."""
        errors = {new: self.errors[old] for new, old in enumerate(order.tolist()) if old in self.errors}
        texts = (self.paths, self.captions, self.columns)
        paths, captions, columns = (Strings(strings[i] for i in order.tolist()) for strings in texts)
        return MediaIndex(paths, captions, self.rows[order], errors, columns)

    def without(self, names: Sequence[str]) -> MediaIndex:
        """All files but those with one of the given names."""
        if not names:
            return self
        kept = [i for i, path in enumerate(self.paths) if os.path.basename(path) not in names]
        return self.take(np.array(kept, dtype=np.int64))

    def num_frames(self, fps: float | None = None) -> NDArray[np.int64]:
        """Frames of every file, or as many as it has at another rate; images have one."""
        if fps is None:
            return self.rows["num_frames"]
        resampled = np.maximum((self.rows["seconds"] * fps).astype(np.int64), 1)
        return np.where(self.rows["is_image"], 1, resampled)

    def fingerprint(self) -> str:
        """Digest of the files' contents, captions and columns in their order; names and places do not count."""
        digest = blake2b(self.rows["fingerprint"].tobytes(), digest_size=16)
        for strings in (self.captions, self.columns) if self.columns.data else (self.captions,):
            digest.update(strings.data)
            digest.update(strings.ends.tobytes())
        return digest.hexdigest()


def concatenate(indexes: Sequence[MediaIndex]) -> MediaIndex:
    """One index of the files of several."""
    if len(indexes) == 1:
        return indexes[0]
    errors: dict[int, str] = {}
    offset = 0
    for index in indexes:
        errors |= {offset + place: error for place, error in index.errors.items()}
        offset += len(index)
    return MediaIndex(
        paths=Strings(path for index in indexes for path in index.paths),
        captions=Strings(caption for index in indexes for caption in index.captions),
        rows=np.concatenate([np.empty(0, ROW), *(index.rows for index in indexes)]),
        errors=errors,
        columns=Strings(columns for index in indexes for columns in index.columns),
    )


def is_index(path: Path) -> bool:
    """Whether a file is an index."""
    if path.suffix != ".jsonl":
        return False
    with open(path, encoding="utf-8", errors="replace") as lines:
        return '"vidvae media index"' in lines.readline(1000)


def read_index(path: Path) -> MediaIndex:
    """Reads an index; of one that is still being written, the whole lines.

    Raises:
        ValueError: The file is no index.
    """
    prefix = f"{path.parent}{os.sep}"
    paths, captions, columns, errors = Strings(), Strings(), Strings(), {}
    blocks: list[NDArray[Any]] = []
    block: list[tuple[Any, ...]] = []
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        _check_header(path, lines.readline())
        for number, line in enumerate(lines, start=2):
            try:
                entry = json.loads(line)
                row = index_row(entry)
                name = entry["path"]
            except (ValueError, KeyError, TypeError) as error:
                if not line.endswith("\n"):
                    break
                raise ValueError(f"{path}: line {number} is no entry of a media index ({error}).") from error
            if entry.get("error"):
                errors[len(paths)] = entry["error"]
            paths.add(name if os.path.isabs(name) or "://" in name else prefix + name)
            captions.add(entry.get("caption", ""))
            columns.add(columns_text(entry.get("columns")))
            block.append(row)
            if len(block) == 4096:
                blocks.append(np.array(block, ROW))
                block = []
    blocks.append(np.array(block, ROW))
    return MediaIndex(paths, captions, np.concatenate(blocks), errors, columns)


def columns_text(values: Mapping[str, Any] | None) -> str:
    """Columns of a clip as an index and shards hold them: JSON, the same for the same values."""
    return json.dumps(values, sort_keys=True, default=str) if values else ""


def _check_header(path: Path, line: str) -> None:
    try:
        header = json.loads(line)
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or header.get("format") != HEADER["format"]:
        raise ValueError(f"{path}: is no media index.")
    if header.get("version") != HEADER["version"]:
        raise ValueError(
            f"{path}: is a media index of version {header.get('version')}, only {HEADER['version']} is known."
        )


def index_row(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    if entry.get("error"):
        return entry["size"], entry["modified"], b"", False, 0, 0, 0, 0.0, 0.0, 0.0
    return (
        entry["size"],
        entry["modified"],
        entry["fingerprint"].encode(),
        entry["kind"] == "image",
        entry["width"],
        entry["height"],
        entry["num_frames"],
        entry["fps"],
        entry["seconds"],
        entry["start"],
    )


def write_index(index: MediaIndex, path: Path) -> None:
    """Writes an index whole or not at all."""
    with atomic_file(path, overwrite=True) as file:
        file.write(json.dumps(HEADER).encode() + b"\n")
        for start in range(0, len(index), 4096):
            stop = min(start + 4096, len(index))
            file.write(b"".join(index_line(index, place, path.parent) for place in range(start, stop)))


def index_line(index: MediaIndex, place: int, folder: Path) -> bytes:
    row = index.rows[place]
    entry: dict[str, Any] = {"path": _relative(index.paths[place], folder)}
    entry |= {"size": int(row["size"]), "modified": int(row["modified"])}
    if place in index.errors:
        entry["error"] = index.errors[place]
    else:
        entry |= {
            "fingerprint": row["fingerprint"].decode(),
            "kind": "image" if row["is_image"] else "video",
            **{name: int(row[name]) for name in ("width", "height", "num_frames")},
            **{name: float(row[name]) for name in ("fps", "seconds", "start")},
        }
    if index.captions[place]:
        entry["caption"] = index.captions[place]
    if index.columns[place]:
        entry["columns"] = json.loads(index.columns[place])
    return json.dumps(entry).encode() + b"\n"


def _relative(path: str, folder: Path) -> str:
    prefix = f"{folder}{os.sep}"
    if path.startswith(prefix):
        return path[len(prefix) :]
    return path if "://" in path else os.path.abspath(path)
