"""Where the bytes of a media file are: on the disk, in memory, in an open file or behind a URL."""

from __future__ import annotations

import io
import os
import re
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast
from urllib.parse import urlsplit

from .errors import MediaError


# Anything that `MediaFile.of` takes.
FileInput: TypeAlias = Any

# Downloads end with an error beyond this.
LARGEST_DOWNLOAD = 4 * 2**30
_DOWNLOAD_PIECE = 2**20
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# What a path makes of a URL: one slash is lost.
_URL_IN_PATH = re.compile(r"(https?):[/\\]+(?=[^/\\])")


class MediaFile:
    """One media file that can be opened again and again, each time from its start.

    Attributes:
        name: What messages call it: the path, the URL without its query, or where the bytes came from.
        path: Where it lies; None in memory. A download lies in a temporary file, which goes with this object.
    """

    def __init__(self, name: str, path: Path | None = None, opened: BinaryIO | None = None):
        self.name = name
        self.path = path
        self._shared = opened
        self._lock = threading.Lock()

    @classmethod
    def of(cls, source: FileInput) -> MediaFile:
        """The file that is meant by a path, an http(s) URL, bytes, a seekable binary file, or a `MediaFile`.

        A mapping with `bytes` or `path`, as data sets hold undecoded videos, is taken too. Bytes are not copied.

        Raises:
            MediaError: There is no such file, it is a folder or empty, it cannot be read or downloaded.
            TypeError: It is something else.
        """
        if isinstance(source, MediaFile):
            return source
        if isinstance(source, Mapping) and (source.get("bytes") is not None or source.get("path") is not None):
            source = source["bytes"] if source.get("bytes") is not None else source["path"]
        if isinstance(source, (str, os.PathLike)):
            url = _url_of(source)
            return _on_disk(Path(source)) if url is None else download(url)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return _in_memory(source)
        if hasattr(source, "read") and hasattr(source, "seek"):
            return _in_open_file(source)
        raise TypeError(f"a media file must be a path, a URL, bytes or an open file, got {type(source).__name__}.")

    @staticmethod
    def is_input(source: Any) -> bool:
        """Whether `of` takes it for a file."""
        if isinstance(source, Mapping):
            return source.get("bytes") is not None or source.get("path") is not None
        is_bytes = isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, MediaFile))
        return is_bytes or (hasattr(source, "read") and hasattr(source, "seek"))

    def open(self) -> BinaryIO:
        """The bytes from the start, independent of what else is open, without a name that readers could go by."""
        return cast(BinaryIO, io.BufferedReader(self.open_unbuffered(), buffer_size=2**16))

    def open_unbuffered(self) -> io.RawIOBase:
        """The same for readers with a buffer of their own."""
        if self._shared is not None:
            return _View(self._shared, self._lock)
        assert self.path is not None
        return _View(open(self.path, "rb", buffering=0), threading.Lock(), closes=True)

    def __str__(self) -> str:
        return self.name


class _View(io.RawIOBase):
    """Reads an open file from a position of its own, beside other readers of it."""

    def __init__(self, file: Any, lock: threading.Lock, closes: bool = False):
        self._file = file
        self._lock = lock
        self._closes = closes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if self._closes:
            self._file.close()
        super().close()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        with self._lock:
            if whence == io.SEEK_END:
                self._position = self._file.seek(offset, io.SEEK_END)
            else:
                self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        with self._lock:
            self._file.seek(self._position)
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def download(url: str, largest: int = LARGEST_DOWNLOAD) -> MediaFile:
    """Downloads an http(s) URL into a temporary file, which is removed together with the result.

    Args:
        url: What to download; other schemes are refused.
        largest: Size in bytes beyond which the download is given up.

    Raises:
        MediaError: The scheme is another, there is no such file, the connection fails, or it is too large or empty.
    """
    import requests

    parts = urlsplit(url)
    # Neither passwords nor signatures belong in messages.
    name = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    if parts.scheme not in ("http", "https"):
        raise MediaError(f"{name}: only http and https addresses are read, not {parts.scheme}.")
    handle, path = tempfile.mkstemp(prefix="vidvae-", suffix=".download")
    file = MediaFile(name, Path(path))
    weakref.finalize(file, _remove, path)
    try:
        with os.fdopen(handle, "wb") as output, requests.get(url, stream=True, timeout=_DOWNLOAD_TIMEOUT) as response:
            if response.status_code != 200:
                raise MediaError(f"{name}: the server answers with status {response.status_code}.")
            total = 0
            for piece in response.iter_content(_DOWNLOAD_PIECE):
                total += len(piece)
                if total > largest:
                    raise MediaError(f"{name}: is larger than the {largest} bytes that are downloaded.")
                output.write(piece)
    except requests.RequestException as error:
        raise MediaError(f"{name}: cannot be downloaded ({type(error).__name__}).") from error
    except OSError as error:
        raise MediaError(f"{name}: the download cannot be stored ({error.strerror or error}).") from error
    if total == 0:
        raise MediaError(f"{name}: the file is empty (0 bytes).")
    return file


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _url_of(source: str | os.PathLike[str]) -> str | None:
    text = os.fspath(source)
    if isinstance(source, str):
        scheme = _SCHEME.match(text)
        return text if scheme else None
    restored = _URL_IN_PATH.sub(r"\1://", str(text), count=1) if _URL_IN_PATH.match(str(text)) else None
    return restored if restored is not None and not Path(source).exists() else None


def _on_disk(path: Path) -> MediaFile:
    try:
        if path.is_dir():
            raise MediaError(f"{path}: is a folder, not a media file.")
        if path.exists() and not path.is_file():
            raise MediaError(f"{path}: is not a regular file.")
        with open(path, "rb") as file:
            if not file.read(1):
                raise MediaError(f"{path}: the file is empty (0 bytes).")
    except FileNotFoundError as error:
        raise MediaError(f"{path}: no such file.") from error
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror}).") from error
    return MediaFile(str(path), path)


def _in_memory(data: bytes | bytearray | memoryview) -> MediaFile:
    if not len(data):
        raise MediaError("a clip in memory: the file is empty (0 bytes).")
    return MediaFile(f"a clip in memory ({len(data)} bytes)", opened=io.BytesIO(data))


def _in_open_file(file: Any) -> MediaFile:
    if isinstance(file, io.TextIOBase):
        raise MediaError("an open media file must be binary; open it with mode 'rb'.")
    name = getattr(file, "name", None)
    name = name if isinstance(name, str) else "a clip in an open file"
    try:
        if file.seek(0, io.SEEK_END) == 0:
            raise MediaError(f"{name}: the file is empty (0 bytes).")
    except (OSError, io.UnsupportedOperation) as error:
        raise MediaError(f"{name}: a media file must be seekable; read it into bytes first.") from error
    return MediaFile(name, opened=file)
