r"""What the pages of this package are made from: one style, one script, pictures inside, players with one control."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template


@dataclass(frozen=True)
class View:
    """One picture of a player.

    Args:
        label: What it is called.
        text: What stands below that.
        strip: Its frames beside each other, a WebP file.
        kept: Frames that get a border.
    """

    label: str
    text: str
    strip: bytes
    kept: Sequence[int] = ()


def render_page(name: str, title: str, **parts: str) -> str:
    """A page in the shell that all share, and parts of HTML in its places."""
    body = Template(_asset(name)).substitute(title=title, **parts)
    shared = {"style": _asset("page.css"), "script": _asset("page.js")}
    return Template(_asset("shell.html")).substitute(title=title, body=body, **shared)


def render_player(views: Sequence[View], num_frames: int, fps: float, frames: Sequence[int] | None = None) -> str:
    r"""Views beside each other, moved by one control.

    Args:
        views: All of as many frames.
        num_frames: How many.
        fps: How fast they are played.
        frames: The clip's frames that these are; by default its first ones.
    """
    control = f'<input type="range" min="0" max="{num_frames - 1}" value="0" aria-label="frame">'
    numbers = "" if frames is None else f' data-numbers="{" ".join(map(str, frames))}"'
    wide = " wide" if len(views) <= 3 else ""
    return (
        f'<div class="player" data-frames="{num_frames}" data-fps="{fps}"{numbers}><div class="controls">'
        f'<button type="button" class="play" aria-label="play">▶</button>{control}<output>1 / {num_frames}</output>'
        f'</div><div class="views{wide}">{"".join(map(_render_view, views))}</div></div>'
    )


def _render_view(view: View) -> str:
    marks = " ".join(map(str, view.kept))
    return (
        f'<figure><canvas data-kept="{marks}"></canvas><img hidden alt="" src="{data_uri(view.strip)}">'
        f"<figcaption><b>{escape(view.label)}</b><br>{escape(view.text)}</figcaption></figure>"
    )


def data_uri(picture: bytes) -> str:
    """A WebP file as an address that holds it."""
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def _asset(name: str) -> str:
    return (resources.files(__package__) / "page" / name).read_text(encoding="utf-8")
