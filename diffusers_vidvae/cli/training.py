"""`vidvae train`, `vidvae stats` and `vidvae encode-dataset`."""

from __future__ import annotations

import typer


def add_commands(app: typer.Typer) -> None:
    pass
