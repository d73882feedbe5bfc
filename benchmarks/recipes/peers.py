"""What else a user could take: quantization-aware training as it is usually written, and PARQ."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Adam, Optimizer

from benchmarks.parq import parq as of_torchao

__all__ = ["lsq", "parq"]


class _LSQ(nn.Module):
    """Straight-through rounding to four levels per output channel, with trained step sizes."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        size = weight.flatten(1).abs().mean(1)
        self.step = nn.Parameter(size.view(-1, *[1] * (weight.ndim - 1)))

    def forward(self, weight: Tensor) -> Tensor:
        # Levels -1.5, -0.5, 0.5 and 1.5 steps; gradients of the step are scaled as in the paper.
        scale = (1.5 * weight.numel() / len(weight)) ** -0.5
        step = self.step.detach() + scale * (self.step - self.step.detach())
        position = (weight / step).clamp(-1.5, 1.5)
        rounded = (position - 0.5).round().clamp(-2, 1) + 0.5
        return step * (position + (rounded - position).detach())


def lsq(model: nn.Module, names: Sequence[str], lr: float) -> Optimizer:
    """Register learned step sizes with the weights; return Adam on everything.

    Args:
        model: changed in place.
        names: of the weights to quantize.
        lr: learning rate.

    References:
        Esser et al., "Learned Step Size Quantization" (arXiv 1902.08153).
    """
    for name in names:
        module, _, leaf = name.rpartition(".")
        owner = model.get_submodule(module)
        parametrize.register_parametrization(owner, leaf, _LSQ(getattr(owner, leaf).detach()))
    return Adam(model.parameters(), lr=lr)


def parq(model: nn.Module, names: Sequence[str], lr: float, steps: int) -> Optimizer:
    """Return PARQ's optimizer: 2 bits per channel, annealed from soft to hard rounding.

    Args:
        model: unchanged by this.
        names: of the weights to quantize.
        lr: learning rate.
        steps: of the run, which the annealing is spread over.

    Raises:
        ImportError: without torchao.
    """
    named = dict(model.named_parameters())
    groups = [
        {"params": [named[name] for name in names], "quant_bits": 2},
        {"params": [p for name, p in named.items() if name not in names]},
    ]
    annealing = {"anneal_start": 0, "anneal_end": steps - 1, "steepness": 20}
    return of_torchao(Adam(groups, lr=lr), lambda optim: optim.ProxPARQ(**annealing))
