r"""Clips in data sets of the library `datasets`, in a column of videos, images or bytes.

    datasets://owner/name?split=train&column=video&config=full&streaming=true
    datasets:///folder/of/save_to_disk?column=clip

Row 7 has the path `datasets://owner/name?...#0/7`. A data set that is streamed is read file by file: row 7 of its
file 3 is `#3/7`, and rows that follow each other in a file cost one pass over it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from diffusers_vidvae.media import MediaError


SCHEME = "datasets://"

_OPTIONS = ("split", "column", "config", "streaming")
_PATH = re.compile(r"(?P<source>datasets://.+)#(?P<file>\d+)/(?P<row>\d+)", re.DOTALL)


class DatasetRows:
    r"""A data set whose rows hold clips.

    Args:
        source: Name or folder of the data set, and options: `column` with the clips, `split` ("train"), `config`, and
            `streaming` ("true" or "false").

    Attributes:
        columns: Names of all columns.
        fingerprint: Digest of what the library knows the data by.

    Raises:
        ValueError: The library is missing, an option is unknown, there is no such data set or column, or the column
            holds something else.
    """

    def __init__(self, source: str):
        self.source = source
        name, options = _parse(source)
        self.column = options["column"]
        self.is_streamed = options.get("streaming", "false") == "true"
        data, known_as = _load(source, name, options, self.is_streamed)
        self.fingerprint = blake2b(f"{source}\0{known_as}".encode(), digest_size=16).hexdigest()
        self.columns: list[str] = list(data.features)
        if self.column not in self.columns:
            raise ValueError(f"{source}: has no column `{self.column}`, only {', '.join(self.columns)}.")
        self._data = _undecoded(source, data, self.column)
        self._clips = self._data.select_columns([self.column])
        self._reading: tuple[int, int, Iterator[Any]] | None = None

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Path and columns of every row, in order."""
        for file in range(self._num_files()):
            for row, values in enumerate(self._file(self._data, file)):
                yield f"{self.source}#{file}/{row}", values

    def content(self, values: dict[str, Any]) -> bytes:
        """The clip of a row, as a file has it."""
        value = values[self.column]
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else _read_path(value.get("path"))
        if not value:
            raise MediaError(f"{self.source}: a row has no clip in its column `{self.column}`.")
        return bytes(value)

    def read(self, file: int, row: int) -> bytes:
        """The clip of a row by its place."""
        if not self.is_streamed:
            return self.content(self._clips[row])
        if self._reading is None or self._reading[0] != file or self._reading[1] > row:
            self._reading = (file, 0, iter(self._file(self._clips, file)))
        _, position, rows = self._reading
        for _ in range(row - position):
            next(rows)
        values = next(rows)
        self._reading = (file, row + 1, rows)
        return self.content(values)

    def _num_files(self) -> int:
        return self._data.num_shards if self.is_streamed else 1

    def _file(self, data: Any, file: int) -> Any:
        return data.shard(self._num_files(), file) if self.is_streamed else data


def _parse(source: str) -> tuple[str, dict[str, str]]:
    name, _, query = source.removeprefix(SCHEME).partition("?")
    options = dict(parse_qsl(query))
    unknown = [option for option in options if option not in _OPTIONS]
    if not name or unknown or "column" not in options:
        wrong = f"not {', '.join(unknown)}" if unknown else "of which `column` is needed"
        raise ValueError(f"{source}: the options of a data set are {', '.join(_OPTIONS)}, {wrong}.")
    return name, options


def _load(source: str, name: str, options: dict[str, str], streaming: bool) -> tuple[Any, str]:
    """A data set, and the fingerprint that the library gives its files."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{source}: needs datasets: pip install 'diffusers-vidvae[data]' brings it.") from error
    split, config = options.get("split", "train"), options.get("config")
    try:
        if any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            data = datasets.load_from_disk(name)
            data = data[split] if isinstance(data, dict) else data
            return (data.to_iterable_dataset() if streaming else data), data._fingerprint
        builder = datasets.load_dataset_builder(name, config)
        data = datasets.load_dataset(name, config, split=split, streaming=streaming)
        # A stream may tell the types of its columns only when it is read.
        return (data if data.features is not None else data._resolve_features()), str(builder.hash)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{source}: cannot be opened as a data set ({reason}).") from error


def _undecoded(source: str, data: Any, column: str) -> Any:
    """The data set with media as bytes or paths."""
    import datasets

    media = {name: kind for name, kind in data.features.items() if isinstance(kind, (datasets.Video, datasets.Image))}
    if column not in media and getattr(data.features[column], "dtype", None) not in ("binary", "large_binary"):
        kind = data.features[column]
        raise ValueError(f"{source}: the column `{column}` holds {kind}, not videos, images or bytes.")
    for name, kind in media.items():
        data = data.cast_column(name, type(kind)(decode=False))
    return data


def _read_path(path: str | None) -> bytes | None:
    """A file that a data set names, which may be in an archive or on the Hub."""
    if not path:
        return None
    import fsspec

    with fsspec.open(path) as file:
        return file.read()


@lru_cache(maxsize=8)
def _open_rows(source: str, process: int) -> DatasetRows:
    """A data set, opened once in each process: forks would share the positions in its files."""
    return DatasetRows(source)


def read_row(path: str) -> tuple[str, bytes] | None:
    """Name and content of a clip by its path; None if the path is of something else.

    Raises:
        MediaError: The row holds no clip, or cannot be read.
        ValueError: There is no such data set or column.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    rows = _open_rows(found["source"], os.getpid())
    try:
        return path, rows.read(int(found["file"]), int(found["row"]))
    except (StopIteration, IndexError) as error:
        raise MediaError(f"{path}: the data set has fewer rows.") from error
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error}).") from error
