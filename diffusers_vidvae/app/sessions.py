r"""What belongs to each open page: a folder, a clip, and which of its jobs is still wanted."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .compressing import Advance, UploadedClip


class Stopped(Exception):
    """A visitor asked for something else meanwhile, or for nothing."""


# Reading and encoding a clip, coding and decoding it, generating one.
JOBS = ("clip", "choice", "wish")
_NOTHING = object()


class Session:
    r"""What one open page has on this machine.

    Args:
        folder: An empty folder for the files that the page offers.

    Attributes:
        upload: The clip that the page works on.
        uploads: Files that the visitor sent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.upload: UploadedClip | None = None
        self.uploads: set[Path] = set()
        self._wanted: dict[str, Any] = {}
        self._newest: dict[str, Path] = {}

    def want(self, job: str, what: Any) -> None:
        r"""Says what a kind of job is to be done for; one that runs for something else ends as soon as it looks."""
        self._wanted[job] = what

    def stop(self, *jobs: str) -> None:
        r"""Ends jobs of these kinds, by default of all, if they run."""
        self._wanted |= dict.fromkeys(jobs or JOBS, _NOTHING)

    def begin(self, job: str, what: Any, show: Callable[[float], None]) -> Advance:
        r"""Begins a job.

        Args:
            job: Its kind.
            what: What it is done for.
            show: Called with the share that is done.

        Returns:
            A function for the job to call with that share; it raises `Stopped` once something else is wanted.
        """
        if self._wanted.get(job) is _NOTHING:
            del self._wanted[job]

        def advance(share: float) -> None:
            if self._wanted.get(job, what) != what:
                raise Stopped
            show(share)

        return advance

    def new_folder(self, job: str) -> Path:
        r"""A folder for what a job writes; that of the job before it goes, as the page shows it no more."""
        if job in self._newest:
            shutil.rmtree(self._newest[job], ignore_errors=True)
        self._newest[job] = self.folder / secrets.token_hex(8)
        self._newest[job].mkdir()
        return self._newest[job]


class Sessions:
    r"""All open pages.

    Args:
        folder: Where their folders are made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Session] = {}

    def of(self, name: str) -> Session:
        r"""The session of that name, begun if there is none."""
        if name not in self._open:
            folder = self.folder / secrets.token_hex(8)
            folder.mkdir()
            self._open[name] = Session(folder)
        return self._open[name]

    def close(self, name: str) -> None:
        r"""Ends a session's jobs and removes its files, but uploads that another session works on, too."""
        session = self._open.pop(name, None)
        if session is None:
            return
        session.stop()
        shutil.rmtree(session.folder, ignore_errors=True)
        others = set().union(*(other.uploads for other in self._open.values()))
        for path in session.uploads - others:
            path.unlink(missing_ok=True)
