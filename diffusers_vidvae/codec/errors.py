"""What goes wrong in reading and writing compressed videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FsvError(ValueError):
    """A compressed video cannot be read or written; the message names the file and the field."""


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Puts the file's name in front of the `FsvError`s raised inside."""
    try:
        yield
    except FsvError as error:
        raise FsvError(f"{path}: {error}") from error
