"""What is read at all: the kinds of files, and how much one of them may ask for.

Files come from strangers. Each kind that FFmpeg and Pillow know is a decoder's worth of code, and some are more than
media: playlists (HLS, DASH, concat, SDP) read other files and addresses, EPS runs a PostScript interpreter. So kinds
are on a list, of containers and images that hold all that is theirs.
"""

from __future__ import annotations

from typing import Protocol

from PIL import Image

from .errors import MediaError


# FFmpeg's names; "mov,mp4,..." go by any of theirs.
CONTAINER_FORMATS = (
    # Video, and what sound is carried over from.
    *("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "mxf", "nut"),
    *("ivf", "h264", "hevc", "vvc", "av1", "obu", "m4v", "vc1", "dirac", "dv", "yuv4mpegpipe", "mjpeg", "rm", "gxf"),
    *("wav", "w64", "mp3", "flac", "aac", "ac3", "eac3", "aiff", "caf"),
    # Animations and single images.
    *("gif", "apng", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "gif_pipe", "ppm_pipe"),
    *("pgm_pipe", "pbm_pipe", "pam_pipe", "qoi_pipe", "j2k_pipe", "exr_pipe", "dpx_pipe", "jpegxl_pipe"),
)

# Pillow's names.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "QOI", "ICO")

# How often a frame may be repeated where a clip is resampled: over an hour of a still picture at 24 frames a second.
MOST_REPEATS = 100_000


class _Picture(Protocol):
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


def check_frame_size(name: object, picture: _Picture) -> None:
    """Refuses frames of more than `PIL.Image.MAX_IMAGE_PIXELS` pixels, 89 million unless that is set otherwise.

    Raises:
        MediaError: The frame is larger.
    """
    largest = Image.MAX_IMAGE_PIXELS
    if largest is not None and picture.width * picture.height > largest:
        raise MediaError(
            f"{name}: frames of {picture.width}x{picture.height} have more than the {largest} pixels that are read;"
            " PIL.Image.MAX_IMAGE_PIXELS sets the limit."
        )
