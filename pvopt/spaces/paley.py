"""Hadamard matrices by Paley's two constructions, arranged symmetrically."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["has_paley", "paley"]


def _prime_power(number: int) -> tuple[int, int] | None:
    """Return prime and exponent of a prime power, else None."""
    for prime in range(2, number + 1):
        if prime * prime > number:
            return number, 1
        if number % prime == 0:
            exponent = 0
            while number % prime == 0:
                number, exponent = number // prime, exponent + 1
            return (prime, exponent) if number == 1 else None
    return None


def _field(order: int) -> tuple[int, int, int] | None:
    """Return the number of the construction, and prime and exponent of its field, or None."""
    first = _prime_power(order - 1) if order % 4 == 0 else None
    if first is not None:
        return 1, *first
    second = _prime_power(order // 2 - 1) if order % 8 == 4 else None
    return None if second is None else (2, *second)


def has_paley(order: int) -> bool:
    """Tell whether one of Paley's constructions gives a Hadamard matrix of an order.

    Args:
        order: at least 1.

    Example:
        >>> from pvopt.spaces.paley import has_paley
        >>> [n for n in range(1, 101) if has_paley(n)][-8:]
        [52, 60, 68, 72, 76, 80, 84, 100]
    """
    return _field(order) is not None


def _powers(prime: int, exponent: int) -> list[tuple[int, ...]]:
    """Return the powers 1, x, x^2 ... of a generator of GF(prime**exponent), as coefficients."""
    size = prime**exponent
    one: tuple[int, ...] = (1,) + (0,) * (exponent - 1)
    # Modulo x^k - c(x), for the first c under which x generates everything but 0.
    for c in itertools.product(range(prime), repeat=exponent):
        powers: list[tuple[int, ...]] = [one]
        for _ in range(size - 1):
            *low, top = powers[-1]
            shifted = zip((0, *low), c, strict=True)
            powers.append(tuple((a + top * b) % prime for a, b in shifted))
            if powers[-1] == one:
                break
        if len(powers) == size and powers[-1] == one:
            return powers[:-1]
    raise ValueError(f"no field of {prime}^{exponent} elements")


def _character(prime: int, exponent: int) -> NDArray[Any]:
    """Return the quadratic character of GF(prime**exponent): 1 for squares, -1, and 0 for 0.

    An element is the number whose digits to the base ``prime`` are its coefficients.
    """
    powers = np.array(_powers(prime, exponent))  # even ones are squares
    character = np.zeros(prime**exponent)
    character[powers @ prime ** np.arange(exponent)] = 1 - 2 * (np.arange(len(powers)) % 2)
    return character


def paley(order: int) -> NDArray[Any]:
    r"""Return a symmetric Hadamard matrix of an order, entries +1 and -1.

    With the quadratic character :math:`\chi` of a field of ``q`` elements, for
    :math:`q \equiv 3 \pmod 4` and :math:`q \equiv 1 \pmod 4`:

    .. math:: H_{q+1} = \begin{pmatrix} 1 & 1'\\ 1 & \chi(i + j) - [i + j = 0]\end{pmatrix},
        \qquad H_{2q+2} = \begin{pmatrix} 0 & 1'\\ 1 & \chi(i - j)\end{pmatrix} \otimes
        \begin{pmatrix} 1 & 1\\ 1 & -1\end{pmatrix} + I \otimes
        \begin{pmatrix} 1 & -1\\ -1 & -1\end{pmatrix}

    Args:
        order: one for which :func:`has_paley` holds.

    Returns:
        ``[order, order]`` float64.

    Raises:
        ValueError: for another order.

    Example:
        >>> import numpy as np
        >>> from pvopt.spaces.paley import paley
        >>> bool((paley(28) @ paley(28) == 28 * np.eye(28)).all())  # a field of 27 elements
        True

    References:
        Paley, "On Orthogonal Matrices" (1933), lemmas 2 and 4.
    """
    field = _field(order)
    if field is None:
        raise ValueError(f"order must be one of Paley's, got {order}")
    kind, prime, exponent = field
    character = _character(prime, exponent)
    places = prime ** np.arange(exponent)
    digits = np.arange(len(character))[:, None] // places % prime  # [q, exponent]
    other = digits if kind == 1 else -digits
    combined = (digits[:, None] + other) % prime @ places  # [q, q], i + j or i - j
    core = character[combined]
    if kind == 1:
        core = core - (combined == 0)
    bordered = np.pad(core, ((1, 0), (1, 0)), constant_values=1.0)
    if kind == 1:
        return bordered
    bordered[0, 0] = 0.0
    identity = np.eye(len(bordered))
    return np.kron(bordered, [[1, 1], [1, -1]]) + np.kron(identity, [[1, -1], [-1, -1]])
