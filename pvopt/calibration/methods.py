"""Starts by name, and the one that suits a format."""

from __future__ import annotations

from collections.abc import Callable

from pvopt.starts import AQLM, GPTQ, Fit, Initialization, IterativeOBS, OneShotOBS
from pvopt.parametrizations import Parametrization, Sparse
from pvopt.parametrizations.scalar_grid import ScalarGrid
from pvopt.parametrizations.sparse_support import SparseSupport

__all__ = ["METHODS", "default_method", "parse_method"]

_BUILD: dict[str, Callable[[], Initialization]] = {
    "fit": Fit,
    "weighted-fit": lambda: Fit(weighted=True),
    "gptq": GPTQ,
    "aqlm": AQLM,
    "obs": OneShotOBS,
    "iterative-obs": IterativeOBS,
}

METHODS = tuple(_BUILD)


def parse_method(name: str) -> Initialization:
    """Make a start, with its default settings, of its short name.

    ============= =================================================================
    name          meaning
    ============= =================================================================
    fit           the format's own fit, without data (sparse: by magnitude)
    weighted-fit  the same, errors weighted by the size of the inputs
    gptq          :class:`pvopt.starts.GPTQ` (LDLQ for groups of inputs)
    aqlm          :class:`pvopt.starts.AQLM`
    obs           :class:`pvopt.starts.OneShotOBS`, for sparse weights
    iterative-obs :class:`pvopt.starts.IterativeOBS`, for sparse weights
    ============= =================================================================

    Args:
        name: one of these.

    Returns:
        The start.

    Raises:
        ValueError: for another name.

    Example:
        >>> parse_method("gptq")
        GPTQ(damping=0.01, activation_order=True)
    """
    if name not in _BUILD:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return _BUILD[name]()


def default_method(parametrization: Parametrization) -> str:
    """Return the name of the calibrated start that suits a parametrization.

    Args:
        parametrization: of the weights.

    Returns:
        ``gptq`` for grids of scalars, ``iterative-obs`` for sparse weights (``obs`` if their share
        is of the whole weight), ``aqlm`` for everything else.

    Example:
        >>> from pvopt import AdditiveCodebooks, UniformGrid
        >>> default_method(AdditiveCodebooks(num_codebooks=2, bits=8, in_group=8)), default_method(UniformGrid(bits=4))
        ('aqlm', 'gptq')
    """
    if isinstance(parametrization, SparseSupport):
        whole = isinstance(parametrization, Sparse) and parametrization.per == "tensor"
        return "obs" if whole else "iterative-obs"
    return "gptq" if isinstance(parametrization, ScalarGrid) else "aqlm"
