"""Latents of a group of windows to bytes and back: axes, one step for all of them, and the entropy coder.

Every group stands for itself, so that a file can be entered at any of them; within a group, every axis is predicted
from the last kept frame that showed it.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self._frames = FrameEncoder(shape, basis.scales(step), basis.cycle)
        size = (basis.cycle.num_axes, *shape[1:])
        self._last = np.full(size, np.nan)
        self._errors = np.zeros((basis.shaping.shape[1], *size))
        self._last_shown = np.zeros(size[0], dtype=np.int64)
        self.squared_error = 0.0

    def encode(self, latents: np.ndarray, frames: Sequence[int]) -> bytes:
        """Bytes that the latents of a window complete.

        Args:
            latents: `(channels, kept, height, width)`.
            frames: Indices of the kept frames in the clip.

        Raises:
            FsvError: A value is not finite, or too large for the step.
        """
        if not np.isfinite(latents).all():
            raise FsvError(f"latents: {int((~np.isfinite(latents)).sum())} values are not finite.")
        # Decoders may see every window alone.
        self._errors[...] = 0
        data = []
        for frame, values in zip(frames, latents.transpose(1, 0, 2, 3), strict=True):
            codes = self._quantize(self.basis.to_axes(values, frame) / self.step, frame)
            data.append(self._frames.encode_frame(codes, frame))
        return b"".join(data)

    def _quantize(self, values: np.ndarray, frame: int) -> np.ndarray:
        """int32 codes of values `(channels, height, width)` in steps."""
        shown = self.basis.cycle.shown(frame)
        errors, last = self._errors[:, shown], self._last[shown]
        # Shaping was measured with all frames kept.
        errors[:, frame - self._last_shown[shown] != self.basis.cycle.periods[shown]] = 0
        wanted = values + np.einsum("ak,kahw->ahw", self.basis.shaping[shown], errors)
        codes = np.where(np.abs(wanted - last) < 0.5 + DEAD_ZONE, last, np.rint(wanted))
        if np.abs(codes).max() > MAX_CODE:
            raise FsvError(
                f"latents: {np.abs(codes).max():.0f} steps exceed {MAX_CODE}; a lower quality has larger steps."
            )
        error = codes - wanted
        self.squared_error += self.step**2 * float(self.basis.error_gains[shown] @ np.square(error).sum(axis=(1, 2)))
        if len(errors):
            self._errors[:, shown] = np.concatenate([error[None], errors[:-1]])
        self._last[shown], self._last_shown[shown] = codes, frame
        return codes.astype(np.int32)

    def finish(self) -> bytes:
        """The last bytes of the group."""
        return self._frames.finish()


class GroupDecoder:
    """Reads the kept frames of a group back; the arguments are those of the encoder, and what it made."""

    def __init__(
        self, shape: tuple[int, int, int], basis: LatentsBasis, step: float, data: bytes, num_frames: int
    ) -> None:
        self.basis, self.step = basis, step
        self._frames = FrameDecoder(shape, basis.scales(step), data, num_frames, basis.cycle)

    def decode_codes(self, frames: Sequence[int]) -> np.ndarray:
        """int32 `(channels, kept, height, width)` of the next frames, whose indices in the clip are given.

        They are the same on every machine.

        Raises:
            FsvError: The bytes are damaged.
        """
        return np.stack([self._frames.decode_frame(frame) for frame in frames], axis=1)

    def decode(self, frames: Sequence[int]) -> np.ndarray:
        """float32 latents `(channels, kept, height, width)` of the next frames."""
        values = self.decode_codes(frames).transpose(1, 0, 2, 3) * self.step
        latents = [self.basis.to_latents(value, frame) for frame, value in zip(frames, values, strict=True)]
        return np.stack(latents, axis=1).astype(np.float32)
