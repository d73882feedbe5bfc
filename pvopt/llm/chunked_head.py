"""A loss summed over tokens, through a linear output head, without the logits of all tokens.

The logits of a batch, [tokens, vocabulary], are by far the largest tensors of language model
training. The head is linear and the losses sum over tokens, so one pass can go through the tokens
in chunks: the logits of one chunk are made, turned into their loss and their gradient in place,
multiplied back into the gradients of the hidden states and of the head, and overwritten by the
next chunk. The gradients are thus ready before ``backward()``, which only scales them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pvopt.llm.output_head import OutputHead

# Logits per chunk unless the caller says otherwise: 64 MB per float32 buffer. Every chunk adds to
# the whole gradient of the head, so small chunks are slow: the KL loss of 2048 tokens, vocabulary
# 49152 and width 576, forward and backward on two CPU cores, takes 2.6, 2.0, 1.9 and 1.8 s in
# chunks of 64, 128, 256 and 1024 tokens.
_CHUNK_LOGITS = 2**24


class Objective(Protocol):
    """Loss of one chunk of logits."""

    def __call__(self, logits: Tensor, start: int, gradient: bool) -> tuple[Tensor, Tensor]:
        """Return the loss summed over a chunk and its gradient with respect to the logits.

        Args:
            logits: [chunk, vocabulary]; may be overwritten.
            start: number of the chunk's first token.
            gradient: whether the gradient is wanted; otherwise the second tensor is anything.

        Returns:
            The loss, a scalar, and the gradient, [chunk, vocabulary], which is used before the
            next call only.
        """
        ...


@dataclass(frozen=True, eq=False)
class Factors:
    r"""A head and hidden states, reduced to what every chunk needs.

    .. math:: z = W h + b \qquad \text{or} \qquad z = a \tanh(W h + b)

    Args:
        hidden: h, [tokens, H], floating point.
        weight: W, [vocabulary, H].
        bias: b, [vocabulary], or None.
        amplitude: a, or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    amplitude: float | None

    @classmethod
    def of(cls, hidden: Tensor, head: OutputHead, temperature: float) -> Factors:
        """Move the scales of a head and a temperature into the factors; differentiable."""
        divisor = temperature if head.cap is None else head.cap
        scale = head.scale / divisor
        bias = head.bias
        if scale != 1:
            hidden, bias = hidden * scale, None if bias is None else bias * scale
        amplitude = None if head.cap is None else head.cap / temperature
        return cls(hidden, head.weight, bias, amplitude)


class HeadLogits:
    """Head times hidden states, chunk by chunk, into buffers that the caller allocates once.

    Buffers of this size come fresh from the operating system at every allocation, and faulting
    their pages in costs as much as a pass over them.

    Args:
        factors: weight and bias have the dtype of the hidden states except under autocast, which
            decides for all.
    """

    def __init__(self, factors: Factors) -> None:
        device = factors.hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else factors.hidden.dtype
        self.hidden = factors.hidden.to(dtype)
        self.head_weight = factors.weight.to(dtype)
        self.sum_dtype = torch.promote_types(dtype, torch.float32)
        self.bias = None if factors.bias is None else factors.bias.to(self.sum_dtype)
        self.amplitude = factors.amplitude

    def into(self, buffer: Tensor, start: int) -> Tensor:
        """Overwrite `buffer`, [chunk, vocabulary], with the logits of the tokens from `start`."""
        chunk = self.hidden[start : start + len(buffer)]
        logits = _multiply(chunk, self.head_weight.t(), buffer)
        if self.bias is not None:
            logits += self.bias
        if self.amplitude is not None:
            logits.tanh_().mul_(self.amplitude)
        return logits

    def slopes(self, logits: Tensor) -> Tensor | None:
        """Return the derivatives of capped logits, to be multiplied in; None for plain ones."""
        if self.amplitude is None:
            return None
        return self.amplitude - logits.square() / self.amplitude


def sum_over_chunks(factors: Factors, objective: Objective, chunk_tokens: int | None) -> Tensor:
    """Sum an objective over all tokens, differentiable in the hidden states and the head.

    Args:
        factors: of the logits.
        objective: the loss of one chunk of logits.
        chunk_tokens: most tokens whose logits exist at once; None allows 2^24 logits.

    Returns:
        Scalar; float64 for float64 inputs, else float32.

    Raises:
        ValueError: `chunk_tokens` is below 1.
    """
    hidden, weight, bias = factors.hidden, factors.weight, factors.bias
    if chunk_tokens is None:
        chunk_tokens = max(1, _CHUNK_LOGITS // len(weight))
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    # Chunks of one size: a short rest would cost nearly as much as a whole chunk.
    chunk_tokens = math.ceil(len(hidden) / math.ceil(len(hidden) / chunk_tokens))
    if not torch.is_grad_enabled():
        # needs_input_grad does not look at the grad mode.
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    total: Any = _SumOverChunks.apply(
        hidden, weight, bias, factors.amplitude, objective, chunk_tokens
    )
    return total


class _SumOverChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        amplitude: float | None,
        objective: Objective,
        chunk_tokens: int,
    ) -> Tensor:
        logits_of = HeadLogits(Factors(hidden, weight, bias, amplitude))
        dtype = logits_of.sum_dtype
        for_hidden, for_head, for_bias, *_ = ctx.needs_input_grad
        any_gradient = for_hidden or for_head or for_bias
        hidden_gradient = torch.empty_like(hidden, dtype=dtype) if for_hidden else None
        head_gradient = torch.zeros_like(weight, dtype=dtype) if for_head else None
        bias_gradient = weight.new_zeros(len(weight), dtype=dtype) if for_bias else None
        total = hidden.new_zeros((), dtype=dtype)
        shape = min(chunk_tokens, len(hidden)), len(weight)
        buffer = hidden.new_empty(shape, dtype=dtype)
        # The factors have their dtypes already, and autocast must not touch the sums.
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk_tokens):
                chunk = logits_of.hidden[start : start + chunk_tokens]
                logits = logits_of.into(buffer[: len(chunk)], start)
                slopes = logits_of.slopes(logits) if any_gradient else None
                loss, gradient = objective(logits, start, any_gradient)
                total += loss
                if slopes is not None:
                    gradient = gradient.mul_(slopes)
                if bias_gradient is not None:
                    bias_gradient += gradient.sum(0)
                gradient = gradient.to(chunk.dtype)
                if hidden_gradient is not None:
                    target = hidden_gradient[start : start + len(chunk)]
                    _multiply(gradient, logits_of.head_weight, target)
                if head_gradient is not None:
                    _multiply(gradient.t(), chunk, head_gradient, add=True)
        ctx.save_for_backward(hidden_gradient, head_gradient, bias_gradient)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @once_differentiable  # its type hides the name of ctx
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        # Not in place: backward may run again on a retained graph. The kept gradients are wide, so
        # that a loss scale is applied before float16 could underflow.
        gradients = (
            None if gradient is None else (gradient * grad_outputs[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, None, None, None


def _multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Write or add a matrix product to `out`, which may be wider than the factors."""
    if out.dtype == left.dtype:
        return out.addmm_(left, right, beta=1 if add else 0)
    product = torch.mm(left, right)
    return out.add_(product) if add else out.copy_(product)
