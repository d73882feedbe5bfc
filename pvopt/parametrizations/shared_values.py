"""R^d_{<=c}: one table of c scalars for the whole weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout, matrix_shape
from pvopt.core.registry import ShortForm
from pvopt.core.streams import CodeStream
from pvopt.core.validation import check_integer
from pvopt.fits.scalars import nearest_scalar, scalar_kmeans
from pvopt.metrics.contract import Metric
from pvopt_kernels.ops import smallest, sum_by_code

from .contract import Parametrization
from .options import FitOptions
from .preparation import prepare_fit, usual_size
from .query import Candidates, Query
from .registry import PARAMETRIZATIONS
from .representation import Representation

__all__ = ["SharedValues"]

# Distances of one chunk: 4 MiB of float32, which stays in the second-level caches.
_CHUNK_ELEMENTS = 1 << 20


@PARAMETRIZATIONS.register(
    ShortForm(
        form="values:C",
        meaning="a table of C values for the whole weight",
        example="values:4",
        pattern=r"values:?(\d+)",
        settings=lambda count: dict(num_values=int(count)),
        write=lambda p: f"values:{p.num_values}",
    )
)
@dataclass(frozen=True, kw_only=True)
class SharedValues(Parametrization):
    r"""A weight with at most ``c`` distinct entries: the theory's own space.

    .. math:: w_i = v_{z_i}, \qquad v \in \mathbb{R}^c

    Values: ``values`` ``[c]``. Every weight is a group of its own.

    Args:
        num_values: ``c``, 1 to 65536.

    Raises:
        TypeError: if ``num_values`` is not an integer.
        ValueError: if it is out of range.

    Example:
        >>> import torch
        >>> from pvopt import SharedValues
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([1.0, 1.2, 3.0]))
        >>> rep.decode()
        tensor([1.1000, 1.1000, 3.0000])

    References:
        PV-Tuning (arXiv 2405.14852), section 3: the problem over R^d_{<=c}.
    """

    num_values: int

    def __post_init__(self) -> None:
        check_integer("num_values", self.num_values, 1, 1 << 16)

    stacks = True
    common_values = ("values",)
    pull_sums_all = True
    has_levels = True
    scaling = ("values",)

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        rows, columns = matrix_shape(shape)
        return {"entries": CodeStream(shape=(rows, columns, 1), num_codes=self.num_values)}

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        return GroupLayout(shape, 1, 1)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"values": (self.num_values,)}

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Cluster the entries by k-means; exact if there are at most ``c`` distinct ones."""
        weight, importance, generator = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        points = weight.flatten()
        weights = None if importance is None else importance.flatten()
        if bool(points.any()):
            values = scalar_kmeans(points, self.num_values, weights=weights, generator=generator)
        else:
            values = self._around_zero(usual_size(shape), points)
        stream = self.streams(shape)["entries"]
        entries = nearest_scalar(points, values).view(stream.shape).to(stream.dtype)
        return Representation(self, {"entries": entries}, {"values": values}, shape)

    def _around_zero(self, size: float, like: Tensor) -> Tensor:
        """Return quantiles of a normal distribution, one of them 0: a weight that is 0 can move."""
        levels = torch.arange(self.num_values, dtype=torch.float64, device=like.device)
        values = size * torch.special.ndtri((levels + 0.5) / self.num_values)
        values[values.abs().argmin()] = 0.0
        return values.to(like.dtype)

    def _tables(self, rep: Representation) -> Tensor:
        """Return the values of each weight, ``[count, c]``."""
        return rep.values["values"].view(rep.count, self.num_values)

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Look the values up."""
        if codes is None:
            codes = rep.group_codes(groups)
        by_weight = codes.view(rep.count, -1).long()  # equally many groups of each weight
        return self._tables(rep).gather(1, by_weight).view(-1, 1)

    def search(self, query: Query) -> Tensor:
        """Compare with every value; a metric scales all of a weight's distances alike."""
        k = min(query.count, self.num_values)
        tables = self._tables(query.rep)
        chunk = max(1, _CHUNK_ELEMENTS // self.num_values)
        found = [
            smallest((part - values).square_(), k)[1]
            for column, values in zip(query.target.view(len(tables), -1, 1), tables, strict=True)
            for part in column.split(chunk)  # [chunk, 1] - [c]
        ]
        return torch.cat(found)[..., None]  # [n, k, 1]

    def bracket(self, query: Query) -> Candidates:
        values, order = self._tables(query.rep).sort(dim=1)
        target = query.target.to(values.dtype).reshape(len(values), -1)
        last = self.num_values - 1
        above = torch.searchsorted(values, target)
        below = above.clamp_max(last)
        # searchsorted finds the first value >= target; the one before it is the one below.
        exact = values.gather(1, below) == target
        below = torch.where(exact | (above > last), below, (above - 1).clamp_min(0))
        both = torch.stack([below, above.clamp_max(last)], dim=2)
        codes = order.gather(1, both.flatten(1)).view(-1, 2, 1)
        return Candidates(codes, self.errors(query.but(metric=None), codes))

    def pull(self, rep: Representation, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Sum the gradients of the members of each value."""
        parts = []
        for member, gradient in zip(rep.members(), gradients, strict=True):
            column = gradient.reshape(-1, 1).to(rep.dtype)
            codes = member.group_codes()[:, 0].long()
            parts.append(sum_by_code(column, codes, self.num_values).flatten())
        return {"values": torch.cat(parts)}
