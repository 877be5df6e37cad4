r"""Reading and writing video and images.

Frames in NumPy are `(T, H, W, 3)` uint8 RGB, upright and with times; pixels for models are `(B, C, T, H, W)` tensors
in [-1, 1]. Files are recognised by their content. Errors are `MediaError`, a `ValueError` that names the file; what
could be read only in part is said in a `MediaWarning`.

Example:

    A clip, piece by piece, with its sound carried over:

    >>> from diffusers_vidvae.media import VideoReader, VideoWriter, to_frames, to_pixels
    >>> with VideoReader("in.mp4") as reader, VideoWriter("out.mp4", reader.info.fps, audio_from="in.mp4") as writer:
    ...     for chunk in reader.iter_chunks(32):
    ...         pixels = to_pixels(chunk)  # (1, 3, T, H, W), float32 in [-1, 1]
    ...         writer.write(to_frames(pixels)[0])

    Two seconds of it, at 24 frames per second, and one picture:

    >>> batch, info = read_video("in.mp4", fps=24, start_seconds=1.0, stop_seconds=3.0)
    >>> contact_sheet(batch.data, columns=8).save("sheet.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .buckets import SIZE_BUCKETS as SIZE_BUCKETS
    from .buckets import SizeBucket as SizeBucket
    from .buckets import iter_preprocessed_video as iter_preprocessed_video
    from .buckets import nearest_bucket as nearest_bucket
    from .buckets import preprocess_image as preprocess_image
    from .buckets import preprocess_video as preprocess_video
    from .clip import Clip as Clip
    from .clip import ClipFrame as ClipFrame
    from .clip import ClipPiece as ClipPiece
    from .clips import open_clips as open_clips
    from .clips import open_images as open_images
    from .clips import to_pixels as to_pixels
    from .errors import MediaError as MediaError
    from .errors import MediaWarning as MediaWarning
    from .frames import Frame as Frame
    from .frames import FrameBatch as FrameBatch
    from .frames import VideoInfo as VideoInfo
    from .images import load_image as load_image
    from .images import save_image as save_image
    from .loading import LoadedMedia as LoadedMedia
    from .loading import load_media as load_media
    from .loading import media_kind as media_kind
    from .reader import VideoReader as VideoReader
    from .reader import read_video as read_video
    from .resample import check_min_fps as check_min_fps
    from .resample import resample_frames as resample_frames
    from .sheets import clip_sheet as clip_sheet
    from .sheets import contact_sheet as contact_sheet
    from .transforms import crop_to as crop_to
    from .transforms import pad_to_multiple as pad_to_multiple
    from .transforms import resize as resize
    from .transforms import to_frames as to_frames
    from .transforms import to_pil as to_pil
    from .writer import VideoWriter as VideoWriter

_EXPORTS = {
    "Clip": "clip",
    "ClipFrame": "clip",
    "ClipPiece": "clip",
    "Frame": "frames",
    "FrameBatch": "frames",
    "LoadedMedia": "loading",
    "MediaError": "errors",
    "MediaWarning": "errors",
    "SIZE_BUCKETS": "buckets",
    "SizeBucket": "buckets",
    "VideoInfo": "frames",
    "VideoReader": "reader",
    "VideoWriter": "writer",
    "check_min_fps": "resample",
    "clip_sheet": "sheets",
    "contact_sheet": "sheets",
    "crop_to": "transforms",
    "iter_preprocessed_video": "buckets",
    "load_image": "images",
    "load_media": "loading",
    "media_kind": "loading",
    "nearest_bucket": "buckets",
    "open_clips": "clips",
    "open_images": "clips",
    "pad_to_multiple": "transforms",
    "preprocess_image": "buckets",
    "preprocess_video": "buckets",
    "read_video": "reader",
    "resample_frames": "resample",
    "resize": "transforms",
    "save_image": "images",
    "to_frames": "transforms",
    "to_pil": "transforms",
    "to_pixels": "clips",
}

__all__ = list(_EXPORTS)


# PyAV comes with the parts that read and write; converting pixels does without it.
def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
