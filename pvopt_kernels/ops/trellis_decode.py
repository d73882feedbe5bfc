"""Weights of circular sequences of symbols."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_codes,
    check_floating,
    check_integers,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.dispatch import implementation
from pvopt_kernels.trellis_states import check_trellis, trellis_states

from .sum_by_code import sum_by_code

__all__ = ["trellis_decode"]


def trellis_decode(symbols: Tensor, table: Tensor, *, symbol_bits: int) -> Tensor:
    r"""Return what circular sequences of symbols stand for; differentiable in the table.

    .. math:: w_t = \mathrm{table}[s_t], \qquad
        s_t = \Big(\sum_{j \ge 0} 2^{Bj}\, x_{t-j}\Big) \bmod 2^L

    Args:
        symbols: ``[n, steps]`` integers of ``symbol_bits`` bits; more bits are cut off.
        table: ``[2**L, V]``, floating.
        symbol_bits: ``B``, 1 to 8 and at most ``L / 2``.

    Returns:
        ``[n, steps * V]`` in the table's dtype.

    Raises:
        TypeError: if symbols are not integers, or the table is not floating.
        ValueError: if a shape does not fit.

    Example:
        >>> import torch
        >>> from pvopt_kernels import trellis_decode
        >>> table = torch.arange(8.0)[:, None]  # a state stands for its number
        >>> trellis_decode(torch.tensor([[1, 0, 1, 1]]), table, symbol_bits=1)
        tensor([[7., 6., 5., 3.]])

    References:
        QTIP (arXiv 2406.11235), section 2.2.
    """
    check_tensors(symbols=symbols, table=table)
    check_integers(symbol_bits=symbol_bits)
    check_codes(symbols=symbols)
    check_floating(table=table)
    check_shape("symbols", symbols, "n", "steps")
    check_shape("table", table, "states", "V")
    check_same_device(symbols=symbols, table=table)
    check_table(table, symbol_bits)
    return _op(symbols, table, symbol_bits)


def check_table(table: Tensor, symbol_bits: int) -> int:
    """Return the bits of a state.

    Raises:
        ValueError: if the table has no row for each state of a trellis.
    """
    state_bits = len(table).bit_length() - 1
    if len(table) != 1 << state_bits:
        raise ValueError(f"table must have a power of two of rows, got {len(table)}")
    check_trellis(symbol_bits, state_bits)
    return state_bits


@torch.library.custom_op("pvopt::trellis_decode", mutates_args=())
def _op(symbols: Tensor, table: Tensor, symbol_bits: int) -> Tensor:
    return implementation("trellis_decode", table)(symbols, table, symbol_bits=symbol_bits)


@_op.register_fake
def _fake(symbols: Tensor, table: Tensor, symbol_bits: int) -> Tensor:
    return table.new_empty(symbols.shape[0], symbols.shape[1] * table.shape[1])


def _save(ctx, inputs, output) -> None:
    symbols, table, ctx.symbol_bits = inputs
    ctx.states, ctx.values = len(table), table.shape[1]
    ctx.save_for_backward(symbols)


def _backward(ctx, gradient: Tensor):
    if not ctx.needs_input_grad[1]:
        return None, None, None
    (symbols,) = ctx.saved_tensors
    state_bits = ctx.states.bit_length() - 1
    states = trellis_states(symbols, symbol_bits=ctx.symbol_bits, state_bits=state_bits)
    sums = sum_by_code(gradient.reshape(-1, ctx.values), states.flatten().long(), ctx.states)
    return None, sums.to(gradient.dtype), None


_op.register_autograd(_backward, setup_context=_save)
