"""What vector and additive codebooks share: values, decoding, gradients, the k-means start."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pvopt.fits.kmeans import kmeans, nearest_centroid
from pvopt_kernels.ops import beam_search, codebook_grad, decode, sum_by_code

from .contract import Parametrization
from pvopt.metrics.block import BlockMetric
from .layout import GroupLayout, check_divides, matrix_shape
from .representation import Representation, code_dtype
from .validation import prepare_fit

__all__ = ["Codebooks"]


class Codebooks(Parametrization):
    r"""Scaled sums of codebook entries, one entry of each codebook per group.

    .. math:: w_g = s_g \sum_{m=1}^{M} C_m[z_{g,m}]

    Values: ``codebooks`` ``[M, 2**B, out_group * in_group]`` and ``scales``
    ``[rows, columns / scale_group]`` with ``rows`` counted in blocks of ``out_group``.
    """

    num_codebooks: int
    out_group: int
    in_group: int
    scale_group: int | None
    beam_size: int
    fit_beam_size: int
    refine_iterations: int

    @property
    def codes_per_group(self) -> int:
        """One code for each codebook."""
        return self.num_codebooks

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits ``B`` of one code."""

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Blocks of ``out_group`` rows and ``in_group`` columns."""
        if self.scale_group is not None:
            check_divides("scale_group", self.scale_group, shape)
        return GroupLayout(shape, self.out_group, self.in_group)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Codebooks, and a scale per block row or per ``scale_group`` inputs of it."""
        rows, columns = matrix_shape(shape)
        group_size = self.out_group * self.in_group
        return {
            "codebooks": (self.num_codebooks, 1 << self.code_bits, group_size),
            "scales": (rows // self.out_group, columns // (self.scale_group or columns)),
        }

    def _scales_of(self, rep: Representation, groups: Tensor | None) -> Tensor:
        """Return the scale of each group, ``[n, 1]``."""
        scales = rep.values["scales"]
        per_scale = rep.codes.shape[1] // scales.shape[1]  # groups are contiguous along a row
        column = scales.reshape(-1, 1)
        if groups is None:
            return column.repeat_interleave(per_scale, dim=0)
        return column.index_select(0, groups.div(per_scale, rounding_mode="floor"))

    def _sum_entries(self, codebooks: Tensor, codes: Tensor) -> Tensor:
        """Return the unscaled sums ``[n, group_size]`` for codes ``[n, M]``."""
        # int32 indices: no wider copy of the codes than index_select needs.
        books, columns = codebooks.unbind(), codes.int().unbind(1)
        total = books[0].index_select(0, columns[0])
        for book, column in zip(books[1:], columns[1:], strict=True):
            total = total + book.index_select(0, column)
        return total

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Return the scaled sums of the groups' entries."""
        codebooks, scales = rep.values["codebooks"], rep.values["scales"]
        if codes is None:
            if groups is None:  # every group as a run of a row: merge gives it its shape
                return decode(rep.codes, codebooks, scales).view(-1, codebooks.shape[2])
            codes = rep.flat_codes.index_select(0, groups)
        return self._sum_entries(codebooks, codes) * self._scales_of(rep, groups)

    def value_gradients(self, rep: Representation, gradient: Tensor) -> dict[str, Tensor]:
        """Sum the gradients of the groups of each entry, and of the groups of each scale."""
        groups = self.split(gradient).reshape(len(rep.codes), -1)  # [rows, cols * g]
        codebooks, scales = rep.values["codebooks"], rep.values["scales"]
        books, of_scales = codebook_grad(groups, rep.codes, codebooks, scales)
        return {"codebooks": books, "scales": of_scales}

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
        """Beam search over the codebooks in random order (exact for a single codebook)."""
        codebooks = rep.values["codebooks"]
        return self._beams(target, codebooks, rep, groups, k, metric, generator)

    def search_block(
        self,
        target: Tensor,
        rep: Representation,
        groups: Tensor | None,
        k: int,
        *,
        metric: BlockMetric,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Search as without a metric, with targets and codebooks mapped."""
        codebooks = metric.map(rep.values["codebooks"])
        return self._beams(metric.map(target), codebooks, rep, groups, k, None, generator)

    def _beams(
        self,
        target: Tensor,
        codebooks: Tensor,
        rep: Representation,
        groups: Tensor | None,
        k: int,
        metric: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        codes = rep.flat_codes if groups is None else rep.flat_codes.index_select(0, groups)
        scales = self._scales_of(rep, groups)
        # In units of the scale; a common factor of a group's errors does not change their order.
        unscaled = (target / scales).masked_fill_(scales == 0, 0.0)
        order = [0]
        if self.num_codebooks > 1:
            source = generator or torch.Generator(target.device).manual_seed(0)
            device = source.device
            order = torch.randperm(self.num_codebooks, generator=source, device=device).tolist()
        return beam_search(
            unscaled,
            codebooks,
            codes.long(),
            k,
            beam_size=self.beam_size,
            order=order,
            metric=metric,
        )

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Residual k-means, then alternate nearest codes, codebook means and scales.

        Every refinement lowers the squared error or leaves it; no data is needed.
        """
        weight, metric, generator = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        layout, shapes = self.layout(shape), self.value_shapes(shape)
        groups = layout.split(weight)  # [G, g]
        importance = None if metric is None else layout.split(metric)
        by_scale = (shapes["scales"][0] * shapes["scales"][1], -1)
        scales = groups.reshape(by_scale).square().mean(1).sqrt()  # root mean square
        scales = torch.where(scales > 0, scales, 1.0).view(shapes["scales"])
        rep = Representation(
            self,
            torch.zeros(
                layout.rows,
                layout.cols,
                self.num_codebooks,
                dtype=code_dtype(self.code_bits),
                device=weight.device,
            ),
            {"codebooks": weight.new_zeros(shapes["codebooks"]), "scales": scales},
            shape,
        )
        spread = self._scales_of(rep, None)  # [G, 1]
        mass = spread.square() if importance is None else spread.square() * importance
        mass = mass.expand_as(groups)
        residual = groups / spread
        for m in range(self.num_codebooks):
            book = rep.values["codebooks"][m]
            book.copy_(kmeans(residual, len(book), weights=mass, generator=generator))
            codes = nearest_centroid(residual, book, importance)
            rep.flat_codes[:, m] = codes.to(rep.codes.dtype)
            residual = residual - book[codes]
        # A wide search at the end gains more than narrow rounds. Squared error of a 2x8g8 layer of
        # SmolLM2 (up_proj), seconds on two cores: k-means alone 0.106, one search of beam 4 0.1026
        # (0.76 s), of beam 6 0.1009 (0.85), after a narrow round 0.1004 (0.95), after two 0.1001
        # (1.03), of beam 8 0.0998 (1.06).
        for beam_size in [1] * self.refine_iterations + [self.fit_beam_size]:
            self._refit_values(rep, groups, importance)
            self._refit_codes(rep, groups, importance, beam_size)
        self._refit_values(rep, groups, importance)
        return rep

    def _refit_codes(
        self, rep: Representation, groups: Tensor, importance: Tensor | None, beam_size: int
    ) -> None:
        """Move every code to the best entry, one codebook after the other."""
        codes = beam_search(
            groups / self._scales_of(rep, None),
            rep.values["codebooks"],
            rep.flat_codes.long(),
            1,
            beam_size=beam_size,
            order=range(self.num_codebooks),
            metric=importance,
        )[:, 0]
        rep.flat_codes.copy_(codes)

    def _refit_values(self, rep: Representation, groups: Tensor, importance: Tensor | None) -> None:
        """Least squares in each codebook in turn, then in the scales (codes fixed)."""
        codebooks, scales = rep.values["codebooks"], rep.values["scales"]
        codes = rep.flat_codes.long()
        spread = self._scales_of(rep, None)  # [G, 1]
        mass = spread.square() if importance is None else spread.square() * importance
        total = self._sum_entries(codebooks, codes)
        pull = spread if importance is None else spread * importance
        for book, code in zip(codebooks, codes.unbind(1), strict=True):
            # argmin_c sum d (w - s (rest + c))^2 = c + sum d s (w - s total) / sum d s^2
            error = (groups - spread * total) * pull
            weight_sum = sum_by_code(mass, code, len(book))
            step = sum_by_code(error, code, len(book)) / weight_sum
            step = torch.where(weight_sum > 0, step, 0.0)
            book += step
            total = total + step[code]
        by_scale = (scales.numel(), -1)
        weighted = total if importance is None else total * importance
        energy = (weighted * total).reshape(by_scale).sum(1)
        fitted = (weighted * groups).reshape(by_scale).sum(1) / energy
        usable = (energy > 0) & (fitted > 0)
        scales.view(-1).copy_(torch.where(usable, fitted, scales.view(-1)))
