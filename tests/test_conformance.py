"""One suite that every parametrization, space, rounding and subspace rule passes in combination.

To add a rule, add one line to its table.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from compositions import SHAPE, Composition, check_learning, check_stacks, check_steps, fits, takes

from pvopt import (
    E8P,
    PARAMETRIZATIONS,
    AdditiveCodebooks,
    AffineGrid,
    AllGroups,
    Binary,
    Chain,
    Forced,
    Gain,
    Greedy,
    Identity,
    Nearest,
    NestedGrid,
    Padding,
    Parametrization,
    Permutation,
    Proportional,
    QuantizedNonzeros,
    QuantizedScales,
    Rotation,
    Rounding,
    Scaling,
    SharedValues,
    Space,
    Sparse,
    SparseNM,
    Stochastic,
    Subspace,
    Ternary,
    Trellis,
    Uniform,
    UniformGrid,
    VectorCodebook,
    ZeroRow,
)
from pvopt.rules.rounding import ROUNDINGS
from pvopt.rules.subspace import SUBSPACES
from pvopt.spaces import SPACES

FORMATS: list[Parametrization] = [
    SharedValues(num_values=5),
    UniformGrid(bits=2, group_size=4),
    UniformGrid(bits=3, symmetric=True),
    UniformGrid(bits=2, group_size=4, integer_zeros=True),
    AffineGrid(bits=2, group_size=4),
    NestedGrid(bits=2, group_size=2, groups=4, scale_bits=3),
    Binary(),
    Ternary(group_size=4),
    Sparse(density=0.5),
    Sparse(density=0.25, per="tensor"),
    SparseNM(nonzeros=2, group_size=4),
    QuantizedNonzeros(
        support=SparseNM(nonzeros=2, group_size=4), inner=UniformGrid(bits=2, group_size=4)
    ),
    QuantizedNonzeros(support=Sparse(density=0.5), inner=VectorCodebook(bits=3, group_size=2)),
    VectorCodebook(bits=3, group_size=2),
    VectorCodebook(bits=2, group_size=2, scale_group=4),
    AdditiveCodebooks(num_codebooks=2, bits=2, in_group=4),
    AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, out_group=2, scale_group=4),
    E8P(bits=2),
    E8P(bits=3, scale_group=8),
    E8P(bits=4, per_tensor=True),
    Trellis(bits=1, state_bits=3, code="table", out_group=2, in_group=4),
    QuantizedScales(inner=VectorCodebook(bits=3, group_size=2, scale_group=4), bits=2),
]
# Every space takes weights of the shape below to one that every parametrization fits.
SPACES_USED: list[Space] = [
    Identity(),
    Rotation(seed=1),
    Permutation(),
    Scaling(inputs=True, outputs=True),
    Chain((ZeroRow(row=2), Padding(rows=8, columns=16))),
    Chain((Padding(columns=16, free=False), Rotation(block=2), Scaling(inputs=True))),
]
RULES: list[Rounding] = [Nearest(), Forced(), Stochastic(), Stochastic("linear")]
SELECTIONS: list[Subspace] = [
    AllGroups(),
    Greedy(0.2),
    Uniform(0.2),
    Proportional(0.2),
    Gain(0.2),
]
METRICS: list[str | None] = [None, "second moment", "inputs"]
LATENT_DECAYS = [0.0, 0.3, 1.0]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
TRUST_RATIOS = [None, 0.3]

TABLES: dict[str, Sequence[Any]] = {
    "parametrization": FORMATS,
    "space": SPACES_USED,
    "rounding": RULES,
    "subspace": SELECTIONS,
    "latent_decay": LATENT_DECAYS,
    "dtype": DTYPES,
    "trust_ratio": TRUST_RATIOS,
    "metric": METRICS,
}


def possible(one: str, a: Any, two: str, b: Any) -> bool:
    """Whether a setting of one kind works with one of another, in the order of the tables."""
    if (one, two) == ("parametrization", "rounding"):
        return fits(a, b)
    if (one, two) == ("space", "metric"):
        return takes(a, b)
    return True


def pairs_of(how: Composition) -> set[tuple[tuple[str, Any], ...]]:
    """Return all pairs of settings that occur together in a composition."""
    settings = [(name, repr(getattr(how, name))) for name in TABLES]
    return set(itertools.combinations(settings, 2))


@functools.cache
def compositions() -> tuple[Composition, ...]:
    """Compositions in which every pair of any two settings occurs.

    Of all parametrizations x roundings x subspaces, each with one of the other settings in turn,
    those are taken that show most pairs not yet seen, until all are.
    """
    others = [
        (space, *rest)
        for space, *rest in itertools.product(
            SPACES_USED, LATENT_DECAYS, DTYPES, TRUST_RATIOS, METRICS
        )
        if takes(space, rest[-1])
    ]
    # A step without a common factor walks through all combinations.
    stride = next(n for n in itertools.count(47) if math.gcd(n, len(others)) == 1)
    turn = (others[stride * i % len(others)] for i in itertools.count())
    found = [
        Composition(parametrization, space, rounding, subspace, *rest)
        for parametrization, rounding, subspace in itertools.product(FORMATS, RULES, SELECTIONS)
        if fits(parametrization, rounding)
        for space, *rest in itertools.islice(turn, 1)
    ]
    shown = {number: pairs_of(how) for number, how in enumerate(found)}
    lacking = set().union(*shown.values())
    chosen = []
    while lacking:
        best = max(shown, key=lambda number: len(shown[number] & lacking))
        lacking -= shown.pop(best)
        chosen.append(best)
    return tuple(found[number] for number in sorted(chosen))


def stacked() -> list[Composition]:
    """Return one composition of each parametrization and rounding."""
    return list({(how.parametrization, how.rounding): how for how in compositions()}.values())


@pytest.mark.parametrize("how", compositions(), ids=str)
def test_a_composition(how: Composition, monkeypatch: pytest.MonkeyPatch) -> None:
    check_steps(how, monkeypatch)


@pytest.mark.parametrize("how", stacked(), ids=str)
def test_a_weight_does_not_notice_that_it_is_in_a_stack(how: Composition) -> None:
    check_stacks(how)


SOME_FORMATS = [UniformGrid(bits=2, group_size=4), VectorCodebook(bits=3, group_size=2)]


@pytest.mark.parametrize(
    ("parametrization", "space"),
    [(p, Identity()) for p in FORMATS] + list(itertools.product(SOME_FORMATS, SPACES_USED[1:])),
    ids=str,
)
@pytest.mark.parametrize("latent_decay", LATENT_DECAYS)
@pytest.mark.parametrize(
    ("subspace", "metric"), [(Greedy(0.2), None), (Gain(0.2), "second moment")], ids=str
)
def test_a_composition_learns(
    parametrization: Parametrization,
    space: Space,
    latent_decay: float,
    subspace: Subspace,
    metric: str | None,
) -> None:
    metric = metric if takes(space, metric) else "inputs"
    rules = (Nearest(), subspace, latent_decay, torch.float32, None, metric)
    check_learning(Composition(parametrization, space, *rules))


def test_the_table_has_every_pair() -> None:
    found = compositions()
    assert set(TABLES) == set(Composition.__dataclass_fields__)
    for one, two in itertools.combinations(TABLES, 2):
        pairs = {(getattr(how, one), getattr(how, two)) for how in found}
        for a, b in itertools.product(TABLES[one], TABLES[two]):
            if possible(one, a, two, b):
                assert (a, b) in pairs, (one, two, a, b)


def test_the_tables_have_every_class_that_is_registered() -> None:
    for table, registry in (
        (FORMATS, PARAMETRIZATIONS),
        (SPACES_USED, SPACES),
        (RULES, ROUNDINGS),
        (SELECTIONS, SUBSPACES),
    ):
        every = [part for settings in table for part in (settings, *getattr(settings, "parts", ()))]
        assert {type(settings).__name__ for settings in every} == set(registry)


SUMMING = [p for p in FORMATS if p.pull_sums_all]


@pytest.mark.parametrize("parametrization", SUMMING, ids=repr)
def test_gradients_of_values_show_what_is_not_finite_in_the_dense_gradient(parametrization):
    """Wherever it is, also where the scale is 0."""
    source = torch.Generator().manual_seed(0)
    rep = parametrization.fit(torch.randn(SHAPE, generator=source))
    rep.values[parametrization.scaling[0]].view(-1)[0] = 0
    gradient = torch.randn(SHAPE, generator=source)
    assert all(bool(pulled.isfinite().all()) for pulled in rep.pull([gradient]).values())
    bad = itertools.cycle([math.nan, math.inf, -math.inf])
    for place in range(gradient.numel()):
        wrong = gradient.clone()
        wrong.view(-1)[place] = next(bad)
        assert not all(bool(pulled.isfinite().all()) for pulled in rep.pull([wrong]).values())
