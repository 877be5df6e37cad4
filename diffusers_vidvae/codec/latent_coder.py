"""Latents of a group of windows to bytes and back: axes, one step for all of them, and the entropy coder.

Every group stands for itself, so that a file can be entered at any of them; within a group, frames are predicted from
the kept frame before.
"""

from __future__ import annotations

import numpy as np

from .entropy_coder import MAX_CODE, FrameDecoder, FrameEncoder
from .errors import FsvError
from .latents_basis import LatentsBasis


# A value stays that of the frame before while it is this much of a step beyond the middle between two codes. Noise of
# the encoder costs no bits so, and the decoder need not know.
DEAD_ZONE = 0.2


class GroupEncoder:
    """Codes the kept frames of a group, one window after the other.

    Args:
        shape: `(channels, height, width)` of a frame's latents.
        basis: Axes of the latents.
        step: Step of the quantiser.
    """

    def __init__(self, shape: tuple[int, int, int], basis: LatentsBasis, step: float) -> None:
        self.basis, self.step = basis, step
        self._frames = FrameEncoder(shape, basis.scales(step))
        self._last: np.ndarray | None = None
        self.squared_error = 0.0

    def encode(self, latents: np.ndarray) -> bytes:
        """Bytes that `(channels, kept, height, width)` complete.

        Raises:
            FsvError: A value is not finite, or too large for the step.
        """
        if not np.isfinite(latents).all():
            raise FsvError(f"latents: {int((~np.isfinite(latents)).sum())} values are not finite.")
        values = self.basis.to_axes(latents) / self.step
        data = []
        for frame in values.transpose(1, 0, 2, 3):
            codes = np.rint(frame)
            if self._last is not None:
                codes = np.where(np.abs(frame - self._last) < 0.5 + DEAD_ZONE, self._last, codes)
            if np.abs(codes).max() > MAX_CODE:
                raise FsvError(
                    f"latents: {np.abs(codes).max():.0f} steps exceed {MAX_CODE}; a lower quality has larger steps."
                )
            self.squared_error += float(np.square(codes - frame).sum()) * self.step**2
            self._last = codes
            data.append(self._frames.encode_frame(codes.astype(np.int32)))
        return b"".join(data)

    def finish(self) -> bytes:
        """The last bytes of the group."""
        return self._frames.finish()


class GroupDecoder:
    """Reads the kept frames of a group back; the arguments are those of the encoder, and what it made."""

    def __init__(
        self, shape: tuple[int, int, int], basis: LatentsBasis, step: float, data: bytes, num_frames: int
    ) -> None:
        self.basis, self.step = basis, step
        self._frames = FrameDecoder(shape, basis.scales(step), data, num_frames)

    def decode_codes(self, num_frames: int) -> np.ndarray:
        """int32 `(axes, num_frames, height, width)`, the next ones; the same on every machine.

        Raises:
            FsvError: The bytes are damaged.
        """
        return np.stack([self._frames.decode_frame() for _ in range(num_frames)], axis=1)

    def decode(self, num_frames: int) -> np.ndarray:
        """float32 latents `(channels, num_frames, height, width)`, the next ones."""
        return self.basis.to_latents(self.decode_codes(num_frames) * self.step).astype(np.float32)
