"""Nearest codes: exact for one codebook, beam search for a sum of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_code_range,
    check_codes,
    check_floating,
    check_integers,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.dispatch import call, implementation

__all__ = ["beam_search"]


def beam_search(
    target: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    k: int,
    *,
    beam_size: int,
    order: Sequence[int],
    metric: Tensor | None = None,
) -> Tensor:
    r"""Improve additive codes one codebook at a time, keeping the best ``beam_size`` combinations.

    .. math:: \min_z \sum_i d_i \Big(t_i - \sum_m C_m[z_m]_i\Big)^2

    Starting from the current codes, each codebook in ``order`` is visited once: every beam tries
    all of its entries, the best survive. The current code competes at every visit, so the result
    is never worse. With a single codebook the search is exact.

    Codebooks may be a stack, those of ``W`` weights: the first ``n / W`` targets then belong to the
    first weight, and so on. The result has the same bits as ``W`` searches.

    Args:
        target: ``[n, g]``.
        codebooks: ``[M, K, g]`` or ``[W, M, K, g]`` of the target's dtype.
        codes: ``[n, M]`` int64, the current codes.
        k: number of candidates to return.
        beam_size: combinations kept between visits (at least ``k`` are kept).
        order: the codebooks in order of their visits, each at most once.
        metric: ``[n, g]`` non-negative weights ``d``, or None for 1.

    Returns:
        ``[n, min(k, combinations), M]`` int64, best first.

    Example:
        >>> import torch
        >>> from pvopt_kernels import beam_search
        >>> books = torch.tensor([[[0.0], [4.0]], [[0.0], [1.0]]])
        >>> start = torch.zeros(1, 2, dtype=torch.int64)
        >>> beam_search(torch.tensor([[5.2]]), books, start, 1, beam_size=2, order=[0, 1])
        tensor([[[1, 1]]])

    References:
        AQLM (arXiv 2401.06118), section 3.1; Babenko & Lempitsky, "Additive Quantization" (2014).
    """
    check_tensors(target=target, codebooks=codebooks, codes=codes)
    check_floating(target=target, codebooks=codebooks, metric=metric)
    check_codes(codes=codes)
    check_shape("target", target, "n", "g")
    stacked = ("W",) if codebooks.dim() == 4 else ()
    check_shape("codebooks", codebooks, *stacked, "M", "K", target.shape[1])
    number = codebooks.shape[-3]
    check_shape("codes", codes, target.shape[0], number)
    check_shape("metric", metric, *target.shape)
    check_same_device(target=target, codebooks=codebooks, codes=codes, metric=metric)
    if stacked and target.shape[0] % max(1, codebooks.shape[0]):
        raise ValueError(
            f"target must have as many rows for each of the {codebooks.shape[0]} weights, "
            f"got {target.shape[0]}"
        )
    order = list(order)
    check_integers(k=k, beam_size=beam_size, **{f"order[{i}]": m for i, m in enumerate(order)})
    if k < 1 or beam_size < 1:
        raise ValueError(f"k and beam_size must be positive, got {k} and {beam_size}")
    if len(set(order)) < len(order) or not all(0 <= m < number for m in order):
        raise ValueError(
            f"order must name codebooks 0 .. {number - 1}, each at most once, got {order}"
        )
    return call(_op, target, codebooks, codes, k, beam_size, order, metric)


@torch.library.custom_op("pvopt::beam_search", mutates_args=())
def _op(
    target: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    k: int,
    beam_size: int,
    order: list[int],
    metric: Tensor | None,
) -> Tensor:
    check_code_range("codes", codes, codebooks.shape[-2])
    run = implementation("beam_search", target)
    return run(target, codebooks, codes, k, beam_size=beam_size, order=order, metric=metric)


@_op.register_fake
def _fake(
    target: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    k: int,
    beam_size: int,
    order: list[int],
    metric: Tensor | None,
) -> Tensor:
    found = 1
    for _ in order:
        found = min(max(beam_size, k), found * codebooks.shape[-2])
    shape = (target.shape[0], min(k, found), codebooks.shape[-3])
    return codes.new_empty(shape, dtype=torch.int64)
