r"""Video codecs on the same frames, brought to as many bytes as a model took: x264, x265, SVT-AV1 and VP9.

All are in PyAV, which needs no binary. Bytes are those of the whole file, container and all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray


if TYPE_CHECKING:
    from av import VideoStream


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg at a usual speed.

    Args:
        encoder: FFmpeg's name of it.
        label: What people call it.
        qualities: Its range of constant quality (CRF), from the best.
        options: Further options.
        least_side: Shortest side of frames it takes.
    """

    encoder: str
    label: str
    qualities: tuple[int, int]
    options: tuple[tuple[str, str], ...]
    least_side: int = 16


CODECS = {
    "x264": Codec("libx264", "H.264 (x264 medium)", (0, 51), (("preset", "medium"),)),
    "x265": Codec(
        "libx265", "H.265 (x265 medium)", (0, 51), (("preset", "medium"), ("x265-params", "log-level=none"))
    ),
    "svtav1": Codec("libsvtav1", "AV1 (SVT-AV1 preset 8)", (1, 63), (("preset", "8"),), least_side=64),
    "vp9": Codec("libvpx-vp9", "VP9 (libvpx cpu-used 4)", (0, 63), (("b", "0"), ("cpu-used", "4"), ("row-mt", "1"))),
}


class EncodedClip(NamedTuple):
    """A clip as a codec left it: size of its file, frames `(T, H, W, 3)` of uint8, and the quality asked for."""

    num_bytes: int
    frames: NDArray[np.uint8]
    quality: int


class ClipCodec:
    """One codec on one clip; every quality is encoded once.

    Args:
        name: One of `CODECS`.
        frames: uint8 `(T, H, W, 3)`. Odd sides are padded by one row or column, which is cut off again.
        fps: Frame rate.

    Raises:
        ValueError: PyAV lacks the encoder, or frames are too small for it.
    """

    def __init__(self, name: str, frames: NDArray[np.uint8], fps: Fraction) -> None:
        import av

        self.codec = CODECS[name]
        self.frames, self.fps = frames, fps
        self._encoded: dict[int, EncodedClip] = {}
        try:
            av.codec.Codec(self.codec.encoder, "w")
        except ValueError as error:
            raise ValueError(f"This PyAV has no encoder {self.codec.encoder}.") from error
        height, width = frames.shape[1:3]
        if min(height, width) < self.codec.least_side:
            raise ValueError(
                f"{self.codec.encoder} takes frames of {self.codec.least_side} pixels a side at least, got"
                f" {width}x{height}."
            )

    def at_most(self, num_bytes: int) -> EncodedClip:
        """The best quality whose file has at most so many bytes; the smallest file if none has."""
        best, worst = self.codec.qualities
        while best < worst:
            middle = (best + worst) // 2
            if self.encode(middle).num_bytes <= num_bytes:
                worst = middle
            else:
                best = middle + 1
        return self.encode(best)

    def encode(self, quality: int) -> EncodedClip:
        if quality not in self._encoded:
            content = self._write(quality)
            self._encoded[quality] = EncodedClip(len(content), self._read(content), quality)
        return self._encoded[quality]

    def _write(self, quality: int) -> bytes:
        import av

        # Read by SVT-AV1 alone, which otherwise tells its settings on stderr for every clip.
        os.environ.setdefault("SVT_LOG", "1")
        height, width = self.frames.shape[1:3]
        content = BytesIO()
        with av.open(content, "w", format="mp4") as container:
            stream = cast("VideoStream", container.add_stream(self.codec.encoder, rate=self.fps))
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            stream.options = {**dict(self.codec.options), "crf": str(quality)}
            for frame in self.frames:
                padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
            container.mux(stream.encode(None))
        return content.getvalue()

    def _read(self, content: bytes) -> NDArray[np.uint8]:
        import av

        height, width = self.frames.shape[1:3]
        with av.open(BytesIO(content), "r") as container:
            frames = [frame.to_ndarray(format="rgb24")[:height, :width] for frame in container.decode(video=0)]
        return np.stack(frames)
