from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fsv_clips import make_header, make_window

from diffusers_vidvae.codec import CompressedVideo


@pytest.fixture
def make_video() -> Callable[..., CompressedVideo]:
    """A clip of 11 frames in windows of 8 and 3, frames 0, 3, 7 and 9 kept; odd latent shape."""

    def make(**changes) -> CompressedVideo:
        return CompressedVideo(make_header(**changes), [make_window(0, 8, [0, 3, 7]), make_window(8, 3, [1])])

    return make


@pytest.fixture
def fsv_file(make_video, tmp_path) -> Path:
    return make_video().save(tmp_path / "clip.fsv")
