"""Grids whose scales are codes: fits near those of free scales, at the least squares of values."""

from __future__ import annotations

import pytest
import torch

from pvopt import AffineGrid, Diagonal, NestedGrid, Representation


def weights(seed: int) -> torch.Tensor:
    """Groups of unlike sizes, some of one sign, some of zeros, a super-block of zeros."""
    draws = torch.Generator().manual_seed(seed)
    sizes = torch.rand(6, 32, 1, generator=draws).exp()
    found = (torch.randn(6, 32, 16, generator=draws) * sizes).double()
    found[:, 3], found[:, 5], found[1, 7] = found[:, 3].abs() + 1.0, -found[:, 5].abs(), 0.0
    found[2, 16:] = 0.0
    return found.reshape(6, 512)


def error(rep: Representation, weight: torch.Tensor, own: torch.Tensor | float = 1.0) -> float:
    return float(((rep.decode() - weight).square() * own).sum())


def test_codes_of_scales_cost_little():
    weight, form = weights(0), NestedGrid()
    rep = form.fit(weight)
    free = AffineGrid(bits=2, group_size=16).fit(weight)
    plain = AffineGrid(bits=2, group_size=64).fit(weight)
    assert error(rep, weight) < min(1.3 * error(free, weight), 0.8 * error(plain, weight))
    blank = weight.view(6, 32, 16).eq(0).all(2)
    assert bool((rep.decode().view(6, 32, 16)[blank] == 0).all())
    assert bool((rep.values["scales"] > 0).all())
    assert bool((rep.values["offsets"] <= 0).all())  # as files of llama.cpp have them
    for name, stream in form.streams((6, 512)).items():
        stream.check(name, rep.codes[name])


def test_values_are_those_of_least_squares():
    weight = weights(1)
    own = torch.rand(6, 512, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rep = NestedGrid().fit(weight, metric=Diagonal(own))
    assert error(rep, weight, own) < error(NestedGrid().fit(weight), weight, own)
    gradient = 2 * (rep.decode() - weight) * own
    pulled = rep.pull([gradient])
    for name, value in pulled.items():
        assert float((value * rep.values[name]).abs().max()) < 0.02 * error(rep, weight, own)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"bits": 9}, ValueError, r"bits must be in 1\.\.8, got 9"),
        ({"groups": 0}, ValueError, r"groups must be in 1\.\.\d+, got 0"),
        ({"scale_bits": 9}, ValueError, r"scale_bits must be in 1\.\.8, got 9"),
        ({"group_size": 16.0}, TypeError, "group_size must be an int"),
    ],
)
def test_settings_out_of_range_are_refused(settings, kind, message):
    with pytest.raises(kind, match=message):
        NestedGrid(**settings)
    with pytest.raises(ValueError, match="group_size \\* groups=256 does not divide the 384 colu"):
        NestedGrid().fit(torch.zeros(2, 384))
