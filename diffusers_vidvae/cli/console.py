"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text


# Pipes have no width; tables that go there are not cut off.
stdout = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


# Share of a run after which its own speed tells more than a forecast.
MEASURED_SHARE = 0.1


class CommandError(ValueError):
    """A command cannot do what it was asked to; the message says how it could."""


def print_error(message: str) -> None:
    stderr.print(f"[bold red]error:[/] {escape(message)}")


def print_warning(message: str) -> None:
    stderr.print(f"[yellow]warning:[/] {escape(message)}")


def note(message: str) -> None:
    stderr.print(escape(message), style="dim")


def print_json(value: Any) -> None:
    """Prints a value on stdout as JSON, and nothing else."""
    print(json.dumps(value, indent=2, default=_plain, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, (Path, Fraction)):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON.")


def print_fields(title: str, fields: Mapping[str, Any]) -> None:
    """Prints names and values below a title; values that are None are left out."""
    stdout.print(f"[bold]{escape(title)}[/]")
    table = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        if value is not None:
            table.add_row(f"  {escape(name)}", escape(str(value)))
    stdout.print(table)


def print_result(report: Any, as_json: bool, title: str, fields: Mapping[str, Any]) -> None:
    """Prints what a command found: all of it as JSON, or for people some fields below a title."""
    if as_json:
        print_json(report)
    else:
        print_fields(title, fields)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row))
    stdout.print(table)


@contextmanager
def warnings_as_lines(debug: bool) -> Iterator[None]:
    """Shows the package's own warnings in one line each, and others only when debugging."""
    from diffusers_vidvae.media import MediaWarning

    shown = set()

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if str(message) not in shown:
            print_warning(str(message))
        shown.add(str(message))

    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", MediaWarning)
        warnings.showwarning = show
        yield


class TimeLeft(ProgressColumn):
    """The time left: by a forecast at first, and by what was done once that tells more."""

    max_refresh = 0.5

    def __init__(self, seconds: float | None) -> None:
        super().__init__()
        self.seconds = seconds

    def render(self, task: Task) -> Text:
        elapsed, share = task.elapsed or 0.0, task.completed / (task.total or 1)
        if share > MEASURED_SHARE or (share and self.seconds is None):
            left = elapsed * (1 - share) / share
        elif self.seconds is not None:
            left = max(self.seconds - elapsed, 0)
        else:
            return Text("-:--:-- left", style="progress.remaining")
        return Text(f"{timedelta(seconds=math.ceil(left))} left", style="progress.remaining")


@contextmanager
def progress_of(description: str, total: int, seconds: float | None = None) -> Iterator[Callable[..., None]]:
    """A bar with the time left, if somebody is there to see it; gives the function that moves it on, by one if not
    told otherwise. `seconds` is about how long all of it takes, if that is known."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeLeft(seconds))
    bar = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
    task = bar.add_task(description, total=total)
    with bar:
        yield lambda steps=1: bar.advance(task, steps)


def check_output(path: Path, force: bool, suffixes: Sequence[str] = ()) -> None:
    """Refuses an output that exists, has no folder to lie in, or another suffix than those that are allowed.

    Raises:
        CommandError: The message says what to do.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise CommandError(f"{path}: the output's name must end in {', '.join(suffixes)}.")
    if not path.parent.is_dir():
        raise CommandError(f"{path}: there is no folder {path.parent}.")
    if path.exists() and not force:
        raise CommandError(f"{path}: exists already; --force replaces it.")


def clip_text(report: Mapping[str, Any]) -> str:
    """A clip's length, size and, if there is one, frame rate for people."""
    frames = "1 frame" if report["num_frames"] == 1 else f"{report['num_frames']} frames"
    fps = "" if report.get("fps") is None else f", {float(report['fps']):.5g} fps"
    return f"{frames}, {report['width']}x{report['height']}{fps}"


def size_text(num_bytes: int) -> str:
    """A number of bytes for people."""
    size = float(num_bytes)
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
