"""Two clips side by side: figures, pictures, what is refused and what aligns it."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_vidvae.cli.app import run
from diffusers_vidvae.evaluation.comparison import compare_clips, pair_clips
from diffusers_vidvae.media import VideoWriter, open_clips
from diffusers_vidvae.metrics import evaluate_clip


FRAMES = np.random.default_rng(0).integers(0, 200, (9, 24, 36, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, frames: np.ndarray, fps: float = 12) -> Path:
    with VideoWriter(name, Fraction(fps), lossless=True) as writer:
        writer.write(frames)
    return Path(name)


def other_frames() -> np.ndarray:
    """The frames with an error of 2 levels, and of 20 in frame 5."""
    frames = FRAMES + 2
    frames[5] += 18
    return frames


def call(capsys, *arguments) -> dict:
    capsys.readouterr()
    code = run(["compare", *map(str, arguments), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def fail(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run(["compare", *map(str, arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_figures_agree_with_the_metrics_and_the_worst_frame_is_shown():
    (one,), (other,) = open_clips(FRAMES, fps=12), open_clips(other_frames(), fps=12)
    comparison = compare_clips(pair_clips(one, other), num_shown=2, most_width=18, amplify=3)
    figures = evaluate_clip(FRAMES, other_frames())
    assert comparison.psnr == pytest.approx(figures["psnr"], abs=1e-4)
    assert (comparison.worst_frame, comparison.num_identical) == (figures["worst_frame"], 0) == (5, 0)
    assert [frame.index for frame in comparison.shown] == [0, 5, 8]
    assert [frame.difference.max() for frame in comparison.shown] == [6, 60, 6]
    assert comparison.shown[0].one.shape == (12, 18, 3)


def test_the_sheet_holds_both_clips_and_their_difference(capsys, folder):
    write("a.mkv", FRAMES), write("b.mkv", other_frames())
    report = call(capsys, "a.mkv", "b.mkv", "-o", "sheet.png", "--frames", 3)
    assert [item["frame"] for item in report["shown"]] == [0, 4, 5, 8]
    assert report["b"]["num_bytes"] == Path("b.mkv").stat().st_size
    width, height = Image.open("sheet.png").size
    assert width == 3 * 320 + 4 * 4 and height > 4 * 24 * 320 // 36
    assert "exists already; --force replaces it." in fail(capsys, "a.mkv", "b.mkv", "-o", "sheet.png")


def test_the_page_needs_nothing_else(capsys, folder):
    write("a.mkv", FRAMES), write("b<&.mkv", other_frames())
    call(capsys, "a.mkv", "b<&.mkv", "-o", "page.html", "--frames", 4)
    page = Path("page.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "") and "b&lt;&amp;.mkv" in page and "b<&" not in page
    assert 'data-numbers="0 3 5 8"' in page and "4 of 9 frames are shown" in page and "frame 5" in page


def test_equal_clips_and_images_are_compared(capsys, folder):
    write("a.mkv", FRAMES)
    report = call(capsys, "a.mkv", "a.mkv", "-o", "same.png")
    assert (report["identical_frames"], report["psnr"]) == (9, 100)
    assert run(["compare", "a.mkv", "a.mkv", "-o", "same.html"]) == 0
    assert "no pixel differs" in capsys.readouterr().out
    Image.fromarray(FRAMES[0]).save("photo.png")
    report = call(capsys, "photo.png", "photo.png", "-o", "photo.html")
    assert (report["num_frames"], report["a"]["fps"]) == (1, None)


def test_a_compressed_file_is_decoded(capsys, folder):
    write("a.mkv", FRAMES)
    assert run(["compress", "a.mkv", "-o", "a.fsv"]) == 0
    assert run(["decompress", "a.fsv", "-o", "back.mkv", "--lossless"]) == 0
    assert call(capsys, "a.fsv", "back.mkv", "-o", "same.png")["identical_frames"] == 9
    report = call(capsys, "a.mkv", "a.fsv", "-o", "half.png", "--fps", 6)
    assert (report["num_frames"], report["b"]["fps"]) == (5, "6")


@pytest.mark.parametrize(
    ("name", "frames", "fps", "message", "option"),
    [
        ("small.mkv", FRAMES[:, :20], 12, "a.mkv is 36x24 and small.mkv is 36x20", "--resize"),
        ("short.mkv", FRAMES[:7], 12, "a.mkv has 9 frames and short.mkv has 7 frames", "--shorter"),
        ("fast.mkv", FRAMES, 24, "a.mkv has 12 fps and fast.mkv has 24 fps", "--any-rate"),
    ],
)
def test_clips_that_do_not_fit_are_refused_and_aligned_by_an_option(
    capsys, folder, name, frames, fps, message, option
):
    write("a.mkv", FRAMES), write(name, frames, fps)
    line = fail(capsys, "a.mkv", name, "-o", "sheet.png")
    assert message in line and option in line and not Path("sheet.png").exists()
    assert call(capsys, "a.mkv", name, "-o", "sheet.png", option)["num_frames"] == min(len(frames), 9)


def test_both_are_resampled_by_time(capsys, folder):
    write("a.mkv", FRAMES.repeat(2, axis=0), 24), write("b.mkv", FRAMES, 12)
    report = call(capsys, "a.mkv", "b.mkv", "-o", "sheet.png", "--fps", 12)
    assert (report["num_frames"], report["identical_frames"]) == (9, 9)


def test_impossible_comparisons_are_refused(capsys, folder):
    write("a.mkv", FRAMES)
    Path("text.mp4").write_text("no video")
    Image.fromarray(FRAMES[0]).save("photo.png")
    assert "must end in .png, .html" in fail(capsys, "a.mkv", "a.mkv", "-o", "sheet.gif")
    assert "text.mp4" in fail(capsys, "a.mkv", "text.mp4", "-o", "sheet.png")
    assert "--model tiny: is for .fsv files" in fail(capsys, "a.mkv", "a.mkv", "-o", "sheet.png", "--model", "tiny")
    line = fail(capsys, "photo.png", "photo.png", "-o", "photo.png", "--force")
    assert "photo.png: would be overwritten" in line
