"""The log of a training's metrics: lines of JSON, written as they come and read back after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers_vidvae.files import write_file


class Averages:
    """Means of metrics over the steps since they were last taken. Values that are not finite are left out."""

    def __init__(self, sums: Mapping[str, list[float]] | None = None):
        self.sums: dict[str, list[float]] = {name: list(entry) for name, entry in (sums or {}).items()}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Takes in the metrics of a step."""
        for name, value in metrics.items():
            if math.isfinite(value):
                entry = self.sums.setdefault(name, [0.0, 0])
                entry[0] += value
                entry[1] += 1

    def take(self) -> dict[str, float]:
        """The means, and a fresh start."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means


class MetricsLog:
    """A file with one line of JSON for every logged step: `step`, `minutes`, `split` and the metrics."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, step: int, minutes: float, split: str, metrics: Mapping[str, float]) -> None:
        """Appends a line. JSON has no infinity: values that are not finite are left out."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        line = {"step": step, "minutes": round(minutes, 4), "split": split, **finite}
        with open(self.path, "a") as log:
            log.write(json.dumps(line, allow_nan=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines but a last one that was cut off.

        Raises:
            ValueError: The file is no metrics log.
        """
        text = self.path.read_text() if self.path.is_file() else ""
        lines = []
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                if line.startswith("{") and not line.endswith("\n"):
                    break
                raise ValueError(f"{self.path}: is not a metrics log, line {number} is no JSON ({error}).") from error
            if not isinstance(values, dict) or "step" not in values:
                raise ValueError(f"{self.path}: is not a metrics log, line {number} names no step.")
            lines.append(values)
        return lines

    def trim(self, last_step: int) -> bool:
        """Forgets what was logged after a step; returns whether a validation of that very step remains."""
        if not self.path.is_file():
            return False
        kept = [line for line in self.read() if line["step"] <= last_step]
        write_file(self.path, "".join(json.dumps(line) + "\n" for line in kept), overwrite=True)
        return any(line["step"] == last_step and line["split"] == "validation" for line in kept)
