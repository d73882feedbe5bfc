"""Sources of metrics: in which distance a V step takes the nearest codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pvopt.metrics.diagonal import Diagonal
from pvopt.metrics.matrices import WeightMetric, matrix_metrics
from pvopt.metrics.row import Row
from pvopt.parametrizations.representation import Representation

__all__ = ["InputMetric", "MetricSource", "SecondMoment"]


class MetricSource(ABC):
    r"""Say, in every V step, in which metric a weight's codes are searched.

    With a metric :math:`D` at least the Hessian, the loss lies below

    .. math:: \varphi(y) + \langle g, x - y\rangle + \tfrac12 \|x - y\|_D^2
        = \tfrac12 \|x - (y - D^{-1} g)\|_D^2 + \mathrm{const},

    which is tight at :math:`y`. So rounding the step :math:`y - D^{-1} g` in the norm of
    :math:`D` cannot raise the loss, and where curvature is small it goes further than
    :math:`1/L` allows.
    """

    def check(  # noqa: B027 (a hook, not abstract)
        self, base: Optimizer, representations: Mapping[str, Representation]
    ) -> None:
        """Refuse, when an optimizer is made, what the metric cannot work with.

        Args:
            base: the optimizer of the dense weights.
            representations: by the names that :meth:`of` will be asked for.

        Raises:
            TypeError: if it needs another kind of base optimizer.
            ValueError: if it knows nothing of a weight, or something that does not fit.
        """

    @abstractmethod
    def of(
        self, name: str, parameter: nn.Parameter, group: Mapping[str, Any], base: Optimizer
    ) -> WeightMetric:
        """Return the metric of one weight, after the base optimizer's step.

        Args:
            name: of the weight.
            parameter: the dense weight.
            group: its parameter group.
            base: the optimizer of the dense weights.

        Returns:
            The metric between weights, of the dense weight's shape.
        """


class SecondMoment(MetricSource):
    r"""The diagonal metric in which the base optimizer's own step is the gradient step.

    .. math:: D = \mathrm{diag}\big(\sqrt{\hat u} + \epsilon\big)

    with :math:`\hat u` the running mean of squared gradients that the base optimizer keeps, bias
    correction and :math:`\epsilon` as in its update, which is :math:`-\eta D^{-1} \hat m`
    (Adafactor's up to a factor of the whole weight, which changes no choice of a code). So the
    V step minimises the upper bound whose minimiser without codes is the step that the optimizer
    takes. It is a bound of the loss where :math:`D / \eta` is at least the Hessian: curvature is
    not measured, the learning rate has to be small enough, as for the optimizer itself.

    Works with Adam, AdamW and NAdam (``exp_avg_sq``, or its maximum with ``amsgrad``), RMSprop,
    Adagrad and Adafactor (the product of row and column means), and with other optimizers that keep
    ``exp_avg_sq`` under ``betas`` and ``eps`` as Adam does.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt import SecondMoment
        >>> model = nn.Linear(8, 4)
        >>> weights = pvopt.quantize_(model, pvopt.VectorCodebook(bits=2, group_size=2))
        >>> base = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> pvopt.PVOptimizer(base, weights, metric=SecondMoment()).metric
        SecondMoment()

    References:
        Kingma & Ba, "Adam" (arXiv 1412.6980), section 2; Iterative OBS (NeurIPS 2024): curvature in
        the discrete step.
    """

    def __repr__(self) -> str:
        return "SecondMoment()"

    def check(self, base: Optimizer, representations: Mapping[str, Representation]) -> None:
        """Refuse torch's optimizers without squared gradients, and groups in another space."""
        own = type(base).__module__.startswith("torch.optim")
        if own and not isinstance(base, tuple(_DENOMINATORS)):
            raise TypeError(_needs_moments(base))
        for rep in representations.values():
            every = Diagonal(torch.empty(rep.shape, device="meta"))
            for member, metric in zip(
                rep.matrices.members(), matrix_metrics(every, rep.view, rep.shape), strict=True
            ):
                rep.space.enter_metric(metric, member.shape, member.owned)

    def of(
        self, name: str, parameter: nn.Parameter, group: Mapping[str, Any], base: Optimizer
    ) -> Diagonal:
        """Return what the base optimizer divides the weight's gradients by."""
        state = base.state[parameter]
        for kind, denominator in _DENOMINATORS.items():
            if isinstance(base, kind):
                return Diagonal(denominator(state, group))
        if "exp_avg_sq" in state and {"betas", "eps"} <= group.keys():
            return Diagonal(_adam(state, group))
        raise TypeError(_needs_moments(base))


def _needs_moments(base: Optimizer) -> str:
    names = ", ".join(kind.__name__ for kind in _DENOMINATORS)
    return (
        f"SecondMoment needs a base optimizer that keeps squared gradients ({names}), "
        f"got {type(base).__name__}"
    )


def _adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    square = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    correction = 1 - group["betas"][1] ** float(state["step"])
    return (square / correction).sqrt_().add_(group["eps"])


def _rmsprop(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    square = state["square_avg"]
    if group["centered"]:
        square = square - state["grad_avg"].square()
    return square.sqrt().add_(group["eps"])


def _adagrad(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    return state["sum"].sqrt().add_(group["eps"])


def _adafactor(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    eps = group["eps"][0]
    if "variance" in state:
        square = state["variance"]
        eps = torch.finfo(square.dtype).eps if eps is None else eps
    else:
        row, column = state["row_var"], state["col_var"]
        eps = torch.finfo(row.dtype).eps if eps is None else eps
        square = row @ column / row.mean(dim=-2, keepdim=True).clamp(min=eps)
    return square.clamp(min=eps**2).sqrt_()


_DENOMINATORS: dict[type[Optimizer], Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor]] = {
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.NAdam: _adam,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
    torch.optim.Adafactor: _adafactor,
}


class InputMetric(MetricSource):
    r"""The metric of a layer's outputs on its calibration inputs, shared by all rows.

    .. math:: \|W\|_D^2 = \|X W'\|_F^2 = \mathrm{tr}\, W H W', \qquad H = X'X

    The V step takes codes whose layer *outputs* are close to the target's, column by column
    (:func:`pvopt.row_metric_search`), and never raises :math:`\|X(W_q - T)'\|` for the target
    :math:`T`. For the loss this is the bound of :class:`MetricSource` where the update is
    :math:`-H^{-1} g` and :math:`H` at least the Hessian, up to one factor for both, as for the
    layer's own squared error; another base optimizer's target is projected on what codes can say.

    Args:
        hessians: ``[in, in]`` symmetric positive semidefinite ``X'X`` by the name of the weight
            (as :class:`pvopt.QuantizedWeights` names it; ``parameter 0, 1, ...`` for a mapping from
            parameters), or ``[experts, in, in]`` where experts have inputs of their own. Any
            positive multiple of a matrix gives the same codes.

    Raises:
        TypeError: if a matrix is not floating.
        ValueError: if a matrix is not square or not finite, or has a negative diagonal.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt import InputMetric
        >>> model = nn.Linear(8, 4)
        >>> inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        >>> weights = pvopt.quantize_(model, pvopt.VectorCodebook(bits=2, group_size=2))
        >>> metric = InputMetric({"weight": inputs.T @ inputs})
        >>> base = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> optimizer = pvopt.PVOptimizer(base, weights, metric=metric)

    References:
        GPTQ (arXiv 2210.17323), section 3; AQLM (arXiv 2401.06118), section 3.2.
    """

    def __init__(self, hessians: Mapping[str, Tensor]) -> None:
        self.metrics: dict[str, WeightMetric] = {
            name: Row(matrix) if matrix.dim() != 3 else [Row(own) for own in matrix]
            for name, matrix in hessians.items()
        }

    def __repr__(self) -> str:
        return f"InputMetric of {len(self.metrics)} weights"

    def check(self, base: Optimizer, representations: Mapping[str, Representation]) -> None:
        """Refuse weights without a matrix, or with one of another size."""
        missing = [name for name in representations if name not in self.metrics]
        if missing:
            raise ValueError(
                f"InputMetric must hold X'X of every quantized weight, lacks {missing}"
            )
        for name, rep in representations.items():
            try:
                matrix_metrics(self.metrics[name], rep.view, rep.shape)
            except ValueError as error:
                raise ValueError(f"InputMetric does not fit {name!r}: {error}") from error

    def of(
        self, name: str, parameter: nn.Parameter, group: Mapping[str, Any], base: Optimizer
    ) -> WeightMetric:
        """Return the weight's metric."""
        if name not in self.metrics:
            raise ValueError(f"InputMetric must hold X'X of every quantized weight, lacks {name!r}")
        return self.metrics[name]
