"""Writing version 1 of `.fsv` files, which is how raw latents are stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .container import encode_prologue, gaps_dtype, prologue_size, stored_tensors
from .errors import FsvError, naming_file
from .header import FsvHeader
from .quantization import quantize
from .window import LatentWindow
from .window_writer import WindowWriter


class FsvWriter(WindowWriter):
    """Writes a compressed video window by window, in constant memory.

    The file appears, complete and synced to disk, when the `with` block ends without an error. Until then it is a
    hidden temporary file beside its target; an error, Ctrl-C included, removes that and leaves the target as it was.

    ```python
    with FsvWriter("clip.fsv", header) as writer:
        for window in windows:
            writer.write_window(window)
    ```

    Args:
        path: The file to write.
        header: The clip's header; `num_frames=0` counts the frames of the windows.
        overwrite: Whether an existing file may be replaced.

    Attributes:
        header: The header, with the number of frames and the checksum once the block has ended.

    Raises:
        FsvError: The file exists or cannot be written, the disk is full, or a window contradicts the header.
    """

    def __init__(self, path: str | Path, header: FsvHeader, overwrite: bool = False) -> None:
        super().__init__(path, overwrite)
        self.header = header
        # Bytes rather than tensors: small tensors that stay alive between large ones that do not fragment the memory.
        self._scales, self._gaps = bytearray(), bytearray()
        self._window_frames: list[int] = []
        self._window_kept: list[int] = []

    @property
    def num_frames(self) -> int:
        """Frames covered by the windows so far."""
        return sum(self._window_frames)

    @property
    def num_kept(self) -> int:
        """Frames kept by the windows so far."""
        return sum(self._window_kept)

    def _begin(self) -> None:
        self._prologue_size = prologue_size(self.header)
        # The prologue names numbers known only at the end, so its place is kept free.
        self._file.seek(self._prologue_size)

    def write_window(self, window: LatentWindow) -> None:
        """Appends the next window of the clip.

        Raises:
            FsvError: The window does not begin where the last one ended, has more frames than the header allows or
                other latents than it says, its latents are not finite, or the disk is full.
        """
        with naming_file(self.name):
            check_window(self.header, window, self.num_frames)
            quantized = quantize(window.latents, self.header.quantization)
        self._write(_tensor_bytes(quantized.codes))
        if quantized.scales is not None:
            self._scales += _tensor_bytes(quantized.scales)
        self._gaps += _tensor_bytes(window.gaps.cpu().to(gaps_dtype(self.header)))
        self._window_frames.append(window.num_frames)
        self._window_kept.append(window.num_kept)

    def _finish(self) -> None:
        with naming_file(self.name):
            if self.num_frames != (self.header.num_frames or self.num_frames) or not self._window_frames:
                raise FsvError(
                    f"num_frames: {self.num_frames} frames were written of {self.header.num_frames or 'any'}."
                )
            header = replace(self.header, num_frames=self.num_frames, sha256="")
        tensors = stored_tensors(header, len(self._window_frames), self.num_kept)
        self._write(self._scales)
        self._write(self._gaps)
        for counts in (self._window_frames, self._window_kept):
            self._write(_tensor_bytes(torch.tensor(counts, dtype=torch.int32)))
        self._digest.update(encode_prologue(header, tensors, self._prologue_size))
        self.header = replace(header, sha256=self._digest.hexdigest())
        self._file.seek(0)
        self._file.write(encode_prologue(self.header, tensors, self._prologue_size))


def _tensor_bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def check_window(header: FsvHeader, window: LatentWindow, end: int) -> None:
    """Refuses a window that does not follow the `end` frames before it, or contradicts the header.

    Raises:
        FsvError: The message names the field.
    """
    if window.start != end:
        raise FsvError(f"start: the window begins at frame {window.start}, the one before it ends at {end}.")
    if window.num_frames > header.clip_num_frames:
        raise FsvError(f"window_frames: {window.num_frames} frames exceed clip_num_frames {header.clip_num_frames}.")
    if header.num_frames and end + window.num_frames > header.num_frames:
        raise FsvError(f"num_frames: the windows exceed the {header.num_frames} frames of the header.")
    channels, _, height, width = window.latents.shape
    if (channels, height, width) != header.latent_shape:
        raise FsvError(f"latents: {(channels, height, width)} a frame, the header says {header.latent_shape}.")
