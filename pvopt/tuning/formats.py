"""Short names of parametrizations, as they are written on a command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from pvopt.parametrizations import (
    E8P,
    AdditiveCodebooks,
    Binary,
    Incoherent,
    Parametrization,
    QuantizedNonzeros,
    QuantizedScales,
    SharedValues,
    Sparse,
    SparseNM,
    Ternary,
    UniformGrid,
    VectorCodebook,
)
from pvopt.parametrizations.sparse_support import SparseSupport

__all__ = ["FORMATS", "format_name", "parse_format"]

_Build = Callable[..., Parametrization]


def _scaled(parametrization: Parametrization, scale_group: str | None) -> Parametrization:
    """Return a parametrization with scales per so many inputs."""
    if scale_group is None:
        return parametrization
    if not isinstance(parametrization, AdditiveCodebooks | VectorCodebook | E8P):
        raise ValueError(f"{format_name(parametrization)} has no scale groups")
    return replace(parametrization, scale_group=int(scale_group))


def _support(text: str) -> SparseSupport:
    """Return the sparse parametrization of a short name."""
    found = parse_format(text)
    if not isinstance(found, SparseSupport):
        raise TypeError(f"{text!r} is not sparse")
    return found


# What the user may write, what it looks like exactly, what is made of its numbers.
_GRAMMAR: tuple[tuple[str, str, _Build], ...] = (
    (
        "MxBgN",
        r"(\d+)x(\d+)g(\d+)",
        lambda m, b, n: AdditiveCodebooks(num_codebooks=int(m), bits=int(b), in_group=int(n)),
    ),
    (
        "MxBgOxN",
        r"(\d+)x(\d+)g(\d+)x(\d+)",
        lambda m, b, o, n: AdditiveCodebooks(
            num_codebooks=int(m), bits=int(b), in_group=int(n), out_group=int(o)
        ),
    ),
    ("vq:BgN", r"vq:?(\d+)g(\d+)", lambda b, n: VectorCodebook(bits=int(b), group_size=int(n))),
    (
        "grid:B[gN][s]",
        r"grid:?(\d+)(?:g(\d+))?(s?)",
        lambda b, n, s: UniformGrid(
            bits=int(b), group_size=None if n is None else int(n), symmetric=bool(s)
        ),
    ),
    (
        "binary[:gN]",
        r"binary(?::?g(\d+))?",
        lambda n: Binary(group_size=None if n is None else int(n)),
    ),
    (
        "ternary[:gN]",
        r"ternary(?::?g(\d+))?",
        lambda n: Ternary(group_size=None if n is None else int(n)),
    ),
    (
        "sparse:P%[:tensor]",
        r"sparse:?(\d+(?:\.\d+)?)%(?::(tensor))?",
        lambda percent, per: Sparse(density=float(f"{percent}e-2"), per=per or "row"),
    ),
    ("N:M", r"(\d+):(\d+)", lambda n, m: SparseNM(nonzeros=int(n), group_size=int(m))),
    (
        "FORM+FORM",
        r"(sparse[^+]*|\d+:\d+)\+(.+)",
        lambda own, inner: QuantizedNonzeros(support=_support(own), inner=parse_format(inner)),
    ),
    ("e8p:B", r"e8p:?(\d+)", lambda b: E8P(bits=int(b))),
    (
        "qB/S+FORM",
        r"q(\d+)(?:/(\d+))?\+(.+)",
        lambda b, s, form: QuantizedScales(inner=_scaled(parse_format(form), s), bits=int(b)),
    ),
    ("had+FORM", r"had\+(.+)", lambda form: Incoherent(parse_format(form))),
    ("values:C", r"values:?(\d+)", lambda c: SharedValues(num_values=int(c))),
)

FORMATS = tuple(name for name, _, _ in _GRAMMAR)


def parse_format(text: str) -> Parametrization:
    """Make a parametrization of its short name.

    ========== ============================================================ ==================
    form       meaning                                                      example
    ========== ============================================================ ==================
    MxBgN      M additive codebooks of B bits, groups of N inputs           2x8g8, 1x16g8
    MxBgOxN    the same with groups of O outputs by N inputs                2x8g2x4
    vq:BgN     one codebook of B bits, groups of N inputs                   vq:8g4
    grid:BgN   B-bit integers, scale and zero point per N inputs            grid:2g64
    grid:BgNs  the same without zero point (symmetric)                      grid:4g128s
    grid:B     B-bit integers, scale and zero point per row                 grid:4
    binary:gN  a sign per weight, scale per N inputs (binary: per row)      binary:g64
    ternary:gN a sign or 0 per weight, scale alike (ternary: per row)       ternary
    sparse:P%  P percent nonzeros in each row (sparse:P%:tensor: in all)    sparse:50%
    N:M        N nonzeros in M inputs                                       2:4
    FORM+FORM  either of these, the nonzeros in the second form             2:4+grid:2g64
    e8p:B      points of QuIP#'s lattice codebook, 2, 3 or 4 bits           e8p:2
    values:C   a table of C values for the whole weight                     values:4
    qB/S+FORM  scales of B bits, one per S inputs (qB+FORM: per row)        q6/64+2x8g8
    had+FORM   any of these after random Hadamard rotations                 had+e8p:2
    ========== ============================================================ ==================

    Args:
        text: the short name.

    Returns:
        The parametrization.

    Raises:
        ValueError: if no form fits, or a number is out of range.

    Example:
        >>> parse_format("grid:2g64s")
        UniformGrid(bits=2, group_size=64, symmetric=True)
    """
    for name, pattern, build in _GRAMMAR:
        match = re.fullmatch(pattern, text.strip())
        if match:
            try:
                return build(*match.groups())
            except (TypeError, ValueError) as error:
                raise ValueError(f"format {text!r} ({name}): {error}") from error
    raise ValueError(f"format {text!r} is unknown; the forms are {', '.join(FORMATS)}")


def format_name(parametrization: Parametrization) -> str:
    """Return the short name of a parametrization; the inverse of :func:`parse_format`.

    Settings that have no place in the short name (scale groups, beam size, seed) are left out.

    Example:
        >>> format_name(parse_format("2x8g8")), format_name(parse_format("grid4"))
        ('2x8g8', 'grid:4')
    """
    match parametrization:
        case AdditiveCodebooks(num_codebooks=m, bits=b, in_group=n, out_group=o):
            return f"{m}x{b}g{n}" if o == 1 else f"{m}x{b}g{o}x{n}"
        case VectorCodebook(bits=b, group_size=n):
            return f"vq:{b}g{n}"
        case UniformGrid(bits=b, group_size=n, symmetric=symmetric):
            return f"grid:{b}" + ("" if n is None else f"g{n}") + ("s" if symmetric else "")
        case Binary(group_size=n):
            return "binary" + ("" if n is None else f":g{n}")
        case Ternary(group_size=n):
            return "ternary" + ("" if n is None else f":g{n}")
        case Sparse(density=density, per=per):
            return f"sparse:{100 * density:.12g}%" + (":tensor" if per == "tensor" else "")
        case SparseNM(nonzeros=n, group_size=m):
            return f"{n}:{m}"
        case QuantizedNonzeros(support=own, inner=inner):
            return f"{format_name(own)}+{format_name(inner)}"
        case E8P(bits=b):
            return f"e8p:{b}"
        case QuantizedScales(inner=inner, bits=b):
            group = getattr(inner, "scale_group", None)
            return f"q{b}" + ("" if group is None else f"/{group}") + f"+{format_name(inner)}"
        case Incoherent(inner=inner):
            return f"had+{format_name(inner)}"
        case SharedValues(num_values=c):
            return f"values:{c}"
    return type(parametrization).__name__
