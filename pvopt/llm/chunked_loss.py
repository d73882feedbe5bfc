"""Distillation and language losses on logits that never exist as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt.llm.chunked_head import Factors, HeadLogits, sum_over_chunks
from pvopt.llm.output_head import OutputHead, as_head


def chunked_kl(
    student_hidden: Tensor,
    student_head: Tensor | OutputHead,
    teacher_hidden: Tensor,
    teacher_head: Tensor | OutputHead,
    *,
    chunk_tokens: int | None = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""Mean Kullback-Leibler divergence of a teacher's next-token distributions from a student's.

    .. math::
        \frac{1}{T} \sum_{t=1}^{T} \operatorname{KL}(p_t \,\|\, q_t)
        = \frac{1}{T} \sum_{t=1}^{T} \sum_{v=1}^{V} p_{tv} \log \frac{p_{tv}}{q_{tv}}, \qquad
        p_t = \operatorname{softmax}(f'(h'_t) / \tau), \quad
        q_t = \operatorname{softmax}(f(h_t) / \tau)

    with teacher hidden states h' and head f', student hidden states h and head f, temperature tau.
    The teacher is a constant: no gradient flows to it. Under autocast the matrix products run in
    the autocast dtype; softmax, sums and the accumulated gradients use float32 or wider always.
    The logits of a chunk take three buffers of [chunk_tokens, V] in that dtype, those of a head
    with a soft cap two more.

    Args:
        student_hidden: what the student's head is applied to, [tokens, H], floating point.
        student_head: a head, or the weight of one, [V, H], in the dtype of `student_hidden` (any
            dtype under autocast).
        teacher_hidden: [tokens, H'], floating point; H' and dtype may differ from the student's.
        teacher_head: the same, [V, H'], in the dtype of `teacher_hidden`.
        chunk_tokens: most tokens whose logits exist at once; None allows 2^24 logits.
        temperature: softens (> 1) or sharpens (< 1) both distributions.

    Returns:
        Scalar, in nats; float64 for a float64 student, else float32.

    Raises:
        TypeError: an input is not floating point, or a head has another dtype than its hidden
            states.
        ValueError: shapes do not fit together, there are no tokens, or a setting is not positive.

    Example:
        >>> import torch
        >>> from pvopt.llm import chunked_kl
        >>> hidden, head = torch.randn(6, 4), torch.randn(50, 4)
        >>> float(chunked_kl(hidden, head, hidden, head, chunk_tokens=2))
        0.0

    References:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531.
    """
    student_head, teacher_head = as_head(student_head), as_head(teacher_head)
    _check_head("student_hidden", student_hidden, "student_head", student_head.weight)
    _check_head("teacher_hidden", teacher_hidden, "teacher_head", teacher_head.weight)
    for dimension, student, teacher in (
        ("tokens", student_hidden, teacher_hidden),
        ("vocabulary", student_head.weight, teacher_head.weight),
    ):
        if len(student) != len(teacher):
            raise ValueError(
                f"student and teacher must agree in {dimension}, got {len(student)} and "
                f"{len(teacher)}"
            )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    teacher = HeadLogits(Factors.of(teacher_hidden.detach(), teacher_head.detach(), temperature))
    student = Factors.of(student_hidden, student_head, temperature)
    total = sum_over_chunks(student, _KL(teacher), chunk_tokens)
    return total / len(student_hidden)


def chunked_cross_entropy(
    hidden: Tensor,
    head: Tensor | OutputHead,
    targets: Tensor,
    *,
    chunk_tokens: int | None = None,
    ignore_index: int = -100,
) -> Tensor:
    r"""Mean cross-entropy of target tokens under a linear head.

    .. math::
        -\frac{1}{|S|} \sum_{t \in S} \log \operatorname{softmax}(f(h_t))_{y_t}, \qquad
        S = \{t : y_t \ne \text{ignore index}\}

    with hidden states h, head f and targets y. Dtypes and autocast are treated as in `chunked_kl`;
    the logits of a chunk take two buffers, those of a head with a soft cap two more.

    Args:
        hidden: what the head is applied to, [tokens, H], floating point.
        head: a head, or the weight of one, [V, H], in the dtype of `hidden` (any floating dtype
            under autocast).
        targets: [tokens], int64, each in 0..V-1 or equal to `ignore_index`.
        chunk_tokens: most tokens whose logits exist at once; None allows 2^24 logits.
        ignore_index: target value of tokens that do not count.

    Returns:
        Scalar, in nats; float64 for float64 inputs, else float32. NaN when no token counts.

    Raises:
        TypeError: an input has the wrong kind of dtype.
        ValueError: shapes do not fit together, there are no tokens, or `chunk_tokens` is below 1.

    Example:
        >>> import torch
        >>> from pvopt.llm import chunked_cross_entropy
        >>> hidden, head = torch.zeros(3, 4), torch.randn(8, 4)
        >>> loss = chunked_cross_entropy(hidden, head, torch.tensor([1, 7, -100]))
        >>> round(float(loss), 4)  # all logits are equal: log 8
        2.0794
    """
    head = as_head(head)
    _check_head("hidden", hidden, "head", head.weight)
    if targets.dtype != torch.long:
        raise TypeError(f"targets must be int64, got {targets.dtype}")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"targets must have shape [tokens] = {[len(hidden)]}, got {list(targets.shape)}"
        )
    objective = _CrossEntropy(targets, ignore_index)
    total = sum_over_chunks(Factors.of(hidden, head, 1.0), objective, chunk_tokens)
    return total / (targets != ignore_index).sum()


class _KL:
    def __init__(self, teacher: HeadLogits) -> None:
        self._teacher = teacher
        self._space: tuple[Tensor, Tensor] | None = None

    def __call__(self, logits: Tensor, start: int, gradient: bool) -> tuple[Tensor, Tensor]:
        if self._space is None:  # the first chunk is the largest
            self._space = torch.empty_like(logits), torch.empty_like(logits)
        student, teacher = (buffer[: len(logits)] for buffer in self._space)
        torch.log_softmax(logits, -1, out=student)
        # Three buffers suffice: each one is overwritten as soon as its content is used up.
        torch.log_softmax(self._teacher.into(logits, start), -1, out=teacher)
        probabilities = torch.exp(teacher, out=logits)
        # The ratio before the sum: the entropies alone would cancel where student and teacher meet.
        log_ratio = teacher.sub_(student)
        if gradient:
            student.exp_().sub_(probabilities)
        return probabilities.mul_(log_ratio).sum(), student


class _CrossEntropy:
    def __init__(self, targets: Tensor, ignore_index: int) -> None:
        self._targets = targets
        self._ignore_index = ignore_index
        self._space: Tensor | None = None

    def __call__(self, logits: Tensor, start: int, gradient: bool) -> tuple[Tensor, Tensor]:
        if self._space is None:  # the first chunk is the largest
            self._space = torch.empty_like(logits)
        result = self._space[: len(logits)]
        targets = self._targets[start : start + len(logits)].unsqueeze(1)
        counts = targets != self._ignore_index
        targets = targets.where(counts, 0)
        torch.log_softmax(logits, -1, out=result)
        loss = -result.gather(1, targets).where(counts, 0).sum()
        if gradient:
            minus_one = result.new_full((), -1).expand(targets.shape)
            result.exp_().scatter_add_(1, targets, minus_one).masked_fill_(~counts, 0)
        return loss, result


def _check_head(hidden_name: str, hidden: Tensor, weight_name: str, weight: Tensor) -> None:
    for name, tensor in ((hidden_name, hidden), (weight_name, weight)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.ndim != 2 or not tensor.numel():
            raise ValueError(f"{name} must be a non-empty matrix, got shape {list(tensor.shape)}")
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{hidden_name} and {weight_name} must agree in their last dimension, got shapes "
            f"{list(hidden.shape)} and {list(weight.shape)}"
        )
    if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise TypeError(
            f"{hidden_name} and {weight_name} must have one dtype outside autocast, got "
            f"{hidden.dtype} and {weight.dtype}"
        )
