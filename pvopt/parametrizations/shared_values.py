"""R^d_{<=c}: one table of c scalars for the whole weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.fits.kmeans import kmeans, nearest_centroid
from pvopt_kernels.ops import smallest, sum_by_code

from .contract import Parametrization
from .candidates import Candidates
from .layout import GroupLayout, matrix_shape
from .representation import Representation, code_dtype
from .validation import check_integer, prepare_fit

__all__ = ["SharedValues"]

# Distances of one chunk: 4 MiB of float32, which stays in the second-level caches.
_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class SharedValues(Parametrization):
    r"""A weight with at most ``c`` distinct entries: the theory's own space.

    .. math:: w_i = v_{z_i}, \qquad v \in \mathbb{R}^c

    Values: ``values`` ``[c]``. Every weight is a group of its own.

    Args:
        num_values: ``c``, 1 to 65536.

    Raises:
        TypeError: if ``num_values`` is no integer.
        ValueError: if it is out of range.

    Example:
        >>> rep = SharedValues(2).fit(torch.tensor([1.0, 1.2, 3.0]))
        >>> rep.decode()
        tensor([1.1000, 1.1000, 3.0000])

    References:
        PV-Tuning (arXiv 2405.14852), section 3: the problem over R^d_{<=c}.
    """

    num_values: int

    def __post_init__(self) -> None:
        check_integer("num_values", self.num_values, 1, 1 << 16)

    @property
    def code_bits(self) -> int:
        """Bits that number ``num_values`` values."""
        return max(1, (self.num_values - 1).bit_length())

    @property
    def num_codes(self) -> int:
        """One code for each value."""
        return self.num_values

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Every weight is its own group."""
        return GroupLayout(shape, 1, 1)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """One table of ``c`` scalars."""
        return {"values": (self.num_values,)}

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Cluster the entries by k-means; exact if there are at most ``c`` distinct ones."""
        weight, metric, generator = prepare_fit(weight, metric, generator)
        points = weight.reshape(-1, 1)
        importance = None if metric is None else metric.reshape(-1, 1)
        values = kmeans(points, self.num_values, weights=importance, generator=generator)
        values = values.sort(dim=0).values
        codes = nearest_centroid(points, values).view(*matrix_shape(weight.shape), 1)
        codes = codes.to(code_dtype(self.code_bits))
        return Representation(self, codes, {"values": values.flatten()}, tuple(weight.shape))

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Look the values up."""
        if codes is None:
            codes = rep.flat_codes if groups is None else rep.flat_codes[groups]
        return rep.values["values"][codes.long()]  # [n, 1]

    def search(
        self,
        target: Tensor,
        rep: Representation,
        groups: Tensor | None,
        k: int,
        *,
        metric: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Compare with every value; a metric scales all of a weight's distances alike."""
        values = rep.values["values"]
        k = min(k, self.num_values)
        chunk = max(1, _CHUNK_ELEMENTS // self.num_values)
        found = [
            smallest((part - values).square_(), k)[1]
            for part in target.split(chunk)  # [chunk, 1] - [c]
        ]
        return torch.cat(found)[..., None]

    def bracket(self, target: Tensor, rep: Representation, groups: Tensor | None) -> Candidates:
        """Return the values next below and above each target."""
        values, order = rep.values["values"].sort()
        above = torch.searchsorted(values, target[:, 0].to(values.dtype).contiguous())
        below = torch.where(above < len(values), above, len(values) - 1)
        # searchsorted finds the first value >= target; the one before it is the one below.
        exact = values[below] == target[:, 0]
        below = torch.where(exact | (above == len(values)), below, (above - 1).clamp_min(0))
        above = above.clamp_max(len(values) - 1)
        codes = order[torch.stack([below, above], dim=1)][..., None]  # [n, 2, 1]
        return Candidates(codes, self._errors(target, rep, groups, codes, None))

    def value_gradients(self, rep: Representation, gradient: Tensor) -> dict[str, Tensor]:
        """Sum the gradients of the members of each value."""
        gradient = gradient.reshape(-1, 1).to(rep.dtype)
        total = sum_by_code(gradient, rep.flat_codes[:, 0].long(), self.num_values)
        return {"values": total.flatten()}
