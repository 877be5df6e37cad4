"""Promises of tiles: they cover a map, and what they cut out of it blends back to it."""

from __future__ import annotations

import pytest
import torch
from diffusers.utils import logging

from diffusers_vidvae.models.tiling import Tile, TileBlend, TileGrid, blend_weights, tile_spans


SPANS = [(33, 16, 4), (17, 16, 0), (64, 16, 15), (40, 16, 8), (16, 16, 4), (7, 16, 4)]


@pytest.mark.parametrize(("length", "tile", "overlap"), SPANS)
@pytest.mark.parametrize("margin", [None, 0, 2])
def test_spans_cover_and_their_weights_sum_to_one(length, tile, overlap, margin):
    spans = tile_spans(length, tile, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert {stop - start for start, stop in spans} == {min(length, tile)}
    assert all(left[1] - right[0] >= overlap for left, right in zip(spans[:-1], spans[1:], strict=True))
    total = torch.zeros(length)
    for (start, stop), weight in zip(spans, blend_weights(spans, margin), strict=True):
        total[start:stop] += weight
    torch.testing.assert_close(total, torch.ones(length))


def blend(grid: TileGrid, values: torch.Tensor, output: torch.Tensor, scale: int = 1) -> torch.Tensor:
    blended = TileBlend(grid, output, scale)
    for tile in grid:
        blended.add(tile, tile.region(values, scale))
    return output


@pytest.mark.parametrize("size", [(5, 5), (4, 13), (13, 4), (11, 17), (12, 6)])
@pytest.mark.parametrize("overlap", [(0, 0), (1, 2), (3, 4)])
def test_tiles_of_a_map_blend_to_the_map(size, overlap):
    grid = TileGrid(size, (4, 5), overlap)
    values = torch.randn(2, 3, 2, size[0] * 2, size[1] * 2)
    torch.testing.assert_close(blend(grid, values, torch.full_like(values, torch.nan), scale=2), values)
    cropped = torch.full_like(values[..., : size[0] * 2 - 1, : size[1] * 2 - 1], torch.nan)
    torch.testing.assert_close(blend(grid, values, cropped, scale=2), values[..., :-1, :-1])


def test_batches_hold_every_tile_once_in_reading_order():
    grid = TileGrid((9, 14), (4, 4), (1, 1))
    tiles = [tile for batch, _ in grid.run(len, 4) for tile in batch]
    assert tiles == list(grid) and len(tiles) == len(grid) == 15
    assert [(tile.row, tile.column) for tile in tiles] == sorted((tile.row, tile.column) for tile in tiles)


def test_one_frame_of_a_tile_stands_for_all():
    grid = TileGrid((8, 8), (5, 5), (2, 2))
    frame = torch.randn(1, 1, 1, 8, 8)
    torch.testing.assert_close(blend(grid, frame, torch.empty(1, 1, 3, 8, 8)), frame.expand(-1, -1, 3, -1, -1))


def test_half_precision_blends_in_float32():
    """Tiles that agree give back what they agree on, to the last bit of their dtype."""
    grid = TileGrid((64, 64), (9, 9), (7, 7))
    values = torch.full((1, 1, 1, 64, 64), 1.0078125, dtype=torch.bfloat16)
    assert torch.equal(blend(grid, values, torch.empty_like(values)), values)


def test_gradients_pass_through():
    grid = TileGrid((7, 9), (4, 4), (2, 2))
    values = torch.randn(1, 1, 1, 7, 9, requires_grad=True)
    blend(grid, values, torch.empty(1, 1, 1, 7, 9)).sum().backward()
    torch.testing.assert_close(values.grad, torch.ones_like(values))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_tiles_go_on_one_by_one_where_memory_runs_out(error, caplog):
    grid, done = TileGrid((8, 8), (4, 4), (1, 1)), []

    def work(tiles: list[Tile]) -> int:
        if len(tiles) > 1 and done:
            raise error
        done.extend(tiles)
        return len(tiles)

    logging.get_logger("diffusers").addHandler(caplog.handler)
    assert [count for _, count in grid.run(work, 4)] == [4] + [1] * (len(grid) - 4)
    logging.get_logger("diffusers").removeHandler(caplog.handler)
    assert done == list(grid)
    assert caplog.messages == ["Memory ran out with 4 tiles at a time; going on with one at a time."]


def test_other_errors_and_too_little_memory_for_one_tile_are_raised():
    grid = TileGrid((8, 8), (4, 4), (1, 1))
    for error, batch_size in ((RuntimeError("mat1 and mat2"), 4), (MemoryError("one tile"), 1)):
        with pytest.raises(type(error), match=str(error)):
            list(grid.run(lambda tiles, error=error: (_ for _ in ()).throw(error), batch_size))
