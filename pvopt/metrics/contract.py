"""The contract of metrics: between weights, and between the weights of one group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout
from pvopt.core.views import MatrixView

__all__ = ["GroupCosts", "GroupMetric", "Metric"]


class GroupMetric(ABC):
    """A metric between the weights of a group, for some groups; what a search of codes is given."""

    #: Whether it couples the weights of a group; it is then more than weights of squared errors.
    couples: ClassVar[bool]

    @abstractmethod
    def squared_norms(self, vectors: Tensor) -> Tensor:
        """Return the squared norm of one vector of each group.

        Args:
            vectors: ``[n, ..., group_size]``.

        Returns:
            ``[n, ...]``.
        """

    @abstractmethod
    def diagonal(self, vectors: Tensor) -> Tensor:
        """Return the weights of squared errors on the diagonal, ``[n, group_size]``.

        Args:
            vectors: ``[n, group_size]``, for shape and dtype.
        """

    def map(self, vectors: Tensor) -> Tensor:
        """Return vectors whose Euclidean distances are the metric's; where it couples weights.

        Args:
            vectors: ``[..., group_size]``.
        """
        raise NotImplementedError(f"{type(self).__name__} maps no vectors")


class GroupCosts(ABC):
    r"""What moving groups costs in a metric, while the others stay.

    Everything is in terms of :math:`\tfrac12\|t - w\|^2` for the target ``t``, in the space of the
    groups, ``[num_groups, group_size]`` tensors in the layout's order.
    """

    #: Whether what a group costs depends on the codes of other groups.
    coupled: ClassVar[bool]

    @abstractmethod
    def rounds(self, groups: Tensor) -> Sequence[tuple[int, Tensor | slice]]:
        """Return which groups may be searched at once, in the order of their turns.

        Args:
            groups: ``[n]`` distinct group numbers.

        Returns:
            A number and the places in ``groups``, for each round.
        """

    @abstractmethod
    def goal(
        self, number: int, groups: Tensor, target: Tensor, decoded: Tensor, error: Tensor
    ) -> tuple[Tensor, GroupMetric | None]:
        r"""Return where each group of a round would best be, and how far any place is from it.

        With the others as they are, the squared error is :math:`\|c - \text{goal}\|^2` for a
        group at ``c``, up to a constant.

        Args:
            number: of the round.
            groups: ``[n]`` its groups.
            target: ``[num_groups, group_size]``.
            decoded: the groups before any move.
            error: the groups as they are now, minus the target.

        Returns:
            ``[n, group_size]``, and the metric (None for the Euclidean).
        """

    @abstractmethod
    def squared_norms(self, vectors: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return the squared norms of weights that are zero but for one group, ``[n]``.

        Args:
            vectors: ``[n, group_size]``, the groups.
            groups: ``[n]`` their numbers; None stands for all in order.
        """

    @abstractmethod
    def bounds(self, error: Tensor) -> Tensor:
        """Return what each group could lower the squared error by if it may take any weights.

        Args:
            error: ``[num_groups, group_size]``.

        Returns:
            ``[num_groups]``, non-negative: halves of squared norms.
        """


class Metric(ABC):
    """A metric between weights: settings and tensors, of one weight."""

    @abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a ValueError unless the metric fits a weight of a shape."""

    @abstractmethod
    def squared_norm(self, weight: Tensor) -> Tensor:
        """Return the squared norm of a weight ``[*shape]``, a scalar."""

    @abstractmethod
    def diagonal(self, shape: tuple[int, ...]) -> Tensor:
        """Return the weight of each squared error by itself, ``[*shape]``."""

    @abstractmethod
    def costs(self, layout: GroupLayout, like: Tensor) -> GroupCosts:
        """Cut the metric to groups.

        Args:
            layout: of the weight.
            like: whose device and dtype the costs have.
        """

    def of_matrices(self, view: MatrixView, shape: tuple[int, ...]) -> Sequence[Metric]:
        """Return the metric of each matrix of a weight; all share one that is of matrices.

        Args:
            view: how the weight's tensor holds matrices.
            shape: of the weight.
        """
        return [self] * view.count(shape)

    @abstractmethod
    def permuted(self, order: Tensor, shape: tuple[int, ...]) -> Metric:
        """Return the metric of weights whose columns are in another order.

        Args:
            order: ``[columns]`` int32, the column that stands in each place.
            shape: of the weight.
        """

    @abstractmethod
    def scaled(self, rows: Tensor | None, columns: Tensor | None, shape: tuple[int, ...]) -> Metric:
        r"""Return the metric of weights that were divided by scales.

        .. math:: \|\hat W\|_{\hat D} = \|\mathrm{diag}(r)\, \hat W\, \mathrm{diag}(c)\|_D

        Args:
            rows: ``[rows]``, or None for 1.
            columns: ``[columns]``, or None for 1.
            shape: of the weight.

        Raises:
            TypeError: if the metric has no such form.
        """

    @abstractmethod
    def rotated(self, rotate: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Metric:
        r"""Return the metric of weights that were rotated, rows and columns.

        .. math:: \|\hat W\|_{\hat D} = \|U' \hat W V\|_D

        Args:
            rotate: applies ``V`` along the last axis of a matrix: ``x V'``.
            shape: of the weight.

        Raises:
            TypeError: if the metric has no such form, because it differs between rows.
        """

    @abstractmethod
    def padded(self, shape: tuple[int, ...], inner: tuple[int, int]) -> Metric:
        """Return the metric of weights that were padded: columns beyond the weight are free.

        So are rows beyond it, unless all rows share the metric: they count as the others do.

        Args:
            shape: of the weight.
            inner: rows and columns of the padded one.
        """

    def without_row(self, row: int, shape: tuple[int, ...]) -> Metric:
        """Return the metric of weights without one of their rows; the same if all rows share it.

        Args:
            row: number of the row.
            shape: of the weight.
        """
        return self

    @abstractmethod
    def normalized(self) -> Metric:
        """Return the positive multiple whose diagonal is 1 on average; of a zero metric all ones.

        Nearness does not depend on the multiple: on the number of tokens, on the unit of the
        inputs. Normalized ones neither overflow nor underflow.
        """

    def relative_error(self, weight: Tensor, other: Tensor) -> float:
        r"""Return how far another weight is, relative to the weight, in float64.

        .. math:: \frac{\|W - W_q\|_D}{\|W\|_D}

        With :class:`pvopt.Row` of ``X'X`` this is the relative error of a layer's outputs.

        Args:
            weight: ``[*shape]``.
            other: ``[*shape]``.

        Returns:
            The ratio; 0 for no error, infinite for an error where the weight is 0.
        """
        weight = weight.double()
        error = self.squared_norm(weight - other.double()).clamp(min=0)
        return float((error / self.squared_norm(weight)).sqrt()) if error > 0 else 0.0

    @abstractmethod
    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Metric:
        """Return the metric on a device, in a dtype (None: its own)."""
