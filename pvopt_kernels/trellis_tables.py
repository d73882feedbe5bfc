"""The fixed codes of trellises: which weights the states of a trellis stand for."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from .checks import check_integers

__all__ = ["FIXED_CODES", "hybrid_index", "trellis_table"]

#: Codes that are formulas of the state, without a value to tune.
FIXED_CODES = ("3inst", "mcg", "mul1", "1mad")
_MOST_BITS = 24  # of a state: a table of 64 MiB


def _check_bits(name: str, bits: int, most: int) -> None:
    check_integers(**{name: bits})
    if not 1 <= bits <= most:
        raise ValueError(f"{name} must be in 1..{most}, got {bits}")


def trellis_table(code: str, state_bits: int) -> Tensor:
    r"""Return the weight that each state of a trellis stands for, by one of the fixed formulas.

    All arithmetic is modulo 2^32 on the state :math:`s`; what comes out looks Gaussian.

    ========= ==========================================================================
    ``3inst`` two halves, :math:`x = 89226354 s + 64248484`, of which some bits are kept:
              ``(x & 0x8fff8fff) ^ 0x3b603b60``; they are numbers of half precision, added
    ``mcg``   the same with :math:`x = \mathtt{0xCBAC1FED}\, s`
    ``mul1``  :math:`x = \mathtt{0x83DCD12D}\, s`; the sum of its four bytes, 510 in the mean, times
              887 / 2^17 (about 1 / 147.7), less about 3.45, rounded once to half precision
    ``1mad``  :math:`x = 34038481 s + 76625530`; (the sum of its bytes - 510) / 147.8005
    ========= ==========================================================================

    Args:
        code: one of ``3inst``, ``mcg``, ``mul1``, ``1mad``.
        state_bits: of a state, 1 to 24.

    Returns:
        ``[2**state_bits]`` float32.

    Raises:
        TypeError: if ``state_bits`` is not an integer.
        ValueError: if it is out of range, or the code is unknown.

    Example:
        >>> from pvopt_kernels import trellis_table
        >>> table = trellis_table("1mad", 16)
        >>> table.shape, round(float(table.std()), 2)
        (torch.Size([65536]), 1.0)

    References:
        QTIP (arXiv 2406.11235), section 3.1; ``mcg`` and ``mul1`` are those of ExLlamaV3.
    """
    _check_bits("state_bits", state_bits, _MOST_BITS)
    if code not in FIXED_CODES:
        raise ValueError(f"code must be one of {', '.join(FIXED_CODES)}, got {code!r}")
    return _table(code, state_bits).clone()


@functools.cache
def _table(code: str, state_bits: int) -> Tensor:
    state = np.arange(1 << state_bits, dtype=np.uint64)
    factor, offset = {
        "3inst": (89226354, 64248484),
        "mcg": (0xCBAC1FED, 0),
        "mul1": (0x83DCD12D, 0),
        "1mad": (34038481, 76625530),
    }[code]
    x = ((factor * state + offset) & 0xFFFFFFFF).astype(np.uint32)
    if code in ("3inst", "mcg"):
        halves = ((x & np.uint32(0x8FFF8FFF)) ^ np.uint32(0x3B603B60)).view(np.float16)
        table = halves.reshape(-1, 2).astype(np.float32).sum(1).astype(np.float16)
    else:
        total = x.view(np.uint8).reshape(-1, 4).sum(1, dtype=np.int64)
        if code == "mul1":  # a fused product and sum of halves: exact in doubles, then rounded
            table = ((total + 1024) * (887 / 2**17) - 1329 / 2**7).astype(np.float16)
        else:
            table = (total - 510) / 147.8005
    return torch.from_numpy(table.astype(np.float32))


def hybrid_index(state_bits: int, table_bits: int) -> tuple[Tensor, Tensor]:
    r"""Return how the hybrid code reads a table of pairs of weights.

    With :math:`x = s^2 + s \bmod 2^{32}` a state stands for pair ``(x >> (15 - Q)) & (2**Q - 1)``
    of the table, its first weight negated where bit 15 of ``x`` is set.

    Args:
        state_bits: of a state, 1 to 24.
        table_bits: ``Q``, 1 to 15; the table has ``2**Q`` pairs.

    Returns:
        Numbers of pairs ``[2**state_bits]`` int64 and signs ``[2**state_bits, 2]`` float32.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if one is out of range.

    Example:
        >>> from pvopt_kernels import hybrid_index
        >>> pairs, signs = hybrid_index(16, 9)
        >>> int(pairs.max()), signs.shape
        (511, torch.Size([65536, 2]))

    References:
        QTIP (arXiv 2406.11235), section 3.1.2.
    """
    _check_bits("state_bits", state_bits, _MOST_BITS)
    _check_bits("table_bits", table_bits, 15)
    state = torch.arange(1 << state_bits)
    x = (state * state + state) & 0xFFFFFFFF
    signs = torch.ones(len(state), 2)
    signs[:, 0] -= 2 * (x >> 15 & 1)
    return (x >> (15 - table_bits)) & ((1 << table_bits) - 1), signs
