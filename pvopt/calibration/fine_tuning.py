"""Tune the continuous values of a quantized block towards its full-precision outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pvopt.parametrizations.representation import Representation
from pvopt.weights import QuantizedWeights

from .capture import BlockCall

__all__ = ["FineTuning"]


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    r"""Adam on codebooks, scales and other values of one block; codes stay.

    .. math:: \min_v \sum_X \|B_{\mathrm{decode}(z, v)}(X) - B_W(X)\|_F^2

    over the calibration batches, where both blocks get the same inputs: those that the quantized
    blocks before hand on. Values are kept as they were where tuning did not lower the loss.

    Args:
        epochs: passes over the calibration batches, at least 1.
        lr: learning rate in units of the root mean square of each value tensor, falling linearly
            to 0.
        betas: of Adam.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from pvopt.calibration import FineTuning
        >>> FineTuning(epochs=2)
        FineTuning(epochs=2, lr=0.003, betas=(0.9, 0.95))

    References:
        AQLM (arXiv 2401.06118), section 3.4.
    """

    epochs: int = 1
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
            raise ValueError(f"epochs must be an int of at least 1, got {self.epochs!r}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")

    def tune_(
        self,
        block: nn.Module,
        calls: Sequence[BlockCall],
        hidden: Tensor,
        outputs: Tensor,
        weights: QuantizedWeights,
        *,
        masks: Tensor | None = None,
        seed: int = 0,
    ) -> tuple[float, float]:
        """Tune the values of a block's representations and write the decoded weights.

        Args:
            block: the quantized block.
            calls: what it is called with, by batch.
            hidden: ``[batches, batch, length, width]`` its inputs.
            outputs: the same shape, what it should return.
            weights: representations of its weights, changed in place.
            masks: ``[batches, batch, length]``, 0 for padding, whose outputs are free; or None.
            seed: of the order of the batches.

        Returns:
            The mean squared error over all batches, before and after.
        """
        data = _Data(block, calls, hidden, outputs, masks)
        values = [v for rep in weights.values() for v in rep.values.values()]
        kept = [v.clone() for v in values]
        before = data.mean_error()
        generator = torch.Generator().manual_seed(seed)
        with _frozen(block):
            self._run(data, weights, generator)
        after = data.mean_error()
        if not after <= before:
            for value, old in zip(values, kept, strict=True):
                value.copy_(old)
            weights.write_()
            after = before
        return before, after

    @torch.enable_grad()
    def _run(self, data: _Data, weights: QuantizedWeights, generator: torch.Generator) -> None:
        reps = dict(weights.items())
        groups = [
            {"params": [value], "lr": self.lr * _size(value)}
            for rep in reps.values()
            for value in rep.values.values()
        ]
        adam = torch.optim.Adam(groups, betas=self.betas)
        steps = self.epochs * len(data.hidden)
        fall = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        for parameter in weights.parameters():
            parameter.requires_grad_(True)
        for _ in range(self.epochs):
            for number in torch.randperm(len(data.hidden), generator=generator).tolist():
                data.error(number).backward()
                for name, rep in reps.items():
                    _set_gradients(rep, weights.parameter(name))
                adam.step()
                fall.step()
                weights.write_()


def _size(value: Tensor) -> float:
    """Return the root mean square of a tensor; 1 where it is zero."""
    size = float(value.square().mean().sqrt())
    return size if size > 0 else 1.0


@torch.no_grad()
def _set_gradients(rep: Representation, parameter: nn.Parameter) -> None:
    """Pull the gradient of the dense weight back to the values, and clear it."""
    gradient = parameter.grad
    if gradient is None:  # an expert that the batch did not reach
        gradient = torch.zeros_like(parameter)
    for name, value in rep.pull([gradient]).items():
        rep.values[name].grad = value
    parameter.grad = None


@dataclass(frozen=True, eq=False)
class _Data:
    """A block, what it is called with, and what it should return."""

    block: nn.Module
    calls: Sequence[BlockCall]
    hidden: Tensor
    outputs: Tensor
    masks: Tensor | None

    def error(self, number: int) -> Tensor:
        """Return the mean squared error of a batch, over the tokens that are no padding."""
        found = self.calls[number](self.block, self.hidden[number])
        error = (found - self.outputs[number]).float().square()
        if self.masks is None:
            return error.mean()
        mask = self.masks[number].to(error)[..., None].expand_as(error)
        return (error * mask).sum() / mask.sum().clamp(min=1)

    @torch.no_grad()
    def mean_error(self) -> float:
        """Return the mean of the batches' errors."""
        return sum(float(self.error(number)) for number in range(len(self.hidden))) / len(
            self.hidden
        )


@contextmanager
def _frozen(block: nn.Module) -> Iterator[None]:
    """Let no parameter of a block require a gradient; put flags and gradients back at the end."""
    before = [(p, p.requires_grad, p.grad) for p in block.parameters()]
    for parameter, _, _ in before:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
