"""Copies of files behind URLs, each fetched once and kept in a cache for all processes of a machine.

The cache is that of `webdataset`: the folder `WDS_CACHE`, by default `~/.cache/diffusers-vidvae`, of at most
`WDS_CACHE_SIZE` bytes, beyond which the files go that were fetched first.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from threading import Timer
from typing import Any

from diffusers_vidvae.files import atomic_path
from diffusers_vidvae.media import MediaError
from diffusers_vidvae.media.inputs import download


# A URL is given up after so many attempts, between which the pauses double.
ATTEMPTS = 4
FIRST_PAUSE = 1.0  # seconds

# Seconds without a byte after which a program that fetches a URL is ended.
STALLED = 60.0
_PIECE = 2**20
_LARGEST = 2**50


def is_url(source: str) -> bool:
    """Whether a source has the form of a URL."""
    return "://" in source


def cache_folder() -> Path:
    """Folder of the copies, which is made."""
    folder = Path(os.environ.get("WDS_CACHE") or Path.home() / ".cache" / "diffusers-vidvae")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_name(name: str, suffix: str = "") -> Path:
    """Where something is kept in the cache."""
    return cache_folder() / f"{blake2b(name.encode(), digest_size=16).hexdigest()}{suffix}"


def local_copy(url: str) -> Path:
    """Path of a copy of a file behind a URL, fetched unless it is there.

    Args:
        url: An http or https address, or one that `webdataset` opens with a program: gs, htgs, hf, ais, sftp, ftps.

    Raises:
        ValueError: The URL does not answer, or is of another kind.
    """
    path = cached_name(url, ".tar")
    if path.is_file():
        return path
    with _alone(path.with_suffix(".lock")):
        if not path.is_file():
            _make_room(path.parent)
            _fetch_repeatedly(url, path)
    return path


def _fetch_repeatedly(url: str, path: Path) -> None:
    fetch = _fetch_http if url.startswith(("http://", "https://")) else _fetch_with_webdataset
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with atomic_path(path, overwrite=True) as temporary:
                return fetch(url, temporary)
        except (MediaError, OSError) as error:
            if attempt == ATTEMPTS:
                raise ValueError(f"{_public(url)}: does not answer after {ATTEMPTS} attempts ({error})") from error
        time.sleep(pause)
        pause *= 2


def _fetch_http(url: str, path: Path) -> None:
    file = download(url, _LARGEST)
    assert file.path is not None
    shutil.copyfile(file.path, path)


def _fetch_with_webdataset(url: str, path: Path) -> None:
    try:
        from webdataset.gopen import gopen, gopen_schemes
    except ImportError as error:
        raise ValueError(
            f"{_public(url)}: needs webdataset: pip install 'diffusers-vidvae[data]' brings it."
        ) from error
    scheme = url.partition("://")[0]
    # A pipe runs any command; an index of a stranger may not.
    allowed = sorted(set(gopen_schemes) - {"pipe", "__default__"})
    if scheme not in allowed:
        raise ValueError(f"{_public(url)}: URLs of shards are of {', '.join(allowed)}, not {scheme}.")
    with gopen(url) as stream, open(path, "wb") as output:
        while piece := _read_in_time(stream):
            output.write(piece)
    if not path.stat().st_size:
        raise OSError("nothing came")


def _read_in_time(stream: Any) -> bytes:
    """The next piece of what a program writes, which is ended if it writes nothing for too long."""
    watch = Timer(STALLED, stream.proc.kill)
    watch.start()
    try:
        return stream.read(_PIECE)
    finally:
        watch.cancel()


def _make_room(folder: Path) -> None:
    """Removes what was fetched first from a cache that is larger than `WDS_CACHE_SIZE`."""
    size = os.environ.get("WDS_CACHE_SIZE")
    if size:
        copies = sorted(folder.glob("*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in copies:
            total += path.stat().st_size
            if total > float(size):
                path.unlink(missing_ok=True)


def _public(url: str) -> str:
    """A URL without its query, in which signatures are."""
    return url.partition("?")[0]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process of this machine at a time into the block."""
    try:
        import fcntl
    except ImportError:  # where the system has no such locks
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
