r"""The file from which interrupted statistics of latents continue."""

from __future__ import annotations

import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

from diffusers_vidvae.fingerprints import model_fingerprint

from .latent_moments import LatentMoments


STATE_FORMAT = 2


class StatisticsRecords:
    """Lines of JSON: what they belong to, then the moments of a file on each."""

    def __init__(self, path: str | PathLike[str], vae: Any, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.moments: dict[str, tuple[int, LatentMoments]] = {}
        header = {"format": STATE_FORMAT, "model": model_fingerprint(vae), **settings}
        if not self.path.exists():
            self._write_line(header)
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        self._check_header(lines[0] if lines else "", header)
        for line in lines[1:]:
            if line.endswith("\n"):
                record = json.loads(line)
                self.moments[record["file"]] = record["bytes"], LatentMoments.from_json(record["moments"])
        if lines and not lines[-1].endswith("\n"):
            # The run was interrupted while it wrote this line.
            os.truncate(self.path, sum(len(line.encode()) for line in lines[:-1]))

    def _check_header(self, line: str, expected: dict[str, Any]) -> None:
        try:
            header = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path}: is no file of latent statistics.") from error
        for name, value in expected.items():
            if not isinstance(header, dict) or name not in header:
                raise ValueError(f"{self.path}: is no file of latent statistics.")
            if header[name] != value and name == "model":
                raise ValueError(f"{self.path}: belongs to an autoencoder with other weights.")
            if header[name] != value:
                raise ValueError(f"{self.path}: was made with `{name}` {header[name]!r}, not {value!r}.")

    def find(self, name: str) -> LatentMoments | None:
        """The moments of a file that has not changed its size since."""
        num_bytes, moments = self.moments.get(name, (-1, None))
        return moments if Path(name).is_file() and Path(name).stat().st_size == num_bytes else None

    def append(self, name: str, moments: LatentMoments) -> None:
        self._write_line({"file": name, "bytes": Path(name).stat().st_size, "moments": moments.to_json()})

    def _write_line(self, values: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
