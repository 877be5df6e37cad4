r"""The results of a report on the disk: a line of JSON for every clip and model, so that interrupted runs go on.

A folder holds `results.jsonl`, `generation.jsonl` for that half, one file more of each for every further process, and
`strips/`, pictures of frames. The first line of a file says what was measured; results of other settings or other
weights are refused, not mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusers_vidvae.files import write_file

from .measuring import Part


FORMAT = 1
STRIPS = "strips"


class ResultsFolder:
    """Results of one report.

    Args:
        folder: Where they lie; made if it is not there.
        header: What they belong to, as plain values.
        rank: Number of this process, which writes a file of its own.
        stem: What files of results are called.

    Raises:
        ValueError: The folder holds results of something else.
    """

    def __init__(self, folder: Path, header: dict[str, Any], rank: int = 0, stem: str = "results") -> None:
        self.folder, self.stem = folder, stem
        self.header = {"format": FORMAT, **header}
        self.path = folder / (f"{stem}.jsonl" if rank == 0 else f"{stem}.{rank}.jsonl")
        (folder / STRIPS).mkdir(parents=True, exist_ok=True)
        for path in self._files():
            self._check(path)
        _drop_half_line(self.path)
        if not self.path.exists() or not self.path.stat().st_size:
            self._append(self.header)

    def load(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Everything measured so far, by clip and part."""
        return {tuple(record["key"]): record for path in self._files() for record in _lines(path)[1:]}

    def add(self, clip: str, part: str, result: Part, seconds: float) -> None:
        """Keeps a result; it is on the disk when this returns."""
        rows = []
        for measured in result.measured:
            row = dict(measured.row)
            if measured.strip is not None:
                row["strip"] = f"{STRIPS}/{hashlib.sha256(measured.strip).hexdigest()[:20]}.webp"
                write_file(self.folder / row["strip"], measured.strip, overwrite=True)
            rows.append(row)
        self.add_facts(clip, part, {"rows": rows, "failures": result.failures, "seconds": seconds, **result.facts})

    def add_facts(self, clip: str, part: str, facts: dict[str, Any]) -> None:
        """Keeps plain values; they are on the disk when this returns."""
        self._append({"key": [clip, part], **facts})

    def add_failure(self, clip: str, part: str, message: str) -> None:
        self._append({"key": [clip, part], "error": message})

    def _append(self, record: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.stem}*.jsonl"))

    def _check(self, path: Path) -> None:
        lines = _lines(path)
        found = lines[0] if lines else self.header
        different = sorted(name for name in self.header if found.get(name) != self.header[name])
        if different:
            raise ValueError(
                f"{path}: holds results of another evaluation, which differs in {', '.join(different)}; choose another"
                " folder."
            )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> Iterator[str]:
    """Lines but for a last one that an interrupted run did not end."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield line


def _drop_half_line(path: Path) -> None:
    if path.exists():
        os.truncate(path, sum(len(line.encode()) for line in _whole_lines(path)))
