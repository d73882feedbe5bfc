"""What vector and additive codebooks share: values, decoding, gradients, the k-means start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout, check_divides, matrix_shape
from pvopt.core.streams import CodeStream
from pvopt.core.validation import check_integer
from pvopt.fits.codebooks import fit_codebooks
from pvopt.metrics.contract import Metric
from pvopt_kernels.ops import (
    beam_search,
    better_codes,
    decode,
    decode_into,
    decoded_sq_norms,
    matmul,
    stacked_codebook_grad,
)
from pvopt_kernels.ops import decode_groups as decode_some
from pvopt_kernels.ops import largest_changes as farthest

from .contract import Parametrization
from .options import FitOptions
from .preparation import prepare_fit, usual_size
from .query import Candidates, Query
from .representation import Representation
from .storage import Storage

__all__ = ["Codebooks", "check_scale_group"]


def check_scale_group(scale_group: int | None, group_name: str, group_size: int) -> None:
    """Raise unless ``scale_group`` is None or a multiple of the group.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is not a positive multiple.
    """
    if scale_group is None:
        return
    check_integer("scale_group", scale_group, 1, 1 << 30)
    if scale_group % group_size:
        raise ValueError(
            f"scale_group must be a multiple of {group_name}={group_size}, got {scale_group}"
        )


class Codebooks(Parametrization):
    r"""Scaled sums of codebook entries, one entry of each codebook per group.

    .. math:: w_g = s_g \sum_{m=1}^{M} C_m[z_{g,m}]

    Values: ``codebooks`` ``[M, 2**B, out_group * in_group]`` and ``scales``
    ``[rows, columns / scale_group]`` with ``rows`` counted in blocks of ``out_group``.
    """

    stacks = True
    common_values = ("codebooks",)
    couples = True
    pull_sums_all = True

    #: Combinations of the fit's last search, and its rounds before that.
    usual_fit_beam: ClassVar[int]
    usual_iterations: ClassVar[int]

    num_codebooks: int
    out_group: int
    in_group: int
    bits: int
    scale_group: int | None

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        layout = self.layout(shape)
        size = (layout.rows, layout.cols, self.num_codebooks)
        return {"entries": CodeStream(shape=size, num_codes=1 << self.bits)}

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        if self.scale_group is not None:
            check_divides("scale_group", self.scale_group, shape)
        return GroupLayout(shape, self.out_group, self.in_group)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        rows, columns = matrix_shape(shape)
        group_size = self.out_group * self.in_group
        return {
            "codebooks": (self.num_codebooks, 1 << self.bits, group_size),
            "scales": (rows // self.out_group, columns // (self.scale_group or columns)),
        }

    def _books(self, rep: Representation) -> Tensor:
        """Return the codebooks of each weight, ``[count, M, K, group_size]``."""
        return rep.values_of_each("codebooks")

    def _scales_of(self, rep: Representation, groups: Tensor | None) -> Tensor:
        """Return the scale of each group, ``[n, 1]``."""
        scales = rep.values["scales"]
        per_scale = rep.layout.cols // scales.shape[1]  # groups are contiguous along a row
        column = scales.reshape(-1, 1)
        if groups is None:
            return column.repeat_interleave(per_scale, dim=0)
        return column.index_select(0, groups.div(per_scale, rounding_mode="floor"))

    def _sums(self, rep: Representation, codes: Tensor) -> Tensor:
        """Return the unscaled sums ``[n, group_size]`` for codes ``[n, M]``."""
        books = self._books(rep)
        count, number, entries, size = books.shape
        # int32 indices: no wider copy of the codes than index_select needs.
        index = codes.int()
        if count > 1:  # equally many groups of each weight: codes count through all books
            index = index.view(count, -1, number)
        end = count * number * entries
        first = torch.arange(0, end, entries, dtype=torch.int32, device=codes.device)
        flat = books.view(-1, size)
        columns = (index + first.view(count, 1, number)).view(-1, number).unbind(1)
        total = flat.index_select(0, columns[0])
        for column in columns[1:]:
            total = total + flat.index_select(0, column)
        return total

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Return the scaled sums of the groups' entries."""
        if groups is not None and not torch.is_grad_enabled():
            own = None if codes is None else codes.long()
            return decode_some(groups, *self._stacked(rep), out_group=self.out_group, new_codes=own)
        if codes is None:
            if groups is None and rep.count == 1:  # every group as a run of a row
                books, scales = rep.values["codebooks"], rep.values["scales"]
                return decode(rep.codes["entries"], books, scales).view(-1, books.shape[2])
            codes = rep.group_codes(groups)
        return self._sums(rep, codes) * self._scales_of(rep, groups)

    def _stacked(self, rep: Representation) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, codebooks and scales of each weight, as the kernels take them."""
        codes, scales = rep.codes_of_each("entries"), rep.values_of_each("scales")
        return codes, self._books(rep), scales

    def _matrices(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return dense weights of any shape as matrices, which share their memory if possible."""
        return [t if t.dim() == 2 else t.reshape(matrix_shape(t.shape)) for t in tensors]

    def pull(self, rep: Representation, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Sum the gradients of the groups of each entry, and of the groups of each scale."""
        found = stacked_codebook_grad(
            self._matrices(gradients), *self._stacked(rep), out_group=self.out_group
        )
        return {"codebooks": found[0].flatten(0, 1), "scales": found[1].flatten(0, 1)}

    def change_norms(self, rep: Representation, targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return decoded_sq_norms(
            self._matrices(targets), *self._stacked(rep), out_group=self.out_group
        )

    def largest_changes(
        self, rep: Representation, targets: Sequence[Tensor], count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        stack = self._matrices(targets), *self._stacked(rep)
        return farthest(*stack, count, out_group=self.out_group)

    def write_into(self, rep: Representation, weights: Sequence[Tensor]) -> None:
        matrices = self._matrices(weights)
        decode_into(matrices, *self._stacked(rep), out_group=self.out_group)
        for weight, matrix in zip(weights, matrices, strict=True):
            if matrix.data_ptr() != weight.data_ptr():  # a convolution in channels_last
                weight.copy_(matrix.view(weight.shape))

    def candidates(self, query: Query) -> Candidates:
        if query.count > 1 or query.metric is not None or query.groups is None:
            return super().candidates(query)
        codes, decoded, errors, current, present = better_codes(
            query.target,
            query.groups,
            *self._stacked(query.rep),
            beam_size=query.options.beam_size or self.usual_beam,
            order=self._order(query),
            out_group=self.out_group,
        )
        query.remember(current, present)
        return Candidates(codes, errors, decoded)

    def _order(self, query: Query) -> list[int]:
        """Return the order in which a search visits the codebooks."""
        return query.permutation(self.num_codebooks) if self.num_codebooks > 1 else [0]

    def search(self, query: Query) -> Tensor:
        """Beam search over the codebooks in random order (exact for a single codebook).

        Where a metric couples the weights of a group, targets and codebooks are mapped to where it
        is the Euclidean one.
        """
        rep, target, metric = query.rep, query.target, query.metric
        scales = self._scales_of(rep, query.groups)
        # In units of the scale; a common factor of a group's errors does not change their order.
        unscaled = (target / scales).masked_fill_(scales == 0, 0.0)
        books, weights = self._books(rep), query.weights
        if metric is not None and metric.couples:
            unscaled, books, weights = metric.map(unscaled), metric.map(books), None
        beam = query.options.beam_size or self.usual_beam
        order = self._order(query)
        return beam_search(
            unscaled,
            books[0] if rep.count == 1 else books,
            query.current(),
            query.count,
            beam_size=beam,
            order=order,
            metric=weights,
        )

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Residual k-means, then alternate nearest codes, codebook means and scales.

        Every refinement lowers the squared error or leaves it; no data is needed.
        """
        weight, importance, generator = prepare_fit(weight, metric, generator)
        options = options or FitOptions()
        shape = tuple(weight.shape)
        layout, sizes = self.layout(shape), self.value_shapes(shape)
        rounds = self.usual_iterations if options.iterations is None else options.iterations
        codes, books, scales = fit_codebooks(
            layout.split(weight),
            None if importance is None else layout.split(importance),
            num_codebooks=self.num_codebooks,
            num_entries=1 << self.bits,
            num_scales=sizes["scales"][0] * sizes["scales"][1],
            beam_sizes=[1] * rounds + [options.beam_size or self.usual_fit_beam],
            generator=generator,
            usual=usual_size(shape),
        )
        stream = self.streams(shape)["entries"]
        return Representation(
            self,
            {"entries": codes.to(stream.dtype).view(stream.shape)},
            {"codebooks": books, "scales": scales.view(sizes["scales"])},
            shape,
        )

    def storage(self, shape: tuple[int, int]) -> Storage:
        return _BookStorage(self, shape)


class _BookStorage(Storage):
    """Codes of codebooks, one or two bytes each, as the kernels read them."""

    parametrization: Codebooks

    def _stream(self) -> tuple[tuple[int, ...], torch.dtype]:
        stream = self.parametrization.streams(self.shape)["entries"]
        return stream.shape, torch.uint8 if stream.bits <= 8 else torch.int16

    def empty(self, device: torch.device | str | None) -> dict[str, Tensor]:
        shape, dtype = self._stream()
        return {"entries": torch.zeros(shape, dtype=dtype, device=device)}

    def store(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Narrow the codes; those from 32768 on become negative."""
        return {"entries": codes["entries"].to(self._stream()[1], copy=True)}

    def read(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        entries = stored["entries"]
        wide = entries.clone() if entries.dtype == torch.uint8 else entries.int() & 0xFFFF
        return {"entries": wide}

    def multiply(
        self, x: Tensor, stored: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> Tensor:
        """Multiply without making the weight dense."""
        books, scales = values["codebooks"], values["scales"]
        out_group = self.parametrization.out_group
        return matmul(x, stored["entries"], books, scales, out_group=out_group)

    @property
    def decodes(self) -> bool:
        return False
