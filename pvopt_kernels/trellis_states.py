"""States of a trellis from the symbols that enter it."""

from __future__ import annotations

from torch import Tensor

from .checks import check_codes, check_integers, check_shape, check_tensors

__all__ = ["check_trellis", "trellis_states"]


def check_trellis(symbol_bits: int, state_bits: int) -> None:
    """Refuse sizes of a trellis that no operation takes.

    Raises:
        ValueError: if a number is out of range.
    """
    if not 1 <= symbol_bits <= 8:
        raise ValueError(f"symbol_bits must be in 1..8, got {symbol_bits}")
    if not 2 * symbol_bits <= state_bits <= 20:
        raise ValueError(
            f"state_bits must be in {2 * symbol_bits}..20 for symbols of {symbol_bits} bits, "
            f"got {state_bits}"
        )


def trellis_states(symbols: Tensor, *, symbol_bits: int, state_bits: int) -> Tensor:
    r"""Return the states that a circular sequence of symbols goes through.

    .. math:: s_t = \Big(\sum_{j \ge 0} 2^{Bj}\, x_{t-j}\Big) \bmod 2^L

    with places counted modulo the length: the sequence bites its tail.

    Args:
        symbols: ``[n, steps]`` integers of ``symbol_bits`` bits.
        symbol_bits: ``B``, 1 to 8.
        state_bits: ``L``, ``2 B`` to 20.

    Returns:
        ``[n, steps]`` int32; whatever the symbols are, states are less than ``2**state_bits``.

    Raises:
        TypeError: if symbols or sizes are not integers.
        ValueError: if a size is out of range.

    Example:
        >>> import torch
        >>> from pvopt_kernels import trellis_states
        >>> trellis_states(torch.tensor([[1, 0, 1, 1]]), symbol_bits=1, state_bits=3)
        tensor([[7, 6, 5, 3]], dtype=torch.int32)

    References:
        QTIP (arXiv 2406.11235), section 2.2.
    """
    check_tensors(symbols=symbols)
    check_integers(symbol_bits=symbol_bits, state_bits=state_bits)
    check_codes(symbols=symbols)
    check_shape("symbols", symbols, "n", "steps")
    check_trellis(symbol_bits, state_bits)
    wide = symbols.int() & ((1 << symbol_bits) - 1)
    states = wide.clone()
    for back in range(1, -(-state_bits // symbol_bits)):
        states |= wide.roll(back, 1) << (symbol_bits * back)
    return states & ((1 << state_bits) - 1)
