"""Clips come from tar shards and data sets as they come from files, and so do their columns."""

from __future__ import annotations

import functools
import io
import json
import re
import socket
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_vidvae import FrameSelectVAE
from diffusers_vidvae.media import VideoWriter
from diffusers_vidvae.training import remote_files
from diffusers_vidvae.training.config import DataConfig
from diffusers_vidvae.training.data import EveryWindow
from diffusers_vidvae.training.encoding import encode_dataset
from diffusers_vidvae.training.latent_shards import LatentDataset
from diffusers_vidvae.training.sources import index_sources

from .conftest import TINY_VAE


datasets = pytest.importorskip("datasets", reason="needs datasets, of the extra `data`")
CAPTIONS = {"a": "a dog runs", "b": "", "c": "the sea"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_files, "FIRST_PAUSE", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def videos(tmp_path) -> Path:
    """Videos of 5, 3 and 4 frames, two of them with captions."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for (name, caption), length in zip(CAPTIONS.items(), (5, 3, 4), strict=True):
        with VideoWriter(folder / f"{name}.mp4", 10) as writer:
            writer.write(np.stack([np.full((16, 24, 3), 20 * index + 10, np.uint8) for index in range(length)]))
        if caption:
            (folder / f"{name}.txt").write_text(caption)
    return folder


def write_shard(path: Path, videos: Path, names: str = "abc") -> Path:
    """A WebDataset shard of the videos, with a JSON file for each."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            for file in sorted(videos.glob(f"{name}.*")):
                tar.add(file, f"./set/{file.name}")
            about = json.dumps({"author": name.upper(), "rating": 1}).encode()
            member = tarfile.TarInfo(f"./set/{name}.json")
            member.size = len(about)
            tar.addfile(member, io.BytesIO(about))
    return path


def write_dataset(folder: Path, videos: Path) -> Path:
    """A Hugging Face data set of the videos, as two Parquet files."""
    for number, names in enumerate(("ab", "c")):
        rows = {
            "clip": [(videos / f"{name}.mp4").read_bytes() for name in names],
            "caption": [CAPTIONS[name] for name in names],
            "author": [name.upper() for name in names],
        }
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"part-{number}.parquet")
    return folder


@pytest.fixture
def sources(videos, tmp_path) -> dict[str, list[str]]:
    """The same clips in every form that has columns."""
    lines = [{"path": f"videos/{name}.mp4", "caption": CAPTIONS[name], "author": name.upper()} for name in "abc"]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_shard(tmp_path / "part-0.tar", videos, "ab")
    write_shard(tmp_path / "part-1.tar", videos, "c")
    (tmp_path / "parquet").mkdir()
    rows = f"datasets://{write_dataset(tmp_path / 'parquet', videos)}?column=clip"
    datasets.load_dataset(str(tmp_path / "parquet"), split="train").save_to_disk(tmp_path / "saved")
    return {
        "list": [str(tmp_path / "list.jsonl")],
        "shards": [str(tmp_path / "part-{0..1}.tar")],
        "data set": [rows],
        "stream": [f"{rows}&streaming=true"],
        "saved": [f"datasets://{tmp_path / 'saved'}?column=clip"],
    }


def windows(folders: list[str], **changes: object) -> EveryWindow:
    return EveryWindow(DataConfig(folders, procedural_share=0.0, num_frames=4, sample_size=16, **changes))


def test_the_same_clips_give_the_same_latents_and_columns_in_every_form(sources, tmp_path):
    torch.manual_seed(0)
    vae = FrameSelectVAE(**TINY_VAE).eval()
    shards = {}
    for name, folders in sources.items():
        clips = windows(folders, columns=["author"])
        folder = encode_dataset(vae, clips, tmp_path / f"latents of {name}", len(clips), shard_size=2).folder
        shards[name] = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ""}
    for content in shards.values():
        assert content == shards["list"]
    latents = LatentDataset(tmp_path / "latents of stream")
    assert [latents.columns(index) for index in range(4)] == [{"author": name} for name in "AABC"]
    assert [latents.caption(index) for index in range(4)] == ["a dog runs", "a dog runs", "", "the sea"]


def test_an_index_of_any_source_needs_no_second_look_and_keeps_columns(sources, tmp_path):
    every = [name for names in sources.values() for name in names]
    index = index_sources(every, tmp_path / "all.jsonl", columns=["author"])
    again = index_sources([tmp_path / "all.jsonl"], columns=["author"])
    assert list(again.paths) == list(index.paths) and list(again.columns) == list(index.columns)
    assert again.fingerprint() == index.fingerprint() and len(again) == 3 * len(sources)
    clips = windows([str(tmp_path / "all.jsonl")], columns=["author"])
    expected = windows(sources["list"])
    assert all(
        torch.equal(clips[number]["sample"], expected[number % len(expected)]["sample"])
        for number in range(len(clips))
    )
    with pytest.raises(ValueError, match=r"all.jsonl: .*/0: has no column `rating`, only author."):
        index_sources([tmp_path / "all.jsonl"], columns=["rating"])


@pytest.mark.parametrize("form", ["list", "shards", "data set", "stream", "saved"])
def test_a_missing_column_is_named(sources, form):
    for arguments in ({"columns": ["licence"]}, {"caption_column": "licence"}):
        with pytest.raises(ValueError, match=r"(list|part-0|parquet|saved).*: has no column `licence`, only .*author"):
            index_sources(sources[form], **arguments)


def test_folders_have_no_columns_but_captions(videos):
    with pytest.raises(ValueError, match=r"a.mp4: has no column `author`, only caption."):
        index_sources([videos], columns=["author"])
    assert sorted(index_sources([videos]).captions) == sorted(CAPTIONS.values())


def test_another_column_may_hold_the_captions(sources):
    for folders in sources.values():
        assert list(index_sources(folders, caption_column="author").captions) == ["A", "B", "C"]


def test_columns_of_images_and_videos_are_clips(videos, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (20, 30), "red").save(picture, "PNG")
    features = datasets.Features({"picture": datasets.Image(), "film": datasets.Video()})
    film = (videos / "a.mp4").read_bytes()
    rows = {"picture": [{"bytes": picture.getvalue(), "path": None}], "film": [{"bytes": film, "path": None}]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "both")
    source = f"datasets://{tmp_path / 'both'}?column="
    found = [index_sources([source + name]).rows[0] for name in ("picture", "film")]
    assert [(row["is_image"], row["width"], row["num_frames"]) for row in found] == [(True, 20, 1), (False, 24, 5)]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("column=film", r"has no column `film`, only clip, caption, author."),
        ("column=author", r"the column `author` holds .*string.*, not videos, images or bytes."),
        ("split=train", r"the options of a data set are split, .*, of which `column` is needed."),
        ("column=clip&splitt=a", r"the options of a data set are split, .*, not splitt."),
        ("column=clip&split=test", r"cannot be opened as a data set \("),
    ],
)
def test_data_sets_that_do_not_fit_are_refused_with_what_there_is(sources, query, message):
    name = sources["data set"][0].partition("?")[0]
    with pytest.raises(ValueError, match=message):
        index_sources([f"{name}?{query}"])


def test_a_shard_that_is_cut_off_is_named(sources, tmp_path):
    shard = tmp_path / "part-0.tar"
    clips = windows([str(shard)], caption_column="author")
    start, size = re.search(r"#(\d+)\+(\d+)/set/b.mp4", clips.folder.index.paths[1]).groups()
    shard.write_bytes(shard.read_bytes()[: int(start) + int(size) // 2])
    with pytest.raises(ValueError, match=r"part-0.tar: is no whole tar file \(unexpected end of data\)."):
        index_sources([shard])
    assert "part-0.tar/set/b.mp4: is cut off with its shard." in clips[2]["error"]
    shard.write_text("no tar at all")
    with pytest.raises(ValueError, match="part-0.tar: is no whole tar file"):
        index_sources([shard])


def test_a_damaged_clip_of_a_shard_is_named(videos, tmp_path):
    (videos / "b.mp4").write_bytes(b"no video")
    index = index_sources([write_shard(tmp_path / "bad.tar", videos)])
    assert list(index.errors) == [1] and "bad.tar/set/b.mp4" in index.errors[1]


@pytest.fixture
def server(tmp_path):
    """Serves the folder; `stop` closes its socket."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield http
        http.shutdown()
        thread.join()


def test_shards_behind_urls_are_fetched_once(sources, server, cache):
    url = f"http://127.0.0.1:{server.server_port}/part-{{0..1}}.tar"
    index = index_sources([url], columns=["author"])
    assert index.fingerprint() == index_sources(sources["list"], columns=["author"]).fingerprint()
    clips = windows([url], columns=["author"])
    server.shutdown()
    server.server_close()
    expected = windows(sources["list"])
    assert all(torch.equal(clips[number]["sample"], expected[number]["sample"]) for number in range(len(expected)))


def test_the_cache_keeps_to_its_size(sources, server, cache, monkeypatch):
    monkeypatch.setenv("WDS_CACHE_SIZE", "1000")
    clips = windows([f"http://127.0.0.1:{server.server_port}/part-{{0..1}}.tar"])
    assert len(list(cache.glob("*.tar"))) == 1
    assert "error" not in clips[0] and "error" not in clips[3]


def test_a_url_that_stops_answering_is_tried_again_and_then_named(tmp_path, monkeypatch):
    attempts = []
    # It accepts, promises a thousand bytes, sends three and hangs up.
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    attempts.append(connection.recv(4096))
                    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\nabc")

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/clips.tar?signature=secret"
        with pytest.raises(ValueError, match=r"clips.tar: does not answer after 4 attempts \(.*\)") as caught:
            index_sources([url.replace("?signature=secret", "")])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(attempts) == 4 and "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["pipe://echo.tar", "nothing://host/a.tar"])
def test_urls_of_other_kinds_are_refused(url):
    with pytest.raises(ValueError, match="URLs of shards are of .*hf.*, not (pipe|nothing)."):
        index_sources([url])
