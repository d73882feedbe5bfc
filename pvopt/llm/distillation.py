"""Distillation and language losses of whole models, from hidden states and the output head.

Both losses run a causal language model with its head held out and leave the head to the chunked
losses, so that no logits of a whole batch are ever made. Any model with the interface of a
transformers causal language model fits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvopt.llm.chunked_loss import chunked_cross_entropy, chunked_kl
from pvopt.llm.output_head import OutputHead, find_head, run_to_head

# Target of a token that does not count.
_IGNORED = -100


def hidden_states(model: nn.Module, ids: Tensor) -> Tensor:
    """Run a causal language model up to, but not through, its output head.

    Args:
        model: a causal language model, as in transformers.
        ids: token ids, [batch, length], int64, all positions real tokens (no padding).

    Returns:
        What the head is applied to, [batch, length, H], in the dtype the body computes in.

    Raises:
        TypeError: `model` has no linear output head that it calls once.
        ValueError: `ids` is not a matrix, or see `output_head`.

    Example:
        >>> import torch
        >>> from pvopt.llm import hidden_states, load_model
        >>> model = load_model("tiny-llama").model
        >>> hidden_states(model, torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 64])
    """
    return _run(model, ids)[0]


def output_head(model: nn.Module) -> OutputHead:
    """Return what turns hidden states into logits, found by running the model on one token.

    Args:
        model: a causal language model with ``get_output_embeddings()``, as in transformers.

    Returns:
        The head, whose weight and bias are the model's own parameters.

    Raises:
        TypeError: `model` has no linear output head that it calls once.
        ValueError: the model does more to its logits than to scale and to cap them.

    Example:
        >>> from pvopt.llm import load_model, output_head
        >>> output_head(load_model("tiny-llama").model).weight.shape
        torch.Size([259, 64])
    """
    device = find_head(model)[1].device
    with torch.no_grad():
        return run_to_head(model, torch.zeros(1, 1, dtype=torch.long, device=device))[1]


def _run(model: nn.Module, ids: Tensor) -> tuple[Tensor, OutputHead]:
    if ids.ndim != 2:
        raise ValueError(f"ids must have shape [batch, length], got {list(ids.shape)}")
    return run_to_head(model, ids)


def distillation_loss(
    student: nn.Module,
    teacher_hidden: Tensor,
    teacher_head: Tensor | OutputHead,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    r"""Divergence of a student's next-token distributions from its teacher's on some text.

    .. math::
        \tau^2 \cdot \frac{1}{B L} \sum_{b,l}
        \operatorname{KL}\left(p^{teacher}_{bl} \,\|\, p^{student}_{bl}\right)

    over all B L positions, the last of each row included: no target token is needed. The factor of
    the temperature tau squared keeps the size of the gradient comparable between temperatures.

    Args:
        student: the model to tune.
        teacher_hidden: ``hidden_states(teacher, ids)`` computed under ``torch.no_grad()``,
            [batch, length, H'].
        teacher_head: ``output_head(teacher)``, [vocabulary, H'].
        ids: the token ids, [batch, length], int64.
        temperature: softens (> 1) or sharpens (< 1) both distributions.
        chunk_tokens: see `chunked_kl`.

    Returns:
        Scalar, differentiable in the student's parameters.

    Raises:
        ValueError: `teacher_hidden` does not belong to `ids`, or see `chunked_kl`, `output_head`.
        TypeError: see `hidden_states`, `output_head`.

    Example:
        >>> import torch
        >>> from pvopt.llm import distillation_loss, hidden_states, load_model, output_head
        >>> teacher, student = (load_model("tiny-llama", seed=seed).model for seed in (0, 1))
        >>> ids = torch.arange(20).view(2, 10)
        >>> with torch.no_grad():
        ...     teacher_hidden = hidden_states(teacher, ids)
        >>> loss = distillation_loss(student, teacher_hidden, output_head(teacher), ids)
        >>> loss.backward()

    References:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531.
    """
    if teacher_hidden.shape[:-1] != ids.shape:
        raise ValueError(
            f"teacher_hidden must have shape [batch, length, H'] with batch and length of ids = "
            f"{list(ids.shape)}, got {list(teacher_hidden.shape)}"
        )
    hidden, head = _run(student, ids)
    divergence = chunked_kl(
        hidden.flatten(0, 1),
        head,
        teacher_hidden.flatten(0, 1),
        teacher_head,
        chunk_tokens=chunk_tokens,
        temperature=temperature,
    )
    return divergence * temperature**2


def language_loss(
    model: nn.Module,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    r"""Mean cross-entropy of each token given the ones before it in its row.

    .. math::
        -\frac{1}{B (L-1)} \sum_{b=1}^{B} \sum_{l=1}^{L-1}
        \log p(x_{b,l+1} \mid x_{b,1}, \dots, x_{b,l})

    Args:
        model: a causal language model.
        ids: token ids x, [batch, length], int64, length at least 2.
        mask: [batch, length], 0 where a token is padding at the end of its row: the sum is over
            the others. None for no padding.
        chunk_tokens: see `chunked_cross_entropy`.

    Returns:
        Scalar, in nats per token, differentiable in the model's parameters.

    Raises:
        ValueError: `ids` is not a matrix with two columns or more, or see `output_head`.
        TypeError: see `hidden_states`, `output_head`.

    Example:
        >>> import torch
        >>> from pvopt.llm import language_loss, load_model
        >>> loss = language_loss(load_model("tiny-llama").model, torch.arange(20).view(2, 10))
        >>> loss.shape
        torch.Size([])
    """
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(
            f"ids must have shape [batch, length] with length at least 2, got {list(ids.shape)}"
        )
    hidden, head = _run(model, ids)
    targets = ids[:, 1:] if mask is None else ids[:, 1:].where(mask[:, 1:] != 0, _IGNORED)
    return chunked_cross_entropy(
        hidden[:, :-1].flatten(0, 1),
        head,
        targets.flatten(),
        ignore_index=_IGNORED,
        chunk_tokens=chunk_tokens,
    )
