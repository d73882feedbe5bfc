"""A loss as a function of some of a model's weights: gradients and Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pvopt.core.layout import GroupLayout
from pvopt.weights import QuantizedWeights

from .vectors import Vector

Loss = Callable[[nn.Module], Tensor]
Parameters = Iterable[nn.Parameter] | QuantizedWeights | None

# Parts of the messages of autograd when an operation has no second derivative.
_ONCE_ONLY = ("derivative for", "once_differentiable", "double backward", "not implemented")


class Objective:
    """A loss at the model's present weights; every evaluation sees the same random numbers.

    Args:
        model: the module that the loss evaluates.
        loss: returns a scalar.
        parameters: the weights that count as variables.
        twice: whether second derivatives will be asked for: attention then takes PyTorch's
            composite path, since the fused kernels have first derivatives only.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, parameters: Sequence[nn.Parameter], *, twice: bool
    ) -> None:
        self._model = model
        self._loss = loss
        self.parameters = list(parameters)
        self.twice = twice
        self._devices = sorted({p.device.index or 0 for p in parameters if p.is_cuda})

    def gradient(self) -> Vector:
        """Return the gradient; a weight that the loss does not use has zeros."""
        with self._settled():
            gradient = torch.autograd.grad(self._value(), self.parameters, materialize_grads=True)
        return _finite(gradient)

    def curvature(self) -> tuple[Vector, Callable[[Vector], Vector]]:
        """Return the gradient, and a function that multiplies vectors with the Hessian.

        The function works until the weights change; it holds the graph of the whole gradient.
        """
        with self._settled(), _explained():
            value = self._value()
            # once_differentiable marks the graph only if the incoming gradient requires one.
            gradient = torch.autograd.grad(
                value,
                self.parameters,
                torch.ones_like(value, requires_grad=True),
                create_graph=True,
                materialize_grads=True,
            )
            _check_twice(gradient)
        # Where the loss is linear in a weight, its gradient is a constant.
        varying = [i for i, g in enumerate(gradient) if g.requires_grad]

        def product(vector: Vector) -> Vector:
            if not varying:
                return [torch.zeros_like(p) for p in self.parameters]
            with _explained():
                result = torch.autograd.grad(
                    [gradient[i] for i in varying],
                    self.parameters,
                    [vector[i] for i in varying],
                    retain_graph=True,
                    materialize_grads=True,
                )
            return _finite(result)

        return _finite(gradient), product

    def _value(self) -> Tensor:
        value = self._loss(self._model)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shown = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"loss must return a scalar tensor, got {shown}")
        if not value.requires_grad:
            raise ValueError("loss must depend on the parameters through autograd; its result has "
                             "no gradient")  # fmt: skip
        return value

    @contextmanager
    def _settled(self) -> Iterator[None]:
        attention: AbstractContextManager[Any] = nullcontext()
        if self.twice:
            attention = sdpa_kernel(SDPBackend.MATH)
        # The state at entry comes back at exit: dropout masks are the same in every evaluation.
        with torch.random.fork_rng(self._devices), torch.enable_grad(), attention:
            yield


def resolve(
    model: nn.Module, parameters: Parameters, units: str
) -> tuple[list[nn.Parameter], list[GroupLayout] | None]:
    """Return the weights and, for ``units="groups"``, how each is cut.

    Raises:
        TypeError: for weights that are no parameters, or of another dtype than float32 or float64.
        ValueError: for no weights, duplicates, frozen ones, weights of another model, or groups
            without representations.
    """
    layouts = None
    if isinstance(parameters, QuantizedWeights):
        chosen = parameters.parameters()
        if units == "groups":
            layouts = [rep.layout for rep in parameters.values()]
    elif units == "groups":
        raise ValueError(
            "units='groups' needs QuantizedWeights as parameters: the groups are their codes'"
        )
    elif parameters is None:
        chosen = [p for p in model.parameters() if p.requires_grad]
    else:
        chosen = list(parameters)
    own = {id(p) for p in model.parameters()}
    for number, p in enumerate(chosen):
        if not isinstance(p, nn.Parameter):
            raise TypeError(f"parameters must hold nn.Parameter, got {type(p).__name__}")
        if id(p) not in own:
            raise ValueError(f"parameters[{number}] is not a parameter of model")
        if not p.requires_grad:
            raise ValueError(f"parameters[{number}] must require a gradient; it is frozen")
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"parameters must be float32 or float64, got {p.dtype}: differences of its "
                "gradients would be rounding errors"
            )
    if not chosen or len({id(p) for p in chosen}) < len(chosen):
        raise ValueError(f"parameters must be distinct and at least one, got {len(chosen)}")
    return chosen, layouts


@contextmanager
def unchanged(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Give the model back as it was: weights, gradients, buffers, modes; also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    weights = [(p, p.detach().clone()) for p in parameters]
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, kept in weights:
                p.copy_(kept)
            for p, gradient in gradients:
                p.grad = gradient
            for module, name, buffer, kept in buffers:
                buffer.copy_(kept)
                module._buffers[name] = buffer
        for module, training in modes:
            module.training = training


@contextmanager
def _explained() -> Iterator[None]:
    """Say what to do where an operation of the loss cannot be differentiated twice."""
    try:
        yield
    except RuntimeError as error:
        if not any(part in str(error) for part in _ONCE_ONLY):
            raise
        raise RuntimeError(
            "the loss cannot be differentiated twice, which estimators='power' and "
            "suggest_code_lr need: take attn_implementation='eager', a plain loss instead of a "
            "chunked or fused one, no torch.compile and no reentrant checkpointing; or estimate "
            f"with estimators=('quotient',) only. PyTorch says: {error}"
        ) from error


def _check_twice(gradient: Iterable[Tensor]) -> None:
    """Raise if the gradient went through a function that can be differentiated only once.

    Such a function leaves a node that raises when it is reached; but no path leads through it to
    the weights, so autograd would skip it, and the products would silently lack a part.
    """
    waiting = [g.grad_fn for g in gradient if g.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name().rpartition("::")[2] == "Error":
            raise RuntimeError("a function marked with once_differentiable takes part")
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def _finite(vector: Iterable[Tensor]) -> Vector:
    result = [tensor.detach() for tensor in vector]
    if not all(bool(tensor.isfinite().all()) for tensor in result):
        raise ValueError("the derivatives of loss must be finite, got NaN or infinity")
    return result
