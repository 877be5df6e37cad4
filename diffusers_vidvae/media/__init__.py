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

from .buckets import (
    SIZE_BUCKETS,
    SizeBucket,
    iter_preprocessed_video,
    nearest_bucket,
    preprocess_image,
    preprocess_video,
)
from .contact_sheet import contact_sheet
from .errors import MediaError, MediaWarning
from .frames import Frame, FrameBatch, VideoInfo
from .images import load_image, save_image
from .loading import LoadedMedia, load_media, media_kind
from .reader import VideoReader, read_video
from .resample import check_min_fps, resample_frames
from .transforms import crop_to, pad_to_multiple, resize, to_frames, to_pil, to_pixels
from .writer import VideoWriter


__all__ = [
    "SIZE_BUCKETS",
    "Frame",
    "FrameBatch",
    "LoadedMedia",
    "MediaError",
    "MediaWarning",
    "SizeBucket",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "check_min_fps",
    "contact_sheet",
    "crop_to",
    "iter_preprocessed_video",
    "load_image",
    "load_media",
    "media_kind",
    "nearest_bucket",
    "pad_to_multiple",
    "preprocess_image",
    "preprocess_video",
    "read_video",
    "resample_frames",
    "resize",
    "save_image",
    "to_frames",
    "to_pil",
    "to_pixels",
]
