"""Weights with gradients, and the optimizers that are compared on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks.parq import parq
from pvopt import AdditiveCodebooks, Greedy, PVOptimizer, Representation

__all__ = ["BLOCK", "OPTIMIZERS", "Weights", "square_layers"]

SEED = 0
LR = 1e-3
Shape = tuple[int, int]
# The linear layers of one of SmolLM2-135M's 30 blocks, out by in: 3.54 M weights.
BLOCK: list[Shape] = [
    (576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536),
]  # fmt: skip


def square_layers(width: int) -> list[Shape]:
    """Return seven layers of a width: for growth in the size of layers, not in their number."""
    return [(width, width)] * 7


@dataclass
class Weights:
    """Quantized weights with their dense copies and gradients.

    Args:
        parameters: dense, equal to the decoded representations, with gradients.
        representations: 2x8g8 of random codes and codebooks.
    """

    parameters: list[nn.Parameter]
    representations: dict[nn.Parameter, Representation]

    @classmethod
    def draw(
        cls,
        shapes: Sequence[Shape],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Weights:
        """Draw codes, codebooks and gradients of the size that language models have."""
        source = torch.Generator(device).manual_seed(SEED)
        floats = {"generator": source, "device": device, "dtype": dtype}
        parametrization = AdditiveCodebooks(num_codebooks=2, bits=8, in_group=8)
        parameters, representations = [], {}
        for rows, columns in shapes:
            size = (rows, columns // 8, 2)
            codes = torch.randint(256, size, generator=source, device=device).to(torch.uint8)
            values = {
                "codebooks": 0.7 * torch.randn(2, 256, 8, **floats),
                "scales": 0.05 * (0.5 + torch.rand(rows, 1, **floats)),
            }
            rep = Representation(parametrization, {"entries": codes}, values, (rows, columns))
            parameter = nn.Parameter(rep.decode())
            parameter.grad = 1e-3 * torch.randn(rows, columns, **floats)
            parameters.append(parameter)
            representations[parameter] = rep
        return cls(parameters, representations)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all dense weights, the unit of extra memory."""
        return sum(parameter.nbytes for parameter in self.parameters)

    @property
    def count(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters)


def _pv(weights: Weights, latent_decay: float) -> Optimizer:
    base = AdamW(weights.parameters, lr=LR, fused=True)
    return PVOptimizer(
        base, weights.representations, subspace=Greedy(0.01), latent_decay=latent_decay
    )


def _parq(weights: Weights) -> Optimizer:
    """Return PARQ's optimizer at 2 bits per weight, quantizing in every step.

    Raises:
        ImportError: without torchao.
    """
    groups = [{"params": weights.parameters, "quant_bits": 2}]
    return parq(AdamW(groups, lr=LR, fused=True), lambda optim: optim.ProxHardQuant())


OPTIMIZERS: dict[str, Callable[[Weights], Optimizer]] = {
    "AdamW(fused=True)": lambda w: AdamW(w.parameters, lr=LR, fused=True),
    "AdamW(foreach=True)": lambda w: AdamW(w.parameters, lr=LR, foreach=True),
    "PVOptimizer, no latents": lambda w: _pv(w, 1.0),
    "PVOptimizer, latents": lambda w: _pv(w, 0.0),
    "PARQ, 2 bits": _parq,
}


def moved(parameters: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Return whether every parameter changed and stayed finite."""
    return all(
        bool(p.isfinite().all()) and not torch.equal(p, b)
        for p, b in zip(parameters, before, strict=True)
    )
