"""The index tables, from their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from ofa_plugin.models.ofa.position import (
    code_positions,
    grid_positions,
    grid_sines,
    image_bucket_count,
    image_buckets,
    token_buckets,
)


@pytest.mark.parametrize(("bucket_size", "positions"), [(256, 1024), (8, 64), (64, 256)])
def test_text_buckets_are_exact_when_near_and_logarithmic_beyond(bucket_size: int, positions: int):
    table = token_buckets(bucket_size, positions)
    middle = bucket_size // 2
    assert table.min() == 0 and table.max() == 2 * bucket_size - 2
    for distance in (0, 1, middle, middle + 1, positions - 1):
        expected = distance
        if distance > middle:
            logarithm = math.log(distance / middle) / math.log((positions - 1) / middle)
            expected = math.ceil(logarithm * (middle - 1)) + middle
        assert table[distance, 0] == expected + bucket_size - 1
        assert table[0, distance] == -expected + bucket_size - 1


def test_image_buckets_number_the_offsets_of_a_grid():
    side = 5
    table = image_buckets(side)
    assert table[0, 0] == image_bucket_count(side) - 1
    assert set(table[0, 1:].tolist()) == {image_bucket_count(side) - 3}
    assert set(table[1:, 0].tolist()) == {image_bucket_count(side) - 2}
    query, key = 1 + 3 * side + 1, 1 + 0 * side + 4  # rows 3 and 0, columns 1 and 4
    assert table[query, key] == (3 - 0 + 4) * 9 + (1 - 4 + 4)
    assert table[1:, 1:].unique().numel() == 9 * 9


def test_patches_keep_their_cell_whatever_the_pictures_width():
    assert grid_positions(2, 3, 42).tolist() == [1, 2, 3, 43, 44, 45]


def test_code_positions_stay_inside_a_small_grid():
    positions = code_positions(128, 16)
    assert len(positions) == 16 * 16 + 770
    assert positions[:4].tolist() == [0, 1, 2, 3]
    assert positions.max() == 256


@pytest.mark.parametrize(("side", "width"), [(8, 16), (16, 128), (3, 10)])
def test_grid_sines_tell_row_and_column(side: int, width: int):
    table = grid_sines(side, width)
    assert table.shape == (side * side + 1, width) and table[0].eq(0).all() and table.abs().max() <= 0.3
    cells = table[1:].view(side, side, width)
    half = width // 4 * 2
    assert torch.equal(cells[..., :half], cells[:, :1, :half].expand(side, side, half))  # of the row alone
    assert torch.equal(cells[..., half : 2 * half], cells[:1, :, half : 2 * half].expand(side, side, half))
    apart = torch.pdist(table[1:]).min()
    assert apart > 0.02
    near, far = (cells[0, 0] - cells[0, 1]).norm(), (cells[0, 0] - cells[0, 2]).norm()
    assert near < far
