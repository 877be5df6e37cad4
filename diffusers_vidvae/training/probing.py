"""What is found in one file of a data set by looking at it."""

from __future__ import annotations

import os
import warnings
from hashlib import blake2b
from typing import Any

from diffusers_vidvae.media import MediaError, MediaWarning, VideoReader, load_image, media_kind
from diffusers_vidvae.media.inputs import FileInput, MediaFile

from .located_media import locate


# Content at both ends of a file that its fingerprint covers, together with its size.
_FINGERPRINTED_BYTES = 65536


def probe_file(path: str) -> dict[str, Any]:
    """What is found in a file by its path in an index, or its `"error"`."""
    try:
        return probe_media(locate(path))
    except (MediaError, OSError) as error:
        return {"error": str(error)}


def probe_media(media: FileInput) -> dict[str, Any]:
    """What is found in a file, or its `"error"`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MediaWarning)
            return {"fingerprint": file_fingerprint(media), **_probe(media)}
    except (MediaError, OSError) as error:
        return {"error": str(error)}


def _probe(media: FileInput) -> dict[str, Any]:
    if media_kind(media) == "image":
        width, height = load_image(media).size
        return {
            "kind": "image",
            "width": width,
            "height": height,
            "num_frames": 1,
            "fps": 0.0,
            "seconds": 0.0,
            "start": 0.0,
        }
    with VideoReader(media) as reader:
        info = reader.info
        num_frames, seconds = info.num_frames, info.duration_seconds
        if num_frames is None or seconds is None:
            num_frames, seconds = _measured(reader)
    return {
        "kind": "video",
        "width": info.width,
        "height": info.height,
        "num_frames": num_frames,
        "fps": float(info.fps),
        "seconds": float(seconds),
        "start": info.start_seconds,
    }


def _measured(reader: VideoReader) -> tuple[int, float]:
    """Frames and seconds of a file that does not say them, by decoding it."""
    count, end = 0, reader.info.start_seconds
    for frame in reader:
        count, end = count + 1, frame.pts_seconds + frame.duration_seconds
    return count, end - reader.info.start_seconds


def file_fingerprint(media: FileInput) -> str:
    """16 hexadecimal digits of a file's size and of the content at its two ends."""
    with media.open() if isinstance(media, MediaFile) else open(media, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = blake2b(str(size).encode(), digest_size=8)
        for offset in (0, max(size - _FINGERPRINTED_BYTES, 0)):
            file.seek(offset)
            digest.update(file.read(_FINGERPRINTED_BYTES))
    return digest.hexdigest()
