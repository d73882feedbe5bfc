"""A search of a trellis that lets a window of each tile change, and nothing around it."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels import trellis_decode, trellis_search, trellis_states

__all__ = ["search_windows"]


def search_windows(
    target: Tensor,
    metric: Tensor,
    symbols: Tensor,
    table: Tensor,
    *,
    symbol_bits: int,
    window: int,
) -> Tensor:
    r"""Return the best symbols in the window of each circle that is farthest from its target.

    The symbols before a window and those after it stay, so that the nodes at both ends are known
    and the search between them is exact. Weights behind the window that read its bits change with
    it and count.

    Args:
        target: ``[n, weights]``.
        metric: ``[n, weights]``, the weights of squared errors.
        symbols: ``[n, steps]`` present ones.
        table: ``[2**L, V]``.
        symbol_bits: of a symbol.
        window: symbols that may change.

    Returns:
        ``[n, steps]`` int64; of the whole circle if window and what reads its bits do not fit.
    """
    n, steps = symbols.shape
    values, state_bits = table.shape[1], len(table).bit_length() - 1
    behind = -(-state_bits // symbol_bits) - 1  # steps that read symbols of the window
    length = window + behind
    if length > steps:
        return trellis_search(target, table, symbol_bits=symbol_bits, metric=metric)[:, 0]
    gaps = (trellis_decode(symbols, table, symbol_bits=symbol_bits) - target).square_().mul_(metric)
    sums = gaps.view(n, steps, values).sum(2).cumsum(1)
    circle = torch.cat([sums.new_zeros(n, 1), sums, sums[:, :window] + sums[:, -1:]], 1)
    first = (circle[:, window : window + steps] - circle[:, :steps]).argmax(1, keepdim=True)
    places = (first + torch.arange(length, device=symbols.device)) % steps  # [n, length]
    states = trellis_states(symbols, symbol_bits=symbol_bits, state_bits=state_bits)
    nodes = states & ((len(table) >> symbol_bits) - 1)
    ends = nodes.gather(1, torch.cat([(first - 1) % steps, places[:, -1:]], 1))
    own = (places[..., None] * values + torch.arange(values, device=symbols.device)).flatten(1)
    found = trellis_search(
        target.gather(1, own),
        table,
        symbol_bits=symbol_bits,
        metric=metric.gather(1, own),
        ends=ends,
    )
    return symbols.scatter(1, places, found[:, 0])
