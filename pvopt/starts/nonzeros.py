"""Round the nonzeros of a sparse weight one by one; the others of a row make up for the errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.metrics.diagonal import Diagonal
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.options import FitOptions
from pvopt.parametrizations.query import Query
from pvopt.parametrizations.representation import Representation

__all__ = ["round_nonzeros"]

# Elements of the factors of one chunk of rows: 32 MiB of float64.
_CHUNK_ELEMENTS = 1 << 22


def round_nonzeros(
    weight: Tensor,
    support: Tensor,
    hessian: Tensor,
    inner: Parametrization,
    shape: tuple[int, int],
    *,
    options: FitOptions | None = None,
    generator: torch.Generator,
) -> Representation:
    r"""Return codes and values of nonzeros whose errors make up for one another.

    The recursion of :class:`GPTQ` on the support of each row by itself, as if there were no other
    columns: with :math:`H_{SS} = R R'`, the nonzeros in the order of decreasing :math:`H_{ii}`,

    .. math:: w_{>j} \leftarrow w_{>j} - (w_j - q_j)\, R_{jj}\, (R^{-1})_{j, >j}

    Values are those of a fit in which a nonzero counts by its :math:`R_{jj}^2`.

    Args:
        weight: ``[rows, in]``, least squares on the support.
        support: ``[rows, in]`` bool.
        hessian: ``[in, in]`` float64, positive definite.
        inner: parametrization of the nonzeros. Where one code stands for several, it is fitted by
            itself, each nonzero counting by its :math:`H_{ii}`.
        shape: of the matrix of nonzeros, row after row.
        options: how hard the fit tries.
        generator: source of random draws.

    Returns:
        A representation of the matrix of nonzeros.
    """
    rest = weight[support]
    if inner.layout(shape).group_size > 1:
        costs = hessian.diagonal().expand_as(support)[support].to(rest)
        metric = Diagonal(costs.view(shape))
        return inner.fit(rest.view(shape), metric=metric, options=options, generator=generator)
    costs = torch.ones_like(rest)
    for part in _parts(support, hessian, rest.dtype):
        cost = part.factor.diagonal(dim1=1, dim2=2).square()
        costs[part.numbers[part.used]] = cost[part.used]
    metric = Diagonal(costs.view(shape))
    rep = inner.fit(rest.view(shape), metric=metric, options=options, generator=generator)
    draws = Draws.of(generator, rep.device)
    for part in _parts(support, hessian, rest.dtype):
        present = torch.where(part.used, rest[part.numbers], 0.0)  # [n, largest]
        for place in range(present.shape[1]):
            used = part.used[:, place]
            groups, target = part.numbers[used, place], present[used, place, None]
            query = Query(target=target, rep=rep, groups=groups, draws=draws)
            codes = inner.candidates(query).codes[:, 0]
            error = target - inner.decode_groups(rep, groups, codes)
            rep.write_codes_(groups, codes)
            scaled = error * part.factor[used, place, place, None]
            present[used, place + 1 :] -= scaled * part.inverse[used, place, place + 1 :]
    return rep


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows: their nonzeros in the order of the visits, filled up to the same number.

    Args:
        used: ``[n, largest]`` whether a nonzero is there.
        numbers: ``[n, largest]`` of the nonzeros among all; 0 where there is none.
        factor: ``[n, largest, largest]``, R.
        inverse: its inverse.
    """

    used: Tensor
    numbers: Tensor
    factor: Tensor
    inverse: Tensor


def _parts(support: Tensor, hessian: Tensor, dtype: torch.dtype) -> Iterator[_Part]:
    energy = hessian.diagonal()
    every = (support.flatten().cumsum(0) - 1).view(support.shape)  # the number of each nonzero
    largest = int(support.sum(1).max())
    chunk = max(1, _CHUNK_ELEMENTS // max(1, largest) ** 2)
    for start in range(0, len(support), chunk):
        here, numbers = support[start : start + chunk], every[start : start + chunk]
        order = torch.where(here, energy, -1.0).argsort(dim=1, descending=True, stable=True)
        order = order[:, :largest]
        used = here.gather(1, order)
        # Filled up by the identity, and turned round: R R' = H for an upper triangular R.
        back, there = order.flip(1), used.flip(1)
        matrix = hessian[back[:, :, None], back[:, None, :]] * (there[:, :, None] & there[:, None])
        matrix.diagonal(dim1=1, dim2=2).add_((~there).to(matrix))
        factor = torch.linalg.cholesky(matrix).flip(1, 2)
        eye = torch.eye(largest, dtype=factor.dtype, device=factor.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=True)
        own = torch.where(used, numbers.gather(1, order), 0)
        yield _Part(used, own, factor.to(dtype), inverse.to(dtype))
