r"""Errors that several parts of the package raise."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written, or is not one of the model or training that it is meant for."""
