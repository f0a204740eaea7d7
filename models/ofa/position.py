"""Where a token or patch is: index tables of relative position, and the attention bias made of positions.

OFA keeps positions out of the embeddings. They enter attention as an additive bias of two parts (Ke et al. 2021, TUPE):
an absolute one, `q(position) k(position)`, the same for all layers of a stack, and a relative one, a number for each
layer, head and bucket of distance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CODE_TAIL = 769  # official unify_transformer.py: so many positions behind the last code
CODE_TAIL_CELL = 1024  # and the grid cell that they all have
SINES = 0.3  # beside what is seen, whose size is near 1 where a patch holds something


def token_buckets(bucket_size: int, positions: int) -> Tensor:
    """Buckets of the distance between text positions: exact when near, logarithmic beyond.

    Args:
        bucket_size: n; distances up to n / 2 have buckets of their own.
        positions: number of positions, M.

    Returns:
        int64[M, M] in 0 .. 2n - 2; rows are queries, columns keys.
    """
    middle = bucket_size // 2
    relative = torch.arange(positions)[:, None] - torch.arange(positions)[None, :]
    far = relative.abs().where(relative.abs() >= middle, torch.tensor(middle - 1))
    # in float32, as the buffers of the released checkpoints
    logarithm = torch.log(far / middle) / math.log((positions - 1) / middle) * (middle - 1)
    bucket = torch.ceil(logarithm).long() + middle
    return torch.where(far <= middle, relative, bucket * relative.sign()) + bucket_size - 1


def image_buckets(side: int) -> Tensor:
    """Buckets of the offset between two cells of a square grid.

    Args:
        side: cells of a side, n.

    Returns:
        int64[n * n + 1, n * n + 1] in 0 .. `image_bucket_count(n)` - 1; rows are queries, columns keys. Index 0 is the
        position before the first cell (begin of a generated picture), index 1 + r * n + c the cell of row r, column c.
    """
    cell = torch.arange(side * side)
    row, column = cell // side, cell % side
    span = 2 * side - 1
    buckets = torch.zeros(side * side + 1, side * side + 1, dtype=torch.long)
    buckets[1:, 1:] = (row[:, None] - row + side - 1) * span + (column[:, None] - column + side - 1)
    count = image_bucket_count(side)
    buckets[0, :] = count - 3
    buckets[:, 0] = count - 2
    buckets[0, 0] = count - 1
    return buckets


def image_bucket_count(side: int) -> int:
    """Offsets in a grid of `side` cells a side, and three for the position before it."""
    return (2 * side - 1) ** 2 + 3


def grid_positions(height: int, width: int, side: int) -> Tensor:
    """Position ids of a `height` x `width` picture in the top left of a grid of `side` cells: int64[height * width]."""
    rows, columns = torch.arange(height), torch.arange(width)
    return (rows[:, None] * side + columns[None, :] + 1).flatten()


def grid_sines(side: int, width: int) -> Tensor:
    """A table of positions that begins as a grid: sines and cosines of row and column, waves of 4 to 4 * side cells.

    Args:
        side: cells of a side of the grid, n.
        width: D.

    Returns:
        float[n * n + 1, D], at most `SINES` each, zero for the position before the grid and in the last D % 4 columns.
    """
    waves = width // 4
    angles = torch.arange(side)[:, None] * math.pi / 2 * side ** -torch.linspace(0, 1, waves)  # [n, D / 4]
    line = torch.cat([angles.sin(), angles.cos()], 1)  # [n, D / 2]
    table = torch.zeros(side * side + 1, width)
    table[1:, : 2 * waves] = line.repeat_interleave(side, 0)
    table[1:, 2 * waves : 4 * waves] = line.repeat(side, 1)
    return SINES * table


def code_positions(code_image_size: int, side: int) -> Tensor:
    """Position ids of the decoder when it writes image codes, in the order of writing.

    Args:
        code_image_size: pixels of a side of the generated picture; a code is 8 pixels.
        side: cells of a side of the grid.

    Returns:
        int64[w * w + 770], w = code_image_size / 8: the position before the picture, its cells, the tail.
    """
    window = code_image_size // 8
    tail = torch.full((CODE_TAIL,), min(CODE_TAIL_CELL, side * side))
    return torch.cat([torch.zeros(1, dtype=torch.long), grid_positions(window, window, side), tail])


class RelativeTables(nn.ModuleList):
    """For each layer of a stack, a number per head and bucket: `relative(layer, buckets)`."""

    def __init__(self, layers: int, buckets: int, heads: int):
        super().__init__(nn.Embedding(buckets, heads) for _ in range(layers))

    def forward(self, layer: int, buckets: Tensor) -> Tensor:
        """The bias of a block of attention logits.

        Args:
            layer: its number.
            buckets: int64[T, S] or int64[B, T, S].

        Returns:
            float[1 or B, H, T, S].
        """
        *batch, rows, columns = buckets.shape
        # gathering columns of the small transposed table gives [H, ...] at once, without a copy of the large result
        bias = self[layer].weight.t().index_select(1, buckets.flatten())
        return bias.view(-1, *(batch or [1]), rows, columns).transpose(0, 1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """float[B, T, D] to float[B, H, T, D / H]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
