r"""What the page does, without the page: real clips, the embedded models."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_vidvae import GapDiTPipeline, VideoCompressionPipeline, demo_model
from diffusers_vidvae.app.compressing import Choice, UploadedClip, beside, bring_back, code, open_upload, shown_scale
from diffusers_vidvae.app.generating import Wish, generate, longest_clip
from diffusers_vidvae.app.sessions import Sessions, Stopped
from diffusers_vidvae.app.settings import Limits
from diffusers_vidvae.app.timeline import draw_figures, draw_timeline
from diffusers_vidvae.cli.app import run
from diffusers_vidvae.media import MediaError, VideoReader, save_image
from diffusers_vidvae.metrics import clip_psnr


CLIP = "bear_odd_161x121.webm"


def nothing(share: float) -> None:
    pass


@pytest.fixture(scope="module")
def pipeline() -> VideoCompressionPipeline:
    pipeline = VideoCompressionPipeline.from_pretrained(demo_model())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def upload(pipeline, shared_media) -> UploadedClip:
    return open_upload(shared_media / "clips" / CLIP, 32, pipeline, Limits(), nothing)


def test_clips_are_scaled_and_encoded(upload):
    assert upload.file_size == (161, 121) and upload.size == (43, 32)
    assert upload.frames.dtype == np.uint8 and len(upload.frames) == upload.encoded.num_frames == 30


def test_small_clips_keep_their_size(pipeline, shared_media):
    with VideoReader(shared_media / "clips" / "flower_1frame.mp4") as reader:
        size = reader.info.width, reader.info.height
    upload = open_upload(shared_media / "clips" / "flower_1frame.mp4", 1000, pipeline, Limits(max_side=1000), nothing)
    assert upload.size == upload.file_size == size


LIMITS = [
    (Limits(max_megabytes=0.01), r"bear_odd_161x121.webm has 0.0315 MB, this page takes 0.01 MB\."),
    (Limits(max_frames=20), r"bear_odd_161x121.webm has 30 frames, this page takes 20"),
]


@pytest.mark.parametrize("limits, message", LIMITS, ids=["bytes", "frames"])
def test_limits_are_told_with_both_numbers(pipeline, shared_media, limits, message):
    with pytest.raises(MediaError, match=message):
        open_upload(shared_media / "clips" / CLIP, 32, pipeline, limits, nothing)


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="`max_frames` must be positive, got 0"):
        Limits(max_frames=0)
    assert Limits(max_side=100).sides == [64, 100] and Limits(max_side=64).sides == [64]


def test_what_comes_back_is_what_the_file_holds(upload, pipeline, tmp_path):
    compressed = code(upload, Choice(rate=0.3, quality=40))
    figures = bring_back(upload, compressed, tmp_path / "both.mp4", nothing)
    compressed.save(tmp_path / "clip.fsv")
    frames = np.concatenate(list(pipeline.decompress_frames(tmp_path / "clip.fsv")))
    pixels = [torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1 for clip in (upload.frames, frames)]
    assert compressed.kept_frames == 9
    assert figures["psnr"] == pytest.approx(float(clip_psnr(*pixels)), abs=1e-3)
    with VideoReader(tmp_path / "both.mp4") as reader:
        shown = [frame.data for frame in reader]
    assert len(shown) == len(frames) and shown[0].shape[0] % 2 == shown[0].shape[1] % 2 == 0


def test_budget_and_quality_change_bytes_and_error(upload, tmp_path):
    sizes, errors = [], []
    for index, choice in enumerate((Choice(0.2, 20), Choice(0.2, 60), Choice(0.8, 60))):
        compressed = code(upload, choice)
        sizes.append(compressed.num_bytes)
        errors.append(bring_back(upload, compressed, tmp_path / f"{index}.mp4", nothing)["psnr"])
    assert sizes == sorted(sizes) and errors == sorted(errors) and len(set(sizes)) == 3


def test_modes_choose_other_frames(upload):
    masks = {mode: code(upload, Choice(0.3, 20, mode)).keep_mask for mode in ("systematic", "top_k", "uniform")}
    assert {int(mask.sum()) for mask in masks.values()} == {9}
    assert len({tuple(mask.tolist()) for mask in masks.values()}) > 1
    with pytest.raises(ValueError, match="`mode` must be one of"):
        code(upload, Choice(0.3, 20, "best"))


def test_original_and_reconstruction_lie_beside_each_other():
    one, other = np.full((2, 5, 7, 3), 10, np.uint8), np.full((2, 5, 7, 3), 200, np.uint8)
    frames = beside(one, other, np.array([True, False]))
    assert (frames[:, :5, :7] == 10).all() and (frames[:, :5, -7:] == 200).all()
    assert frames[0, -1, -1].any() and not frames[1, -1, -1].any() and not frames[0, -1, 0].any()
    assert shown_scale(one, 64).shape == (2, 65, 91, 3)


# Generation


@pytest.fixture(scope="module")
def generator() -> GapDiTPipeline:
    pipeline = GapDiTPipeline.from_pretrained(demo_model())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_generates_the_length_that_is_wished(generator, tmp_path):
    assert longest_clip(generator, Limits()) == 16 and longest_clip(generator, Limits(max_frames=9)) == 9
    shares: list[float] = []
    wish = Wish(prompt="a red disc", seed=3, num_frames=11, steps=2)
    positions = generate(generator, wish, tmp_path / "one.mp4", shares.append)
    generate(generator, wish, tmp_path / "two.mp4", nothing)
    assert shares == [0.5, 1.0] and positions[-1] < 11
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    with VideoReader(tmp_path / "one.mp4") as reader:
        assert len(list(reader)) == 11


@pytest.mark.parametrize("num_frames", [2, 9, 16])
def test_begins_and_ends_with_given_pictures(generator, tmp_path, num_frames):
    colours = {"red.png": (220, 30, 30), "blue.png": (30, 30, 220)}
    for name, colour in colours.items():
        save_image(np.full((48, 64, 3), colour, np.uint8), tmp_path / name)
    first, last = (str(tmp_path / name) for name in colours)
    wish = Wish(num_frames=num_frames, steps=3, first=first, last=last)
    positions = generate(generator, wish, tmp_path / "clip.mp4", nothing)
    assert positions[0] == 0 and positions[-1] == num_frames - 1
    with VideoReader(tmp_path / "clip.mp4") as reader:
        frames = [frame.data for frame in reader]
    assert frames[0].mean((0, 1)).argmax() == 0 and frames[-1].mean((0, 1)).argmax() == 2


def test_stops_between_steps_and_leaves_nothing(generator, tmp_path):
    def stop(share: float) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        generate(generator, Wish(steps=5), tmp_path / "clip.mp4", stop)
    assert not list(tmp_path.iterdir())


# What the page shows


def test_timeline_marks_kept_frames():
    svg = ElementTree.fromstring(f"<div>{draw_timeline([0.25, 0.5, 1.0], [False, True, True])}</div>")[0]
    columns = [[float(rect.get("height", 0)) for rect in group.iter("rect")] for group in svg.iter("g")]
    assert [len(column) for column in columns] == [1, 2, 2]
    assert columns[0][0] < columns[1][0] < columns[2][0]
    assert svg.get("aria-label") == "2 of 3 frames are kept"
    assert "Every frame is kept." in draw_timeline(None, [True])


def test_figures_to_come_are_dots():
    html = draw_figures({"<bytes>": "1,000", "PSNR": None})
    assert "&lt;bytes&gt;" in html and "<dd>1,000</dd>" in html and "<dd>…</dd>" in html


# Sessions


def test_a_job_ends_once_something_else_is_wanted(tmp_path):
    session = Sessions(tmp_path).of("a")
    shown: list[float] = []
    session.want("choice", 1)
    advance = session.begin("choice", 1, shown.append)
    advance(0.5)
    session.want("choice", 2)
    with pytest.raises(Stopped):
        advance(0.6)
    session.stop()
    # A job that is begun after the stop runs.
    session.begin("choice", 2, shown.append)(0.1)
    wish = session.begin("wish", 1, shown.append)
    session.stop("choice")
    wish(0.2)
    assert shown == [0.5, 0.1, 0.2]


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("diffusers_vidvae.cli.web_page.find_spec", lambda name: None)
    assert run(["app"]) == 1
    assert "`pip install diffusers-vidvae[app]`" in capsys.readouterr().err


def test_a_space_has_no_address_of_this_machine(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("diffusers_vidvae.cli.web_page.find_spec", lambda name: True)
    assert run(["app", "--export-space", str(tmp_path / "space"), "--port", "80", "--share"]) == 1
    assert "--port and --share: a Space has an address of its own." in capsys.readouterr().err
    assert not (tmp_path / "space").exists()


def test_a_closed_session_leaves_no_files(tmp_path):
    sessions = Sessions(tmp_path)
    shared, own = tmp_path / "shared.mp4", tmp_path / "own.mp4"
    for path in (shared, own):
        path.touch()
    one, other = sessions.of("one"), sessions.of("other")
    one.uploads |= {shared, own}
    other.uploads.add(shared)
    first = one.new_folder("choice")
    (first / "clip.fsv").touch()
    second = one.new_folder("choice")
    assert not first.exists() and second.is_dir()
    advance = one.begin("clip", 1, lambda share: None)
    sessions.close("one")
    with pytest.raises(Stopped):
        advance(0.5)
    assert not one.folder.exists() and not own.exists() and shared.exists() and other.folder.is_dir()
    sessions.close("one")
    sessions.close("other")
    assert not list(Path(tmp_path).iterdir())
