from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from media_clips import photo_clip
from numpy.typing import NDArray

from diffusers_vidvae.media import VideoWriter


@pytest.fixture(scope="session")
def clip() -> NDArray[np.uint8]:
    return photo_clip()


@pytest.fixture(scope="session")
def clip_file(clip, tmp_path_factory) -> Path:
    """The clip as a lossless file at 24 frames per second."""
    path = tmp_path_factory.mktemp("media") / "clip.mkv"
    with VideoWriter(path, 24, lossless=True) as writer:
        writer.write(clip)
    return path
