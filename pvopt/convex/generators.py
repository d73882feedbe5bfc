"""Random problems with a chosen condition number, and random starts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .logistic import Logistic
from .points import Point
from .problems import LeastSquares, Quadratic

__all__ = ["random_least_squares", "random_logistic", "random_quadratic", "random_start"]


def random_quadratic(dimension: int, condition: float, generator: np.random.Generator) -> Quadratic:
    r"""Draw a quadratic with a random basis, spectrum 1 to ``condition`` and a Gaussian minimiser.

    .. math:: A = Q \,\mathrm{diag}(\lambda)\, Q^\top, \quad \log \lambda_i \sim U(0, \log \kappa),
              \quad b = A x^\star, \quad x^\star \sim N(0, I)

    Args:
        dimension: number of weights d, at least 1.
        condition: condition number of A, at least 1, exact for ``dimension >= 2``.
        generator: source of the draws.

    Returns:
        The problem; its smallest eigenvalue is 1.

    Raises:
        ValueError: for a dimension or a condition number below 1.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import random_quadratic
        >>> problem = random_quadratic(6, 100.0, np.random.default_rng(0))
        >>> round(problem.smoothness / problem.strong_convexity)
        100

    References:
        PV-Tuning (arXiv 2405.14852), appendix: small-scale experiments.
    """
    basis, spectrum = _basis(dimension, generator), _spectrum(dimension, condition, generator)
    matrix = (basis * spectrum) @ basis.T
    matrix = 0.5 * (matrix + matrix.T)
    return Quadratic(matrix, matrix @ generator.standard_normal(dimension))


def random_least_squares(
    samples: int, dimension: int, condition: float, generator: np.random.Generator
) -> LeastSquares:
    """Draw a regression whose ``X'X`` has condition number ``condition`` on its range.

    Args:
        samples: number of rows n; below d the problem is rank-deficient.
        dimension: number of weights d.
        condition: ratio of the extreme non-zero eigenvalues of ``X'X``, at least 1.
        generator: source of the draws.

    Returns:
        The problem, with targets ``X x* + noise`` for Gaussian ``x*`` and noise of scale 0.1.

    Raises:
        ValueError: for a size or a condition number below 1.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import random_least_squares
        >>> problem = random_least_squares(3, 5, 10.0, np.random.default_rng(0))
        >>> int(np.linalg.matrix_rank(problem.curvature)), problem.strong_convexity
        (3, 0.0)

    References:
        AQLM (arXiv 2401.06118), section 3: the layer objective.
    """
    rank = min(samples, dimension)
    left = _basis(samples, generator)[:, :rank]
    right = _basis(dimension, generator)[:, :rank]
    inputs = (left * np.sqrt(_spectrum(rank, condition, generator))) @ right.T
    noise = 0.1 * generator.standard_normal(samples)
    return LeastSquares(inputs, inputs @ generator.standard_normal(dimension) + noise)


def random_logistic(
    samples: int, dimension: int, condition: float, l2: float, generator: np.random.Generator
) -> Logistic:
    """Draw a classification task whose inputs have a covariance of condition ``condition``.

    Args:
        samples: number of rows n.
        dimension: number of weights d.
        condition: condition number of the inputs' covariance, at least 1.
        l2: weight of the penalty.
        generator: source of the draws.

    Returns:
        The problem, with labels drawn from the logistic model of a Gaussian ``x*``.

    Raises:
        ValueError: for a size or a condition number below 1.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import random_logistic
        >>> random_logistic(50, 4, 10.0, 1e-2, np.random.default_rng(0)).X.shape
        (50, 4)

    References:
        PV-Tuning (arXiv 2405.14852), the convergence theorem: any objective bounded below.
    """
    basis, spectrum = _basis(dimension, generator), _spectrum(dimension, condition, generator)
    inputs = generator.standard_normal((samples, dimension)) * np.sqrt(spectrum) @ basis.T
    scores = inputs @ generator.standard_normal(dimension)
    labels = np.where(generator.logistic(size=samples) < scores, 1.0, -1.0)
    return Logistic(inputs, labels, l2)


def random_start(
    dimension: int, num_values: int, generator: np.random.Generator, *, runs: int | None = None
) -> Point:
    r"""Draw a point of :math:`R^d_{\le c}`: a random partition and Gaussian values.

    Every value is used as long as there are at most as many as weights, so that a start with
    ``num_values == dimension`` has d distinct entries.

    Args:
        dimension: number of weights d.
        num_values: size c of the table of values.
        generator: source of the draws.
        runs: how many independent starts; None for a single one without a leading axis.

    Returns:
        Codes ``(runs, d)`` and values ``(runs, c)``, or without the first axis.

    Raises:
        ValueError: for a size below 1.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import random_start
        >>> start = random_start(6, 3, np.random.default_rng(0), runs=50)
        >>> start.codes.shape, start.values.shape
        ((50, 6), (50, 3))

    References:
        PV-Tuning (arXiv 2405.14852), appendix: small-scale experiments.
    """
    _at_least_one(dimension=dimension, num_values=num_values)
    leading = () if runs is None else (runs,)
    codes = generator.integers(num_values, size=(*leading, dimension))
    used = min(dimension, num_values)
    codes[..., :used] = np.arange(used)  # every value once, then shuffled into random places
    codes = generator.permuted(codes, axis=-1)
    return Point(codes, generator.standard_normal((*leading, num_values)))


def _basis(size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return a Haar-random orthogonal matrix."""
    _at_least_one(size=size)
    q, r = np.linalg.qr(generator.standard_normal((size, size)))
    return q * np.sign(np.diag(r))  # without the signs QR is not uniform over rotations


def _spectrum(size: int, condition: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return log-uniform eigenvalues whose extremes are exactly 1 and ``condition``."""
    if not (np.isfinite(condition) and condition >= 1):
        raise ValueError(f"condition must be finite and at least 1, got {condition}")
    logs = generator.uniform(0.0, np.log(condition), size)
    logs[:1], logs[1:][-1:] = 0.0, np.log(condition)
    return np.exp(logs)


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
