"""Tune the continuous values of a quantized block towards its full-precision outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pvopt.parametrizations.representation import Representation
from pvopt.weights import QuantizedWeights

from .blocks import BlockCall

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
        call: BlockCall,
        hidden: Tensor,
        outputs: Tensor,
        weights: QuantizedWeights,
        *,
        seed: int = 0,
    ) -> tuple[float, float]:
        """Tune the values of a block's representations and write the decoded weights.

        Args:
            block: the quantized block.
            call: what it is called with.
            hidden: ``[batches, batch, length, width]`` its inputs.
            outputs: the same shape, what it should return.
            weights: representations of its weights, changed in place.
            seed: of the order of the batches.

        Returns:
            The mean squared error over all batches, before and after.
        """
        values = [v for rep in weights.values() for v in rep.values.values()]
        kept = [v.clone() for v in values]
        before = _mean_error(block, call, hidden, outputs)
        generator = torch.Generator().manual_seed(seed)
        frozen = [p for p in block.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            self._run(block, call, hidden, outputs, weights, generator)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
                parameter.grad = None
        after = _mean_error(block, call, hidden, outputs)
        if not after <= before:
            for value, old in zip(values, kept, strict=True):
                value.copy_(old)
            weights.write_()
            after = before
        return before, after

    @torch.enable_grad()
    def _run(
        self,
        block: nn.Module,
        call: BlockCall,
        hidden: Tensor,
        outputs: Tensor,
        weights: QuantizedWeights,
        generator: torch.Generator,
    ) -> None:
        reps = dict(weights.items())
        groups = [
            {"params": [value], "lr": self.lr * _size(value)}
            for rep in reps.values()
            for value in rep.values.values()
        ]
        adam = torch.optim.Adam(groups, betas=self.betas)
        steps = self.epochs * len(hidden)
        fall = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        for parameter in weights.parameters():
            parameter.requires_grad_(True)
        for _ in range(self.epochs):
            for number in torch.randperm(len(hidden), generator=generator).tolist():
                error = call(block, hidden[number]) - outputs[number]
                error.float().square().mean().backward()
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


@torch.no_grad()
def _mean_error(block: nn.Module, call: BlockCall, hidden: Tensor, outputs: Tensor) -> float:
    total = 0.0
    for batch, wanted in zip(hidden, outputs, strict=True):
        total += float((call(block, batch) - wanted).float().square().mean())
    return total / len(hidden)
