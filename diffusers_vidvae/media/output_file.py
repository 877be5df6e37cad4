"""Output that appears whole under its name, or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path

from .errors import MediaError, naming_disk_errors


_FRAME_NAME = re.compile(r"frame_\d+\.png")


class AtomicOutput:
    """A file (or folder) under a temporary name beside `path`, which `commit` renames and `discard` removes.

    Args:
        path: The final name.
        overwrite: Whether `path` may exist. An empty folder always may; of others only those that hold nothing but
            `frame_*.png` are replaced.
        folder: Make a folder instead of a file.

    Raises:
        MediaError: `path` exists without `overwrite`, its folder does not exist, or it cannot be written.
    """

    def __init__(self, path: Path, *, overwrite: bool, folder: bool = False):
        self.path = path
        self.overwrite = overwrite
        self.is_folder = folder
        self._check_target()
        target = path.resolve()
        self.temporary = target.parent / f".{target.stem}.{secrets.token_hex(6)}.tmp{target.suffix}"
        with naming_disk_errors(path):
            if folder:
                self.temporary.mkdir()
            else:
                self.temporary.open("xb").close()

    def commit(self) -> None:
        self._check_target()
        target = self.path.resolve()
        with naming_disk_errors(self.path):
            if self.is_folder and target.exists():
                shutil.rmtree(target)
            elif not self.is_folder:
                _flush_to_disk(self.temporary)
            os.replace(self.temporary, target)

    def discard(self) -> None:
        if self.is_folder:
            shutil.rmtree(self.temporary, ignore_errors=True)
        else:
            self.temporary.unlink(missing_ok=True)

    def _check_target(self) -> None:
        path = self.path
        if not path.resolve().parent.is_dir():
            raise MediaError(f"{path}: cannot be written, the folder {path.parent} does not exist")
        if path.is_dir() and not self.is_folder:
            raise MediaError(f"{path}: is a folder")
        if path.exists() and not path.is_dir() and self.is_folder:
            raise MediaError(f"{path}: exists already and is a file, not a folder of frames")
        held = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        if path.exists() and not self.overwrite and (held or not self.is_folder):
            raise MediaError(f"{path}: exists already; overwrite=True replaces it")
        others = [name for name in held if not _FRAME_NAME.fullmatch(name)]
        if others:
            raise MediaError(f"{path}: holds other files than frames ({others[0]}); it is not replaced")


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
