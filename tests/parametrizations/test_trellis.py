"""Trellises: decoding by hand, searches against all strings of bits, fits, settings."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pvopt import (
    Diagonal,
    FitOptions,
    Query,
    Representation,
    Rotation,
    Scheme,
    SearchOptions,
    Trellis,
    parse_scheme,
)
from pvopt.metrics.diagonal import GroupDiagonal
from pvopt.parametrizations.trellis_codes import start_table
from pvopt_kernels import hybrid_index, trellis_table

CODES = ["mul1", "mcg", "3inst", "1mad", "hyb", "table"]


def gaussian(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def draw(trellis: Trellis, shape: tuple[int, int], seed: int) -> Representation:
    generator = torch.Generator().manual_seed(seed)
    codes = {
        name: torch.randint(s.num_codes, s.shape, generator=generator).to(s.dtype)
        for name, s in trellis.streams(shape).items()
    }
    values = {
        name: torch.randn(size, generator=generator, dtype=torch.float64)
        for name, size in trellis.value_shapes(shape).items()
    }
    return Representation(trellis, codes, values, shape)


@pytest.mark.parametrize("code", CODES)
def test_decoding_by_hand(code):
    """Tile by tile and bit by bit: the window of the circle that ends with a weight's own bits."""
    trellis = Trellis(bits=1, state_bits=5, code=code, out_group=2, in_group=4, scale_group=4)
    rep = draw(trellis, (4, 8), 0)
    wanted = torch.empty(4, 8, dtype=torch.float64)
    pairs, signs = hybrid_index(5, 5)
    for i, j in itertools.product(range(2), range(2)):
        width = trellis.symbol_bits
        symbols = rep.codes["symbols"][i, j].tolist()
        circle = "".join(format(x, f"0{width}b") for x in symbols) * 3
        steps, weights = len(symbols), []
        for t in range(steps):
            end = len(circle) - width * (steps - 1 - t)
            state = int(circle[end - 5 : end], 2)
            if code == "hyb":
                pair = rep.values["table"][pairs[state]]
                weights += (pair * signs[state].double()).tolist()
            elif code == "table":
                weights.append(float(rep.values["table"][state, 0]))
            else:
                weights.append(float(trellis_table(code, 5)[state]))
        tile = torch.tensor(weights, dtype=torch.float64).view(2, 4)
        place = slice(2 * i, 2 * i + 2), slice(4 * j, 4 * j + 4)
        wanted[place] = tile * rep.values["scales"][2 * i : 2 * i + 2, j : j + 1]
    torch.testing.assert_close(rep.decode(), wanted)
    some = torch.tensor([3, 0])
    torch.testing.assert_close(trellis.decode_groups(rep, some), rep.split(wanted)[some])


@pytest.mark.parametrize("code", ["mul1", "hyb"])
def test_tiles_of_matrix_units(code):
    """The order of the circle changes nothing but which weight of a tile is which."""
    rows = Trellis(bits=1, state_bits=4, code=code, out_group=16, in_group=16, per_tensor=True)
    units = replace(rows, order="mma")
    rep = draw(rows, (32, 48), 12)
    other = Representation(units, rep.codes, rep.values, rep.shape)
    visits = [
        16 * (lane // 4 + out) + 2 * (lane % 4) + inside
        for lane in range(32)
        for out in (0, 8)
        for inside in (0, 1, 8, 9)
    ]
    wanted = torch.empty(6, 256, dtype=torch.float64)
    wanted[:, visits] = rep.split(rep.decode())
    assert torch.equal(other.split(other.decode()), wanted)
    some = torch.tensor([4, 1])
    assert torch.equal(units.decode_groups(other, some), wanted[some])
    target, weights = gaussian(13, 6, 256), gaussian(14, 6, 256).square()
    query = Query(target=target[:, visits], rep=rep, metric=GroupDiagonal(weights[:, visits]))
    mine = units.search(Query(target=target, rep=other, metric=GroupDiagonal(weights)))
    assert torch.equal(mine, rows.search(query))
    stack = Representation.stack([other.clone(), other.clone()])
    stack.values["scales"][1] *= 2.0
    both = units.decode_groups(stack, torch.tensor([4, 6 + 4]))
    torch.testing.assert_close(both, torch.stack([wanted[4], 2 * wanted[4]]))


@pytest.mark.parametrize("with_metric", [False, True])
@pytest.mark.parametrize("code", ["1mad", "hyb", "table"])
def test_the_search_is_exact_given_the_ends_of_the_circle(code, with_metric):
    """Against all strings of bits; rows have scales of their own, one of them 0."""
    trellis = Trellis(bits=1, state_bits=4, code=code, out_group=2, in_group=4)
    rep = draw(trellis, (4, 8), 1)
    rep.values["scales"][3] = 0.0
    target, weights = gaussian(2, 4, 8), gaussian(3, 4, 8).square()
    metric = GroupDiagonal(rep.split(weights)) if with_metric else None
    query = Query(target=rep.split(target), rep=rep, count=3, metric=metric)
    found = trellis.search(query)
    every = torch.tensor(
        list(itertools.product(range(1 << trellis.symbol_bits), repeat=found.shape[2]))
    )

    def ends(symbols: Tensor) -> Tensor:
        bits = 4 - trellis.symbol_bits
        back = symbols.flip(-1)[..., : -(-bits // trellis.symbol_bits)].long()
        places = trellis.symbol_bits * torch.arange(back.shape[-1])
        return (back << places).sum(-1) & ((1 << bits) - 1)

    ratios = []
    for g in range(4):
        own = query.but(
            target=query.target[g : g + 1],
            groups=torch.tensor([g]),
            metric=metric and GroupDiagonal(metric.weights[g : g + 1]),
        )
        errors = trellis.errors(own, every[None])[0]
        mine = trellis.errors(own, found[g][None])[0]
        chosen = ends(found[g])
        assert (chosen == chosen[0]).all()
        wanted = errors[ends(every) == chosen[0]].topk(3, largest=False).values
        torch.testing.assert_close(mine, wanted)
        ratios.append(float(mine[0] / errors.min()))
    assert sum(ratios) / 4 < 1.3  # in short circles the ends weigh most


def test_a_search_never_leaves_a_tile_worse_than_it_is():
    trellis = Trellis(bits=1, state_bits=4, code="table", out_group=2, in_group=4)
    rep = draw(trellis, (4, 8), 4)
    near = rep.decode() + 0.05 * gaussian(5, 4, 8)
    found = trellis.candidates(Query(target=rep.split(near), rep=rep))
    present = (rep.split(near) - rep.split(rep.decode())).square().sum(1)
    assert (found.errors[:, 0] <= present + 1e-12).all()
    exact = trellis.candidates(Query(target=rep.split(rep.decode()), rep=rep))
    assert torch.equal(exact.codes[:, 0], rep.group_codes().long())


@pytest.mark.parametrize("code", ["mcg", "hyb"])
def test_a_window_changes_and_the_rest_stays(code):
    """Against all strings that differ in the window where the tile is farthest from its target."""
    trellis = Trellis(bits=1, state_bits=4, code=code, out_group=2, in_group=8)
    rep = draw(trellis, (4, 16), 10)
    rep.values["scales"].abs_().add_(0.5)
    target = rep.split(rep.decode())
    target[:, 9:13] += 3 * gaussian(11, 4, 4)  # what lies here changes
    steps, width = rep.codes["symbols"].shape[2], trellis.symbol_bits
    window = 4 // (16 // steps)  # in steps
    options = SearchOptions(window=4)
    found = trellis.search(Query(target=target, rep=rep, options=options))
    assert found.shape == (4, 1, steps)
    gaps = (target - rep.split(rep.decode())).square().view(4, steps, -1).sum(2)
    several = torch.tensor(list(itertools.product(range(1 << width), repeat=window)))
    for g in range(4):
        sums = [sum(float(gaps[g, (a + i) % steps]) for i in range(window)) for a in range(steps)]
        first = sums.index(max(sums))
        places = [(first + i) % steps for i in range(window)]
        present = rep.group_codes()[g].long()
        moved = (found[g, 0] != present).nonzero().flatten().tolist()
        assert set(moved) <= set(places)
        every = present.repeat(len(several), 1)
        every[:, places] = several
        own = Query(target=target[g : g + 1], rep=rep, groups=torch.tensor([g]))
        best = trellis.errors(own, every[None])[0].min()
        torch.testing.assert_close(trellis.errors(own, found[g][None])[0, 0], best)
    wide = Query(target=target, rep=rep, options=SearchOptions(window=16))
    whole = trellis.search(Query(target=target, rep=rep))
    assert torch.equal(trellis.search(wide), whole)  # wider than the circle


@pytest.mark.parametrize(
    ("trellis", "limit"),
    [  # mean squared errors of unit Gaussians; E8P has 0.089 at 2 bits, scalars 0.118
        (Trellis(bits=1, state_bits=8), 0.31),
        (Trellis(bits=2, state_bits=8), 0.082),
        (Trellis(bits=2, state_bits=12), 0.0745),  # what the docstring says, of 8192 weights
        (Trellis(bits=2, state_bits=16), 0.0715),
        (Trellis(bits=2, state_bits=10, code="hyb"), 0.082),
        (Trellis(bits=2, state_bits=8, code="table"), 0.080),
        (Trellis(bits=3, state_bits=8), 0.0235),
        (Trellis(bits=4, state_bits=9), 0.0068),
        (Trellis(bits=2, state_bits=8, code="table", per_tensor=True), 0.080),
    ],
    ids=str,
)
def test_gaussian_weights(trellis, limit):
    trellis = replace(trellis, out_group=16, in_group=16)
    weight = gaussian(6, 64, 128, dtype=torch.float32)
    error = float((trellis.fit(weight).decode() - weight).square().mean())
    assert error < limit
    again = float(
        (trellis.fit(weight, options=FitOptions(iterations=1)).decode() - weight).square().mean()
    )
    assert again <= error * (1 + 1e-6)


def test_a_metric_and_a_rotation():
    weight, weights = gaussian(7, 16, 32), gaussian(8, 16, 32).square()
    trellis = Trellis(bits=2, state_bits=6, code="table", out_group=16)

    def error(rep: Representation) -> float:
        return float(((rep.decode() - weight).square() * weights).sum())

    assert error(trellis.fit(weight, metric=Diagonal(weights))) < 0.8 * error(trellis.fit(weight))
    heavy = gaussian(9, 64, 64, dtype=torch.float32) ** 3  # a rotation makes it Gaussian again
    fixed = Trellis(bits=2, state_bits=8)
    plain = fixed.fit(heavy).decode() - heavy
    rotated = Scheme(fixed, Rotation()).fit(heavy).decode() - heavy
    assert float(rotated.square().sum()) < 0.7 * float(plain.square().sum())


def test_true_bits():
    plain = Trellis(bits=2, out_group=16, in_group=16)
    assert plain.bits_per_weight((576, 1536)) == 2 + 16 / 1536
    pairs = Trellis(bits=2, code="hyb", scale_group=128)
    assert pairs.bits_per_weight((512, 512)) == 2 + 16 / 128 + 512 * 2 * 16 / 512**2


def test_tables_that_a_fit_begins_with():
    """The Gaussian's quantiles, and pairs with a positive first weight."""
    table = start_table("table", 10).flatten().double()
    normal = torch.distributions.Normal(0.0, 1.0)
    places = normal.cdf(table).sort().values
    torch.testing.assert_close(
        places, (torch.arange(1024.0).double() + 0.5) / 1024, rtol=0, atol=1e-6
    )
    order = trellis_table("mul1", 10).argsort(stable=True)
    assert (table[order].diff() > 0).all()
    pairs = start_table("hyb", 12)
    assert pairs.shape == (512, 2)
    assert (pairs[:, 0] > 0).all()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"code": "lut"}, ValueError, "code must be one of 3inst, .*, hyb, table, got 'lut'"),
        ({"bits": 9}, ValueError, r"bits must be in 1\.\.8, got 9"),
        ({"bits": 5, "code": "hyb"}, ValueError, r"bits must be in 1\.\.4, got 5"),
        ({"bits": 2.0}, TypeError, "bits must be an int"),
        ({"bits": 4, "state_bits": 7}, ValueError, r"state_bits must be in 8\.\.16, got 7"),
        ({"state_bits": 17}, ValueError, r"state_bits must be in 4\.\.16, got 17"),
        ({"out_group": 0}, ValueError, r"out_group must be in 1\.\.256, got 0"),
        ({"out_group": 1, "in_group": 4}, ValueError, "at least state_bits=12 bits, got 1 \\* 4"),
        ({"scale_group": 25}, ValueError, "scale_group must be a multiple of in_group=2, got 25"),
        ({"order": "columns"}, ValueError, "order must be one of rows, mma, got 'columns'"),
        ({"order": "mma"}, ValueError, "needs tiles of 16 x 16, got out_group=64 and in_group=2"),
        ({"per_tensor": 1}, TypeError, "per_tensor must be a bool"),
        ({"per_tensor": True, "scale_group": 64}, ValueError, "scale_group must be None with per_"),
    ],
)
def test_settings_out_of_range_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Trellis(**settings)


@pytest.mark.parametrize("shape", [(24, 32), (32, 64), (7, 30)])
@pytest.mark.parametrize("trellis", [Trellis(), Trellis(code="hyb", scale_group=2)])
def test_tiles_that_do_not_fit_are_refused_with_some_that_do(trellis, shape):
    with pytest.raises(ValueError, match=f"out_group=64 does not divide the {shape[0]}") as found:
        trellis.fit(torch.zeros(shape))
    fitting = parse_scheme(str(found.value).partition("tiles that fit: ")[2].strip("'"))
    assert fitting.streams(shape)["symbols"].num_codes == 1 << trellis.symbol_bits
    other = fitting.parametrization
    assert replace(other, out_group=64, in_group=2) == trellis
