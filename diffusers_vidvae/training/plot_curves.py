"""Draws training curves.

python -m diffusers_vidvae.training.plot_curves RUN/metrics.jsonl [MORE ...] [--metrics NAME ...] [--output curves.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .metrics_log import MetricsLog


# Drawn on a logarithmic scale, as are the losses at each quarter of the noise levels, "velocity_q1" and so on.
LOG_SCALE = ("loss", "mse", "mae", "pixel", "velocity", "gap", "kl", "gradient_norm", "learning_rate")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Lines of a metrics log."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such metrics log.")
    return MetricsLog(path).read()


def plot_curves(paths: list[str | Path], output: str | Path, metrics: Collection[str] | None = None) -> Path:
    r"""Draws a panel for every metric, over minutes of training; runs that followed each other join up.

    Args:
        paths: Metrics logs, in the order of the runs.
        output: Image file to write.
        metrics: Metrics to draw; by default all.

    Raises:
        ValueError: A file is missing, is no metrics log, holds no metrics yet or not one of `metrics`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = [read_metrics(path) for path in paths]
    names = _metric_names(runs)
    if not names:
        raise ValueError(f"{paths[0]}: holds no metrics yet.")
    if metrics is not None:
        unknown = sorted(set(metrics) - {metric for _, metric in names})
        if unknown:
            allowed = ", ".join(sorted({metric for _, metric in names}))
            raise ValueError(f"{paths[0]}: has no metric {unknown[0]!r}, only {allowed}.")
        names = [name for name in names if name[1] in metrics]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        offset = 0.0
        for path, lines in zip(paths, runs, strict=True):
            _draw(axis, lines, name, offset, Path(path).parent.name)
            offset += max((line["minutes"] for line in lines), default=0.0)
        axis.set_title(f"{name[0]}: {name[1]}", fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    axes[0, 0].legend(fontsize=7)
    figure.supxlabel("minutes")
    figure.tight_layout()
    figure.savefig(output, dpi=100)
    plt.close(figure)
    return Path(output)


def _metric_names(runs: list[list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """Split and name of every metric, in the order they appear."""
    names: dict[tuple[str, str], None] = {}
    for lines in runs:
        for line in lines:
            names.update({(line["split"], name): None for name in line if name not in ("step", "minutes", "split")})
    return list(names)


def _draw(axis: Any, lines: list[dict[str, Any]], name: tuple[str, str], offset: float, label: str) -> None:
    split, metric = name
    points = [(line["minutes"] + offset, line[metric]) for line in lines if line["split"] == split and metric in line]
    if not points:
        return
    minutes, values = zip(*points, strict=True)
    axis.plot(minutes, values, marker="." if split == "validation" else None, linewidth=1, label=label)
    if metric.partition("_q")[0] in LOG_SCALE and min(values) > 0:
        axis.set_yscale("log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", metavar="metrics.jsonl")
    parser.add_argument("--metrics", nargs="+", help="metrics to draw; all by default")
    parser.add_argument("--output", default="curves.png")
    options = parser.parse_args()
    try:
        print(plot_curves(options.logs, options.output, options.metrics))
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
