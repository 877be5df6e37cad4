r"""Real media and broken files: those in `tests/data/media`, those made from them, and those beside the repository.

`tests/data/README.md` names the sources and licences.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image


TESTS = Path(__file__).resolve().parent
DATA = TESTS / "data" / "media"
OUTSIDE = TESTS.parents[1] / "shared" / "media"

PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg")


class MediaFolder:
    r"""The folders `clips`, `photos` and `bad` as if each was one place; a test that asks for an absent file skips."""

    def __init__(self, places: list[Path]) -> None:
        self.places = [place for place in places if place.is_dir()]

    def __truediv__(self, name: str) -> Path | MediaFolder:
        found = [place / name for place in self.places if (place / name).exists()]
        if not found:
            pytest.skip(f"needs {name}, too large or of unclear licence for the repository, in {OUTSIDE}")
        return MediaFolder(found) if found[0].is_dir() else found[0]

    def iterdir(self) -> Iterator[Path]:
        r"""Every file, of any place, once."""
        files = {path.name: path for place in reversed(self.places) for path in place.iterdir()}
        return iter(files.values())


def make_media(folder: Path) -> MediaFolder:
    r"""Writes what can be made of the repository's files into a folder, and returns all there is."""
    (folder / "bad").mkdir()
    (folder / "photos").mkdir()
    _make_broken_videos(folder / "bad")
    if (photos := _photos_of_scikit_image()) is not None:
        _make_photos(folder / "photos", photos)
        (folder / "bad" / "png_named.mp4").write_bytes((photos / "coffee.png").read_bytes())
        # The first 80 % of a photo.
        (folder / "bad" / "truncated_photo.jpg").write_bytes((photos / "rocket.jpg").read_bytes()[:90_000])
    return MediaFolder([DATA, folder, OUTSIDE])


def _make_broken_videos(folder: Path) -> None:
    video = (DATA / "clips" / "office_fast_pan_720p.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text_named.mp4").write_text("not a video\n")
    (folder / "mp4_named.png").write_bytes(video)
    (folder / "truncated_mdat_half.mp4").write_bytes(video[: len(video) // 2])
    (folder / "truncated_no_moov.mp4").write_bytes(video[video.index(b"mdat") - 4 :])


def _make_photos(folder: Path, photos: Path) -> None:
    for name in PHOTOS:
        (folder / name).write_bytes((photos / name).read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise
    turned = Image.open(photos / "chelsea.png").transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "chelsea_exif6.jpg", quality=90, exif=exif)


def _photos_of_scikit_image() -> Path | None:
    spec = find_spec("skimage")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "data"
