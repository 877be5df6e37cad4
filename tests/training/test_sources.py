"""Files are looked at once, and what was found is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_vidvae.media import MediaError, VideoReader, VideoWriter
from diffusers_vidvae.media.inputs import MediaFile
from diffusers_vidvae.media.windows import read_window
from diffusers_vidvae.training import sources
from diffusers_vidvae.training.config import DataConfig
from diffusers_vidvae.training.data import ClipDataset
from diffusers_vidvae.training.folders import ClipFolder
from diffusers_vidvae.training.listings import INDEX_NAME
from diffusers_vidvae.training.media_index import HEADER, read_index
from diffusers_vidvae.training.sources import index_sources


def write_video(path: Path, num_frames: int = 6, level: int = 0) -> None:
    with VideoWriter(path, 10) as writer:
        for index in range(num_frames):
            writer.write(np.full((1, 32, 32, 3), (level + 20 * index) % 256, np.uint8))


@pytest.fixture
def videos(tmp_path) -> Path:
    """A folder with two videos, one of them with a caption, a picture, a file that is neither, and a hidden one."""
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    write_video(folder / "one.mp4")
    write_video(folder / "deep" / "two.mp4", num_frames=3, level=50)
    (folder / "one.txt").write_text("a grey square\nthat brightens\n")
    Image.new("RGB", (20, 30), "red").save(folder / "picture.png")
    (folder / "broken.mp4").write_text("no video")
    (folder / ".hidden.mp4").write_text("no video")
    return folder


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the files that were opened, one for each time."""
    names: list[str] = []
    really_open = MediaFile.open_unbuffered

    def count(file):
        names.append(os.path.basename(file.name))
        return really_open(file)

    monkeypatch.setattr(MediaFile, "open_unbuffered", count)
    return names


def test_an_index_says_what_is_in_the_files(videos):
    index = index_sources([videos])
    found = {index.path(i).name: (index.rows[i], index.captions[i]) for i in range(len(index))}
    assert list(found) == ["broken.mp4", "two.mp4", "one.mp4", "picture.png"]
    row, caption = found["one.mp4"]
    assert (row["num_frames"], row["width"], row["height"], row["fps"]) == (6, 32, 32, 10)
    assert caption == "a grey square that brightens" and found["two.mp4"][1] == ""
    assert found["picture.png"][0]["is_image"] and found["picture.png"][0]["num_frames"] == 1
    assert found["broken.mp4"][0]["num_frames"] == 0 and "broken.mp4" in index.errors[0]
    assert index.num_frames(fps=5).tolist()[2:] == [3, 1]


def test_files_are_probed_once_and_again_only_when_they_change(videos, opened):
    first = index_sources([videos])
    assert {"one.mp4", "two.mp4", "broken.mp4"} <= set(opened)
    opened.clear()
    again = index_sources([videos])
    assert not opened
    assert (again.rows == first.rows).all() and again.errors == first.errors
    assert again.fingerprint() == first.fingerprint()

    (videos / "one.mp4").unlink()
    write_video(videos / "one.mp4", num_frames=9, level=7)
    write_video(videos / "three.mp4", num_frames=2)
    (videos / "picture.png").unlink()
    opened.clear()
    changed = index_sources([videos])
    assert set(opened) == {"one.mp4", "three.mp4"}
    assert [Path(path).name for path in changed.paths] == ["broken.mp4", "two.mp4", "one.mp4", "three.mp4"]
    assert changed.rows["num_frames"].tolist() == [0, 3, 9, 2]
    assert changed.fingerprint() != first.fingerprint()


def test_a_new_caption_is_another_data_set_but_no_reason_to_probe(videos, opened):
    first = index_sources([videos]).fingerprint()
    opened.clear()
    (videos / "one.txt").write_text("something else")
    again = index_sources([videos])
    assert "something else" in list(again.captions) and again.fingerprint() != first and not opened


def test_a_fingerprint_knows_files_by_content_wherever_they_are(videos, tmp_path):
    first = index_sources([videos]).fingerprint()
    shutil.copytree(videos, tmp_path / "copy", ignore=shutil.ignore_patterns(INDEX_NAME))
    assert index_sources([tmp_path / "copy"]).fingerprint() == first


def test_interrupted_probing_goes_on_where_it_was(videos, opened, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK", 1)
    probe, seen = sources.probe_file, []

    def interrupted(path):
        seen.append(path)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return probe(path)

    monkeypatch.setattr(sources, "probe_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index_sources([videos], num_threads=1)
    with open(videos / INDEX_NAME, "a") as file:
        file.write('{"path": "one.mp4", "si')  # what a kill leaves of a line
    opened.clear()
    index = index_sources([videos], num_threads=1)
    assert set(opened) <= {"one.mp4", "picture.png"}
    assert len(index) == 4 and len(read_index(videos / INDEX_NAME)) == 4


def test_an_index_that_cannot_be_written_is_done_without(videos, tmp_path):
    with pytest.warns(UserWarning, match="nowhere/index.jsonl: cannot be written .*keep the index at another place"):
        assert len(index_sources([videos], tmp_path / "nowhere" / "index.jsonl")) == 4


def test_an_index_at_a_given_place_is_a_source_that_needs_no_look_at_the_files(videos, tmp_path, opened):
    index = index_sources([videos], tmp_path / "all.jsonl")
    assert not (videos / INDEX_NAME).exists()
    opened.clear()
    read = index_sources([tmp_path / "all.jsonl"])
    assert not opened and list(read.paths) == list(index.paths) and list(read.captions) == list(index.captions)
    assert (read.rows == index.rows).all() and read.errors == index.errors


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
def test_lists_name_files_and_captions(videos, tmp_path, suffix):
    path = tmp_path / f"list{suffix}"
    rows = [("videos/one.mp4", "first, and best"), ("videos/picture.png", "")]
    if suffix == ".txt":
        path.write_text("".join(f"{name}\n" for name, _ in rows))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"path": name, "caption": text}) + "\n" for name, text in rows))
    else:
        mark, quote = (",", '"') if suffix == ".csv" else ("\t", "")
        lines = [f"{name}{mark}{quote}{text}{quote}" for name, text in rows]
        path.write_text("\n".join([f"path{mark}caption", *lines]))
    index = index_sources([path])
    assert [Path(name).name for name in index.paths] == ["one.mp4", "picture.png"]
    assert list(index.captions) == (["", ""] if suffix == ".txt" else ["first, and best", ""])
    assert index_sources([path]).fingerprint() == index.fingerprint()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "file,caption\na.mp4,b\n", "list.csv: entry 1 has no column `path`, only file, caption."),
        ("list.txt", "gone.mp4\n", "list.txt: entry 1 is .*gone.mp4, which does not exist."),
        ("list.jsonl", "{half\n", "list.jsonl: line 1 is no JSON"),
        ("index.jsonl", json.dumps({**HEADER, "version": 7}) + "\n", "media index of version 7, only 1 is known."),
        ("index.jsonl", json.dumps(HEADER) + '\n{"path": "a"}\n', "index.jsonl: line 2 is no entry of a media index"),
    ],
)
def test_bad_lists_and_indexes_are_refused_by_name(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        index_sources([tmp_path / name])


def test_files_that_vanished_from_an_index_are_named(videos, tmp_path):
    index_sources([videos / "one.mp4"], tmp_path / "one.jsonl")
    (videos / "one.mp4").unlink()
    folder = ClipFolder([tmp_path / "one.jsonl"], num_frames=4, sample_size=16)
    with pytest.raises(ValueError, match="20 files in turn could not be read .*one.mp4: no such file"):
        folder.clip(np.random.default_rng(0))


def test_an_index_of_other_files_is_noticed_by_their_size(videos, tmp_path):
    index_sources([videos / "one.mp4"], tmp_path / "one.jsonl")
    (videos / "one.mp4").unlink()
    write_video(videos / "one.mp4", num_frames=40, level=3)
    folder = ClipFolder([tmp_path / "one.jsonl"], num_frames=4, sample_size=16)
    with pytest.raises(MediaError, match=r"one.mp4: has \d+ bytes, not the \d+ that its index says; index it again\."):
        folder.middle(0, 0)


@pytest.mark.filterwarnings("ignore:.*skipped 1 of")
def test_fingerprints_of_data_sets_cover_settings_and_files_and_nothing_else(videos):
    def fingerprint(seed: int = 0, **changes: object) -> str:
        config = {"folders": [str(videos)], "procedural_share": 0.5, "num_frames": 4, "sample_size": 16, **changes}
        return ClipDataset(DataConfig(**config), seed).fingerprint()

    first = fingerprint()
    assert fingerprint(num_workers=3) == first
    assert len({first, fingerprint(seed=1), fingerprint(min_crop=0.25), fingerprint(holdout=["one.mp4"])}) == 4


@pytest.mark.parametrize("fps", [None, 5])
def test_a_training_clip_from_deep_inside_a_file_opens_it_once(tmp_path, opened, fps):
    write_video(tmp_path / "long.mp4", num_frames=120)
    folder = ClipFolder([tmp_path], num_frames=4, sample_size=16, fps=fps)
    opened.clear()
    starts = np.random.default_rng(3)
    for _ in range(5):
        assert len(folder.clip(starts)) == 4
    # Besides FFmpeg's opening, one look at the first bytes.
    assert opened == ["long.mp4"] * 10


@pytest.mark.parametrize("start", [0, 1, 25, 61, 119])
def test_a_window_holds_the_frames_that_a_reader_counts(tmp_path, start):
    write_video(tmp_path / "long.mp4", num_frames=120)
    expected = VideoReader(tmp_path / "long.mp4").read(start, start + 3)
    window = read_window(tmp_path / "long.mp4", (start + 0.5) / 10, 3)
    assert (window.data == expected.data).all()
    assert window.pts_seconds.tolist() == pytest.approx(expected.pts_seconds.tolist())
