"""The data-free start of codebooks: residual k-means, refined by alternating least squares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.ops import beam_search, sum_by_code

from .kmeans import kmeans, nearest_centroid

__all__ = ["fit_codebooks"]


def fit_codebooks(
    groups: Tensor,
    importance: Tensor | None,
    *,
    num_codebooks: int,
    num_entries: int,
    num_scales: int,
    beam_sizes: Sequence[int],
    generator: torch.Generator,
    usual: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Fit scaled sums of codebook entries to groups of weights.

    .. math:: \min_{z, C, s} \sum_g \sum_i d_{gi} \Big(w_{gi} - s_g \sum_m C_m[z_{gm}]_i\Big)^2

    Every refinement lowers the squared error or leaves it. Groups that share a scale and are all
    zero get a scale of 0 and an entry that is not 0, so that a gradient moves the scale; if all
    groups are zero, entries are drawn around one of 0, which all groups have.

    Args:
        groups: ``[G, g]``.
        importance: ``[G, g]`` non-negative ``d``, or None for 1.
        num_codebooks: ``M``.
        num_entries: of a codebook.
        num_scales: ``S``, a divisor of ``G``: neighbouring groups share a scale.
        beam_sizes: one search of all codes for each, after the values were refitted.
        generator: source of random draws.
        usual: size of the entries where all groups are zero.

    Returns:
        Codes ``[G, M]`` int64, codebooks ``[M, K, g]`` and scales ``[S]``.

    Example:
        >>> import torch
        >>> from pvopt.fits import fit_codebooks
        >>> draws = torch.Generator().manual_seed(0)
        >>> groups = torch.tensor([[1.0, -1.0], [2.0, 2.0], [2.0, -2.0], [1.0, 1.0]])
        >>> codes, books, scales = fit_codebooks(
        ...     groups, None, num_codebooks=1, num_entries=2, num_scales=4, beam_sizes=[1],
        ...     generator=draws,
        ... )
        >>> torch.allclose(books[0, codes[:, 0]] * scales[:, None], groups)
        True

    References:
        AQLM (arXiv 2401.06118), section 3.1: the residual k-means start.
    """
    per_scale = len(groups) // num_scales
    scales = groups.reshape(num_scales, -1).square().mean(1).sqrt()  # root mean square
    books = groups.new_zeros(num_codebooks, num_entries, groups.shape[1])
    codes = torch.zeros(len(groups), num_codebooks, dtype=torch.int64, device=groups.device)
    if not bool(scales.any()):
        books[:, 1:].normal_(generator=generator)
        return codes, books, torch.full_like(scales, usual)
    spread = _per_group(scales, per_scale)
    mass = spread.square() if importance is None else spread.square() * importance
    mass = mass.expand_as(groups)
    residual = _unscaled(groups, spread)
    for m, book in enumerate(books):
        book.copy_(kmeans(residual, num_entries, weights=mass, generator=generator))
        codes[:, m] = nearest_centroid(residual, book, importance)
        residual = residual - book[codes[:, m]]
    # A wide search at the end gains more than narrow rounds.
    for beam_size in beam_sizes:
        _refit_values(groups, importance, codes, books, scales)
        codes = beam_search(
            _unscaled(groups, _per_group(scales, per_scale)),
            books,
            codes,
            1,
            beam_size=beam_size,
            order=range(num_codebooks),
            metric=importance,
        )[:, 0]
    _refit_values(groups, importance, codes, books, scales)
    largest = books.square().sum(2).argmax(1)
    codes = torch.where(_per_group(scales, per_scale) == 0, largest, codes)
    return codes, books, scales


def _unscaled(groups: Tensor, spread: Tensor) -> Tensor:
    return torch.where(spread == 0, 0.0, groups / spread)


def _per_group(scales: Tensor, per_scale: int) -> Tensor:
    """Return the scale of each group, ``[G, 1]``."""
    return scales[:, None].repeat_interleave(per_scale, dim=0)


def _refit_values(
    groups: Tensor, importance: Tensor | None, codes: Tensor, books: Tensor, scales: Tensor
) -> None:
    """Least squares in each codebook in turn, then in the scales, in place (codes fixed)."""
    spread = _per_group(scales, len(groups) // len(scales))
    mass = spread.square() if importance is None else spread.square() * importance
    pull = spread if importance is None else spread * importance
    columns = codes.unbind(1)
    total = books[0][columns[0]]
    for book, code in zip(books[1:], columns[1:], strict=True):
        total = total + book[code]
    for book, code in zip(books, columns, strict=True):
        # argmin_c sum d (w - s (rest + c))^2 = c + sum d s (w - s total) / sum d s^2
        error = (groups - spread * total) * pull
        weight_sum = sum_by_code(mass, code, len(book))
        step = sum_by_code(error, code, len(book)) / weight_sum
        step = torch.where(weight_sum > 0, step, 0.0)
        book += step
        total = total + step[code]
    by_scale = (len(scales), -1)
    weighted = total if importance is None else total * importance
    energy = (weighted * total).reshape(by_scale).sum(1)
    fitted = (weighted * groups).reshape(by_scale).sum(1) / energy
    scales.copy_(torch.where((energy > 0) & (fitted > 0), fitted, scales))
