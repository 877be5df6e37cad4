"""The errors and warnings of reading and writing media."""

from __future__ import annotations


class MediaError(ValueError):
    """A video or an image cannot be read or written; the message names the file."""


class MediaWarning(UserWarning):
    """A file was read, but not all of it: lost or damaged frames, dropped alpha, high dynamic range."""
