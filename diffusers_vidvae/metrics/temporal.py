"""What single frames do not show: flicker, jumps between chunks, seams between tiles.

Clips are `(batch, frames, channels, height, width)` in [0, 1], as `as_frames` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


# Two steps of 8 bits: what sensors and encoders add to a still picture.
STILL_THRESHOLD = 2 / 255


def temporal_difference_mse(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error of each frame's change since the frame before, `(batch, frames - 1)`.

    Its PSNR (`psnr_from_mse`, with the pixels' range of 1) is the temporal-difference PSNR: high when the
    reconstruction moves as the source does, whatever its still errors.
    """
    return (reference.diff(dim=1) - reconstruction.diff(dim=1)).square().flatten(2).mean(2)


def still_pixel_changes(reference: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """How the reconstruction changes where the source stands still.

    A pixel is still from one frame to the next when none of its channels changes by more than two steps of 8 bits.

    Returns:
        The reconstruction's squared change, averaged over all pixels with those that move as zeros, and the share of
        pixels that are still, both `(batch, frames - 1)`.
    """
    still = (reference.diff(dim=1).abs().amax(2) <= STILL_THRESHOLD + 1e-6).float()
    changes = reconstruction.diff(dim=1).square().mean(2)
    return (changes * still).flatten(2).mean(2), still.flatten(2).mean(2)


def flicker_level(still_change: Tensor, still_rate: Tensor) -> Tensor:
    """Deviation over time, in steps of 8 bits, of pixels that should stand still; arguments of `still_pixel_changes`.

    Independent noise of deviation s changes by s * sqrt(2) from one frame to the next.
    """
    return 255 * (still_change / still_rate / 2).sqrt()


def boundary_ratio(difference_mse: Tensor, boundaries: Sequence[int]) -> Tensor:
    """Error of the changes into the frames `boundaries`, relative to that of all other changes, `(batch,)`.

    1 means that the joints between chunks cannot be told from other frames.

    Args:
        difference_mse: `temporal_difference_mse` of the clip, `(batch, frames - 1)`.
        boundaries: Indices of the first frames of the chunks after the first one.

    Raises:
        ValueError: A boundary is outside the clip, or no frame or every frame is one.
    """
    num_frames = difference_mse.shape[1] + 1
    at_boundary = _marks(boundaries, num_frames, "frame")[1:].to(difference_mse.device)
    error = difference_mse.sqrt()
    return error[:, at_boundary].mean(1) / error[:, ~at_boundary].mean(1).clamp(min=1e-12)


def seam_ratio(row_steps: Tensor, column_steps: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """Steps between pixels across the borders of tiles, relative to those elsewhere, `(batch,)`.

    1 means that the tiles cannot be seen. A picture may itself have edges at the borders; compare with the ratio of
    the reference.

    Args:
        row_steps: Sums of absolute differences of each row with the row above, `(batch, height - 1)`.
        column_steps: The same of each column with the column on its left, `(batch, width - 1)`.
        rows: First rows of tiles, without 0.
        columns: First columns of tiles, without 0.

    Raises:
        ValueError: A border is outside the picture, or there is none, or nothing else.
    """
    height, width = row_steps.shape[1] + 1, column_steps.shape[1] + 1
    if not len(rows) and not len(columns):
        raise ValueError("A seam ratio needs at least one row or column where tiles meet.")
    at_border = [
        _marks(rows, height, "row", needed=False)[1:].to(row_steps.device),
        _marks(columns, width, "column", needed=False)[1:].to(row_steps.device),
    ]
    # Sums over a whole row or column become means over pixels.
    steps = torch.cat([row_steps / width, column_steps / height], dim=1)
    border = torch.cat(at_border)
    return steps[:, border].mean(1) / steps[:, ~border].mean(1).clamp(min=1e-12)


def pixel_steps(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of absolute steps between neighbouring rows `(batch, height - 1)` and columns `(batch, width - 1)`.

    Summed over frames and the other direction, averaged over channels.
    """
    rows = frames.diff(dim=-2).abs().mean(2).sum(dim=(1, 3))
    columns = frames.diff(dim=-1).abs().mean(2).sum(dim=(1, 2))
    return rows, columns


def _marks(indices: Sequence[int], size: int, what: str, needed: bool = True) -> Tensor:
    """bool `(size,)`, True at the indices."""
    marks = torch.zeros(size, dtype=torch.bool)
    for index in indices:
        if not 1 <= index < size:
            raise ValueError(f"Border at {what} {index}, expected 1 to {size - 1}.")
        marks[index] = True
    if needed and (not marks.any() or marks[1:].all()):
        raise ValueError(f"{int(marks.sum())} of {size} {what}s are borders; some must be and some must not.")
    return marks
