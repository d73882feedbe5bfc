"""The nearest sequences of weights that a trellis can make."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_floating,
    check_integers,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.dispatch import implementation

from .trellis_decode import check_table

__all__ = ["trellis_search"]


def trellis_search(
    target: Tensor,
    table: Tensor,
    k: int = 1,
    *,
    symbol_bits: int,
    metric: Tensor | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    r"""Return the symbols whose weights come nearest to each target.

    .. math:: \min_x \sum_t \sum_v d_{tv} \big(w_{tv} - \mathrm{table}[s_t]_v\big)^2, \qquad
        s_t = (2^B s_{t-1} + x_t) \bmod 2^L

    Between two fixed nodes (the last ``L - B`` bits of a state) the Viterbi algorithm is exact.
    Without ``ends`` the sequence bites its tail: its last node is its first. The node comes from a
    search of the same sequence begun in its middle, with free ends, as in QTIP; the sequences
    through that node are then searched exactly.

    Args:
        target: ``[n, steps * V]``, floating; computed in at least float32.
        table: ``[2**L, V]``, what each state stands for, of the target's dtype.
        k: how many sequences, at least 1; the fixed ends of all are the same.
        symbol_bits: ``B``, 1 to 8 and at most ``L / 2``.
        metric: ``[n, steps * V]`` non-negative weights ``d`` of the target's dtype, or None for 1.
        ends: ``[n, 2]`` integers, the nodes before the first step and after the last one, in
            ``0 .. 2**(L - B) - 1``; None for sequences that bite their tails, which need at least
            ``L / B`` steps.

    Returns:
        ``[n, j, steps]`` int64 with ``j = min(k, number of sequences between the ends)``, best
        first. Between ends that no sequence joins, the symbols mean nothing.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: if shapes do not fit, or a number is out of range.

    Example:
        >>> import torch
        >>> from pvopt_kernels import trellis_search, trellis_states, trellis_table
        >>> table = trellis_table("1mad", 6)[:, None]
        >>> symbols = torch.tensor([[1, 3, 0, 2, 1, 0, 3, 1]])
        >>> weights = table[trellis_states(symbols, symbol_bits=2, state_bits=6)].flatten(1)
        >>> trellis_search(weights, table, symbol_bits=2).tolist()
        [[[1, 3, 0, 2, 1, 0, 3, 1]]]

    References:
        Viterbi, "Error Bounds for Convolutional Codes" (1967); QTIP (arXiv 2406.11235), sections
        2.2 and 3.3.
    """
    check_tensors(target=target, table=table)
    check_integers(k=k, symbol_bits=symbol_bits)
    check_floating(target=target, table=table, metric=metric)
    check_shape("target", target, "n", "weights")
    check_shape("metric", metric, *target.shape)
    check_shape("table", table, "states", "V")
    check_shape("ends", ends, len(target), 2)
    check_same_device(target=target, table=table, metric=metric, ends=ends)
    state_bits = check_table(table, symbol_bits)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    steps, rest = divmod(target.shape[1], table.shape[1])
    if rest or steps == 0:
        raise ValueError(
            f"target must have a positive multiple of {table.shape[1]} weights, one for each "
            f"column of the table, got {target.shape[1]}"
        )
    if ends is None and steps * symbol_bits < state_bits:
        raise ValueError(
            f"a sequence that bites its tail must have at least {state_bits} bits, got {steps} "
            f"steps of {symbol_bits}"
        )
    # Of the steps * B bits the last L - B are those of the node.
    most = 1 << min(62, max(0, steps * symbol_bits - (state_bits - symbol_bits)))
    return _op(target, table, min(k, most), symbol_bits, metric, ends)


@torch.library.custom_op("pvopt::trellis_search", mutates_args=())
def _op(
    target: Tensor,
    table: Tensor,
    k: int,
    symbol_bits: int,
    metric: Tensor | None,
    ends: Tensor | None,
) -> Tensor:
    search = implementation("trellis_search", target)
    return search(target, table, k, symbol_bits=symbol_bits, metric=metric, ends=ends)


@_op.register_fake
def _fake(
    target: Tensor,
    table: Tensor,
    k: int,
    symbol_bits: int,
    metric: Tensor | None,
    ends: Tensor | None,
) -> Tensor:
    steps = target.shape[1] // table.shape[1]
    return target.new_empty(target.shape[0], k, steps, dtype=torch.int64)
