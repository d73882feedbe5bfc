"""Inputs in another order, as activation order (GPTQ's g_idx) has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.layout import matrix_shape
from pvopt.core.registry import ShortForm
from pvopt.core.streams import CodeStream
from pvopt.metrics.contract import Metric

from .contract import SPACES, Space

__all__ = ["Permutation"]


@dataclass(frozen=True)
class Permutation(Space):
    r"""The columns of a weight in another order, so that like inputs share a group.

    .. math:: \hat W_{:,j} = W_{:,\pi(j)}

    A start orders the inputs by their importance: by the diagonal of the metric, largest first
    (activation order), or by the squared norm of their columns where there is none. Owns a stream
    ``order`` ``[columns]``, the permutation.

    Example:
        >>> import torch
        >>> from pvopt import Permutation
        >>> space, weight = Permutation(), torch.tensor([[1.0, 3.0, 2.0]])
        >>> owned, _ = space.start(weight, None)
        >>> space.enter(weight, owned)
        tensor([[3., 2., 1.]])

    References:
        GPTQ (arXiv 2210.17323), section 3.3; its public code calls it ``act-order``.
    """

    on_activations = True

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        columns = matrix_shape(shape)[1]
        return {"order": CodeStream(shape=(columns,), num_codes=columns, moves=False)}

    def check_codes(self, codes: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        columns = matrix_shape(shape)[1]
        orders = codes["order"].view(-1, columns)
        every = torch.arange(columns, device=orders.device)
        if not bool((orders.sort(dim=1).values == every).all()):
            raise ValueError(f"order must name each of {columns} columns once")

    def start(
        self, weight: Tensor, metric: Metric | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        shape = tuple(weight.shape)
        matrix = weight.reshape(matrix_shape(shape))
        if metric is None:
            importance = matrix.square().sum(0)
        else:
            importance = metric.diagonal(shape).reshape(matrix.shape).double().sum(0)
        order = importance.argsort(descending=True, stable=True)
        return {"order": order.to(self.streams(shape)["order"].dtype)}, {}

    def enter(self, weight: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return _take(weight, owned["order"].int(), tuple(weight.shape))

    def leave(self, inner: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        return _take(inner, owned["order"].long().argsort().int(), shape)

    def enter_inputs(self, x: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return x.index_select(-1, owned["order"].int())

    def leave_outputs(
        self, y: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Tensor:
        return y

    def enter_metric(
        self, metric: Metric | None, shape: tuple[int, ...], owned: Mapping[str, Tensor]
    ) -> Metric | None:
        return None if metric is None else metric.permuted(owned["order"].int(), shape)


def _take(weight: Tensor, order: Tensor, shape: tuple[int, ...]) -> Tensor:
    return weight.reshape(matrix_shape(shape)).index_select(1, order).view(shape)


SPACES.register(
    ShortForm(
        form="perm+FORM",
        meaning="any of these, the inputs ordered by their importance",
        example="perm+grid:2g64",
        pattern="perm",
        settings=dict,
        write=lambda space: "perm",
    )
)(Permutation)
