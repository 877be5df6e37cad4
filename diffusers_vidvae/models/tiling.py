r"""Overlapping tiles of a map, and the blending of what becomes of them.

A map is of latents or tokens; what tiles become may be `scale` times as dense, as pixels are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from diffusers.utils import logging

from .pixel_range import to_levels


logger = logging.get_logger(__name__)

T = TypeVar("T")


class Tile(NamedTuple):
    """A rectangle of a map, in the given row and column of its grid."""

    row: int
    column: int
    rows: slice
    columns: slice

    def region(self, values: torch.Tensor, scale: int = 1) -> torch.Tensor:
        """The part of `(..., H, W)`, `scale` times as dense as the map, that the tile covers; cropped as they are."""
        rows, columns = (slice(axis.start * scale, axis.stop * scale) for axis in (self.rows, self.columns))
        return values[..., rows, columns]


class TileGrid:
    r"""Tiles of one size that cover a map, in reading order.

    Args:
        size: Height and width of the map.
        tile_size: Height and width of a tile; an axis of the map that is shorter is covered by one.
        overlap: Least overlap of neighbours in height and width, less than the tile. Tiles spread evenly.
    """

    def __init__(self, size: tuple[int, int], tile_size: tuple[int, int], overlap: tuple[int, int]):
        self.size = size
        self.row_spans, self.column_spans = map(tile_spans, size, tile_size, overlap)

    def __len__(self) -> int:
        return len(self.row_spans) * len(self.column_spans)

    def __iter__(self) -> Iterator[Tile]:
        for row, rows in enumerate(self.row_spans):
            for column, columns in enumerate(self.column_spans):
                yield Tile(row, column, slice(*rows), slice(*columns))

    def run(self, work: Callable[[list[Tile]], T], batch_size: int) -> Iterator[tuple[list[Tile], T]]:
        r"""Does some work for `batch_size` tiles at a time; where memory runs out, for one at a time from there on.

        Yields:
            The tiles of a batch, and what became of them.
        """
        tiles = list(self)
        while tiles:
            batch = tiles[:batch_size]
            try:
                result = work(batch)
            except (RuntimeError, MemoryError) as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                logger.warning(f"Memory ran out with {len(batch)} tiles at a time; going on with one at a time.")
                batch_size = 1
                continue
            yield batch, result
            tiles = tiles[len(batch) :]


class TileBlend:
    r"""Puts together what the tiles of a grid became, weighted where they overlap.

    Sums are float32, of the tiles' rows that are not finished yet; finished rows go to `output` in its dtype, pixels
    as levels if that is uint8. With one tile alone nothing is weighted.

    Args:
        grid: The tiles.
        output: Where the result goes, `(B, C, T, H, W)`, `scale` times as dense as the map or cropped from that.
        scale: Values per entry of the map, in height and in width.
        margin: Values next to an inner edge of a tile that are worse than those farther in, and get no weight where
            the overlap allows; weights rise smoothly from there. Without it they rise in a straight line.
        frames: Frames of `output` that the tiles hold. Not a view of it given as `output`, since gradients do not pass
            a view that is older than the last change.
    """

    def __init__(
        self,
        grid: TileGrid,
        output: torch.Tensor,
        scale: int = 1,
        margin: int | None = None,
        frames: slice = slice(None),
    ):
        self.whole_output = output
        self.frames = frames
        self.is_single = len(grid) == 1
        if self.is_single:
            return
        scaled = [[(start * scale, stop * scale) for start, stop in s] for s in (grid.row_spans, grid.column_spans)]
        self.row_spans, self.column_spans = scaled
        self.row_weights, self.column_weights = (
            [weight.to(output.device) for weight in blend_weights(spans, margin)] for spans in scaled
        )
        band_height = self.row_spans[0][1]
        shape = (*self.output.shape[:3], band_height, self.column_spans[-1][1])
        self.band = torch.zeros(shape, device=output.device)
        self.row = 0

    @property
    def output(self) -> torch.Tensor:
        return self.whole_output[:, :, self.frames]

    def add(self, tile: Tile, values: torch.Tensor) -> None:
        r"""Adds the values of the next tile in reading order, `(B, C, T, h, w)`; one frame stands for all frames."""
        values = values[:, :, : self.output.shape[2]]
        if self.is_single:
            _write(self.output, values)
            return
        if tile.row > self.row:
            self._finish_rows(self.row_spans[tile.row][0])
            self.row = tile.row
        weight = self.row_weights[tile.row][:, None] * self.column_weights[tile.column]
        self.band[..., slice(*self.column_spans[tile.column])] += values * weight
        if (tile.row, tile.column) == (len(self.row_spans) - 1, len(self.column_spans) - 1):
            self._finish_rows(self.row_spans[-1][1])

    def _finish_rows(self, stop: int) -> None:
        """Writes the band's rows up to `stop`, and moves the others to its top."""
        start = self.row_spans[self.row][0]
        _write(self.output[..., start:stop, :], self.band)
        rest = self.band[..., stop - start :, :]
        self.band = torch.cat([rest, torch.zeros_like(self.band[..., : stop - start, :])], dim=3)


def is_out_of_memory(error: BaseException) -> bool:
    r"""Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _write(output: torch.Tensor, values: torch.Tensor) -> None:
    """Fills an output with as much of some values as it holds."""
    values = values[..., : output.shape[3], : output.shape[4]]
    output.copy_(to_levels(values) if output.dtype == torch.uint8 else values)


def tile_spans(length: int, tile_length: int, overlap: int) -> list[tuple[int, int]]:
    """Evenly spread intervals of `tile_length` that cover `length` and overlap by at least `overlap`."""
    if length <= tile_length:
        return [(0, length)]
    steps = math.ceil((length - tile_length) / (tile_length - overlap))
    starts = [index * (length - tile_length) // steps for index in range(steps + 1)]
    return [(start, start + tile_length) for start in starts]


def blend_weights(spans: list[tuple[int, int]], margin: int | None = None) -> list[torch.Tensor]:
    r"""Weights of overlapping intervals, which sum to one everywhere, see `TileBlend`."""
    weights = torch.zeros(len(spans), spans[-1][1])
    for index, (start, stop) in enumerate(spans):
        positions = torch.arange(start, stop) + 0.5
        ramp = torch.ones(stop - start)
        if index > 0:
            ramp = ramp * _ramp(positions - start, spans[index - 1][1] - start, margin)
        if index + 1 < len(spans):
            ramp = ramp * _ramp(stop - positions, stop - spans[index + 1][0], margin)
        weights[index, start:stop] = ramp
    weights /= weights.sum(dim=0)
    return [weights[index, start:stop] for index, (start, stop) in enumerate(spans)]


def _ramp(distances: torch.Tensor, overlap: int, margin: int | None) -> torch.Tensor:
    """Weights from 0 to 1 over the overlap, at some distances from its outer end."""
    if margin is None:
        return ((distances + 0.5) / (overlap + 1)).clamp(max=1)
    ignored = margin if overlap >= 2 * margin else overlap / 4
    ramp = ((distances - ignored) / max(overlap - 2 * ignored, 1e-3)).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)
