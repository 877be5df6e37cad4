r"""A comparison to look at: a sheet of frames, or a page with a player."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusers_vidvae.media import contact_sheet

from .charts import Series, draw_svg
from .comparison import ClipPair, ComparedFrame, Comparison
from .measuring import make_strip
from .pages import View, render_page, render_player


SHEET_WIDTH, PAGE_WIDTH = 480, 400
_LEAST_SHEET_WIDTH = 320
_CURVE_POINTS = 300


@dataclass(frozen=True)
class ComparisonTexts:
    """What stands beside the pictures: a line on each clip, one on both, and the factor of the differences."""

    one: str
    other: str
    summary: str
    amplify: float

    @property
    def difference(self) -> str:
        return f"difference x{self.amplify:g}"


def draw_sheet(comparison: Comparison, texts: ComparisonTexts) -> Image.Image:
    r"""A line for every shown frame: of the first clip, of the second, and their difference."""
    pictures, labels = [], []
    for frame in comparison.shown:
        pictures += [frame.one, frame.other, frame.difference]
        labels += [f"A, frame {frame.index}", f"B, {frame_text(frame, comparison)}", texts.difference]
    width = max(_LEAST_SHEET_WIDTH, pictures[0].shape[1])
    title = f"A: {texts.one}\nB: {texts.other}\n{texts.summary}"
    return contact_sheet(pictures, columns=3, labels=labels, frame_width=width, title=title)


def render_comparison(comparison: Comparison, pair: ClipPair, texts: ComparisonTexts) -> str:
    r"""One HTML file that needs nothing else: both clips and their difference in a player, and PSNR over frames."""
    shown = comparison.shown
    views = [
        View("A", texts.one, _strip([frame.one for frame in shown])),
        View("B", texts.other, _strip([frame.other for frame in shown])),
        View(texts.difference, "black where both are equal", _strip([frame.difference for frame in shown])),
    ]
    seconds = pair.num_frames / float(pair.one.fps or pair.other.fps or 1)
    player = render_player(views, len(shown), len(shown) / seconds, [frame.index for frame in shown])
    share = "All" if len(shown) == pair.num_frames else f"{len(shown)} of"
    sampled = f"{share} {pair.num_frames} frames are shown, at equal steps and the worst of all."
    return render_page(
        "comparison.html",
        title=escape(f"{pair.one.name} and {pair.other.name}"),
        one=escape(texts.one),
        other=escape(texts.other),
        summary=escape(texts.summary),
        sampled=sampled,
        width=str(PAGE_WIDTH),
        player=player,
        curve=_curve(comparison),
    )


def frame_text(frame: ComparedFrame, comparison: Comparison) -> str:
    """What a frame's figures are, and whether it is the worst."""
    is_worst = frame.index == comparison.worst_frame and len(comparison.frame_psnrs) > 1
    similarity = "" if frame.ssim is None else f", SSIM {frame.ssim:.4f}"
    return f"{frame.psnr:.2f} dB{similarity}{', the worst frame' if is_worst else ''}"


def _strip(frames: list[NDArray[np.uint8]]) -> bytes:
    return make_strip(np.stack(frames), PAGE_WIDTH)


def _curve(comparison: Comparison) -> str:
    psnrs = comparison.frame_psnrs
    if len(psnrs) == 1:
        return "<p>There is one frame.</p>"
    # The worst frame of every stretch, so that none is lost.
    stretches = np.array_split(np.arange(len(psnrs)), min(len(psnrs), _CURVE_POINTS))
    points = [(float(worst), psnrs[worst]) for worst in (min(part, key=psnrs.__getitem__) for part in stretches)]
    name = "PSNR of B, dB" if len(points) == len(psnrs) else "PSNR of B, dB, the worst of each stretch of frames"
    return draw_svg([Series(name, points)], "PSNR, dB", "frame")
