"""A starting code learning rate from the curvature of the loss along the weights that may move."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pvopt.core.draws import Draws
from pvopt.core.layout import GroupLayout
from pvopt.rules.subspace import Greedy, Subspace
from pvopt.weights import QuantizedWeights

from .objective import Loss, Objective, Parameters, resolve, unchanged
from .power_iteration import largest_curvature
from .settings import SmoothnessSettings
from .vectors import Vector, dot, random_like

__all__ = ["CodeLearningRate", "suggest_code_lr"]


@dataclass(frozen=True)
class CodeLearningRate:
    """Two learning rates for the codes: a cautious one and the one to start from.

    Args:
        fraction: share of the weights in the groups or coordinates S that the rule selects.
        smoothness: the constant L_S along S, by power iteration.
        by_smoothness: learning rate at which the optimizer's update of a layer is as long on S as
            the step ``g_S / L_S`` of the theory: median over the layers. For SGD it is 1 / L_S.
        along_update: learning rate that minimises the loss along the optimizer's own update on S,
            to second order; infinite if the loss does not bend upwards there.
    """

    fraction: float
    smoothness: float
    by_smoothness: float
    along_update: float

    @property
    def lr(self) -> float:
        """The learning rate to start from, ``along_update`` if finite, else ``by_smoothness``."""
        return self.along_update if math.isfinite(self.along_update) else self.by_smoothness


def suggest_code_lr(
    model: nn.Module,
    loss: Loss,
    parameters: Parameters = None,
    *,
    base: Callable[[list[nn.Parameter]], Optimizer],
    subspace: Subspace | None = None,
    generator: torch.Generator,
    iterations: int = 20,
    tolerance: float = 1e-2,
) -> CodeLearningRate:
    r"""Suggest a learning rate for the codes of a model, for any base optimizer.

    Let g be the gradient, u the first update of the base optimizer at learning rate 1 (g for SGD;
    about :math:`\pm 1` for Adam; for Adafactor a rescaled gradient with the root mean square of the
    weight), and S the groups that the subspace rule selects by the size of u, as the first V step
    would. Then, with layers :math:`\ell`,

    .. math::
        \eta_\text{by smoothness} = \frac{1}{L_S}\,
            \operatorname{median}_\ell \frac{\|g_{S,\ell}\|}{\|u_{S,\ell}\|},
        \qquad
        \eta_\text{along update} = \frac{\langle g_S, u_S\rangle}{\langle u_S, H u_S\rangle}

    The first carries the theory over: at :math:`1/L_S` a step of SGD on S cannot increase the
    loss. For Adam it is the median over layers of :math:`\mathrm{rms}(g_S / L_S)`, for Adafactor
    that over :math:`\mathrm{rms}(w)`. It is a worst case: one direction of large curvature keeps
    all others short, although optimizers with relative steps hardly move along it. The second asks
    for the curvature along the update that will be made.

    What it is good for: the order of magnitude, for the first step, before rounding and on one
    batch. Rounding, momentum, a latent weight that adds up updates, and the decay of the learning
    rate are not in the formulas. ``benchmarks/README.md`` compares both with the learning rate
    that was found best by hand for a language model at 2 bits.

    The model is given back as it was, as by :func:`estimate_smoothness`.

    Args:
        model: any module with weights in float32 or float64.
        loss: ``loss(model)`` returns the scalar loss on a typical batch.
        parameters: :class:`~pvopt.QuantizedWeights`, whose groups move, or weights whose
            coordinates move; None: all of the model that require a gradient.
        base: makes the base optimizer from a list of parameters: a class of ``torch.optim``, or a
            function. Its learning rate is set to 1.
        subspace: which groups or coordinates may move in a step; None: ``Greedy(0.01)``.
        generator: of the rule's draws and of the first direction.
        iterations: most Hessian-vector products for L_S.
        tolerance: relative growth of L_S at which its iteration stops.

    Returns:
        The suggestion, in units of the optimizer's ``lr``.

    Raises:
        TypeError: as :func:`estimate_smoothness`, and for a rule that is not a ``Subspace``.
        ValueError: likewise; and if the gradient or the curvature vanishes on S, which leaves no
            scale.
        RuntimeError: if the loss cannot be differentiated twice.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt import Greedy, UniformGrid, quantize_
        >>> from pvopt.smoothness import suggest_code_lr
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
        >>> inputs, targets = torch.randn(64, 16), torch.randn(64, 4)
        >>> weights = quantize_(model, UniformGrid(bits=2))
        >>> def loss(model):
        ...     return (model(inputs) - targets).square().mean()
        >>> generator = torch.Generator().manual_seed(0)
        >>> found = suggest_code_lr(
        ...     model,
        ...     loss,
        ...     weights,
        ...     base=torch.optim.Adafactor,
        ...     subspace=Greedy(0.1),
        ...     generator=generator,
        ... )
        >>> 0 < found.by_smoothness < found.lr < 10
        True

    References:
        PV-Tuning (arXiv 2405.14852), section 3.3.
    """
    subspace = Greedy(0.01) if subspace is None else subspace
    if not isinstance(subspace, Subspace):
        raise TypeError(f"subspace must be a Subspace, got {type(subspace).__name__}")
    settings = SmoothnessSettings(iterations=iterations, tolerance=tolerance)  # checks the numbers
    units = "groups" if isinstance(parameters, QuantizedWeights) else "coordinates"
    variables, layouts = resolve(model, parameters, units)
    layouts = layouts or [GroupLayout(tuple(p.shape), 1, 1) for p in variables]
    with unchanged(model, variables):
        objective = Objective(model, loss, variables, twice=True)
        gradient, product = objective.curvature()
        update = [_first_update(base, p, g) for p, g in zip(variables, gradient, strict=True)]
        masks = [
            _selected(subspace, u, layout, generator)
            for u, layout in zip(update, layouts, strict=True)
        ]

        def project_(vector: Vector) -> Vector:
            for tensor, mask in zip(vector, masks, strict=True):
                tensor.masked_fill_(~mask, 0)
            return vector

        smoothness, _ = largest_curvature(
            product,
            project_,
            random_like(gradient, generator),
            warm=False,
            iterations=settings.iterations,
            tolerance=settings.tolerance,
            generator=generator,
        )
        if smoothness == 0:
            raise ValueError("loss must bend along the selected weights, its curvature is 0 there")
        project_(update)
        project_(gradient)
        bend = dot(update, product(update))
    ratios = [float(g.norm() / u.norm()) for g, u in zip(gradient, update, strict=True) if u.any()]
    if not ratios:
        raise ValueError("loss must have a gradient on the selected weights, it is 0 there")
    return CodeLearningRate(
        fraction=sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks),
        smoothness=smoothness,
        by_smoothness=statistics.median(ratios) / smoothness,
        along_update=dot(gradient, update) / bend if bend > 0 else math.inf,
    )


@torch.no_grad()
def _first_update(
    base: Callable[[list[nn.Parameter]], Optimizer], parameter: Tensor, gradient: Tensor
) -> Tensor:
    """Return what the optimizer subtracts from a weight in its first step at learning rate 1."""
    copy = nn.Parameter(parameter.detach().clone())
    optimizer = base([copy])
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    copy.grad = gradient.clone()
    optimizer.step()
    return parameter - copy


def _selected(
    subspace: Subspace, update: Tensor, layout: GroupLayout, generator: torch.Generator
) -> Tensor:
    """Return which entries of a weight are in the groups that the rule selects, as booleans."""
    magnitudes = layout.split(update).norm(dim=1).to(generator.device)
    chosen = torch.zeros(layout.num_groups, dtype=torch.bool, device=generator.device)
    draws = Draws.of(generator, generator.device)
    chosen[subspace.select(magnitudes[None], draws, ordered=False)[0]] = True
    return layout.merge(chosen[:, None].expand(-1, layout.group_size)).to(update.device)
