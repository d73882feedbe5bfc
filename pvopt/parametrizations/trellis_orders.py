"""The orders in which the circle of a trellis visits the weights of a tile."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["MMA", "MMA_SIZE", "ORDERS", "into_tile", "out_of_tile"]

#: The order of matrix units, and the rows and columns of the tiles that it is made for.
MMA, MMA_SIZE = "mma", 16
#: All orders by name.
ORDERS = ("rows", MMA)


@functools.cache
def _visits() -> tuple[Tensor, Tensor]:
    """Return which weight of a tile comes when in the order of matrix units, and the inverse.

    Weights are numbered row by row (rows are outputs). Each of 32 lanes of a processor has eight
    neighbours of the circle: two outputs by four inputs, as the lane multiplies by them.
    """
    lane = torch.arange(32)[:, None, None]
    outputs = lane // 4 + torch.tensor([0, 8])[:, None]
    inputs = 2 * (lane % 4) + torch.tensor([0, 1, 8, 9])
    visits = (outputs * MMA_SIZE + inputs).flatten()
    return visits, visits.argsort()


def out_of_tile(tiles: Tensor, order: str) -> Tensor:
    """Return weights of tiles ``[n, size]``, row by row, in the order of the circle."""
    return tiles if order != MMA else tiles.index_select(1, _visits()[0].to(tiles.device))


def into_tile(weights: Tensor, order: str) -> Tensor:
    """Return weights in the order of the circle as tiles, the inverse."""
    return weights if order != MMA else weights.index_select(1, _visits()[1].to(weights.device))
