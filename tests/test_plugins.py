"""A user's own parametrization, space, rounding and subspace rule do all that built-in ones do."""

from __future__ import annotations

import pytest
import torch
from compositions import (
    Composition,
    Run,
    assert_same,
    check_learning,
    check_stacks,
    check_steps,
    gaussian,
)
from plugins import PLUGINS, EveryNth, Hesitant, PositiveColumns, PowersOfTwo, registered

from pvopt import (
    PARAMETRIZATIONS,
    AllGroups,
    Chain,
    Greedy,
    Identity,
    Nearest,
    QuantizedNonzeros,
    Rotation,
    Scheme,
    SparseNM,
    UniformGrid,
    VectorCodebook,
    parse_scheme,
)
from pvopt.rules.rounding import ROUNDINGS
from pvopt.rules.subspace import SUBSPACES
from pvopt.spaces import SPACES


@pytest.fixture(autouse=True)
def _registered():
    with registered():
        yield


def composition(**parts) -> Composition:
    usual = {
        "parametrization": PowersOfTwo(),
        "space": PositiveColumns(),
        "rounding": Hesitant(),
        "subspace": EveryNth(),
        "latent_decay": 0.3,
        "dtype": torch.float32,
        "trust_ratio": 0.3,
        "metric": None,
    }
    return Composition(**usual | parts)


COMPOSITIONS = [
    composition(),
    composition(metric="inputs", latent_decay=1.0, dtype=torch.float64),
    composition(metric="second moment", trust_ratio=None, dtype=torch.bfloat16),
    composition(parametrization=VectorCodebook(bits=2, group_size=2), latent_decay=0.0),
    composition(space=Identity(), subspace=Greedy(0.2)),
    composition(space=Chain((PositiveColumns(), Rotation())), rounding=Nearest()),
    composition(
        parametrization=QuantizedNonzeros(
            support=SparseNM(nonzeros=2, group_size=4), inner=PowersOfTwo(powers=2)
        )
    ),
]


@pytest.mark.parametrize("how", COMPOSITIONS, ids=str)
def test_steps_and_state_dicts(how, monkeypatch):
    check_steps(how, monkeypatch)


@pytest.mark.parametrize("how", COMPOSITIONS, ids=str)
def test_stacks(how):
    check_stacks(how)


@pytest.mark.parametrize("latent_decay", [0.0, 1.0])
def test_they_learn(latent_decay):
    check_learning(
        composition(
            latent_decay=latent_decay, trust_ratio=None, rounding=Nearest(), subspace=AllGroups()
        )
    )


def test_a_fit_is_close_and_states_are_read_by_torch(tmp_path):
    weight = gaussian(0, 16, 32)
    rep = Scheme(PowersOfTwo(powers=6), PositiveColumns()).fit(weight)
    rep.check_codes()
    assert float((rep.decode() - weight).norm() / weight.norm()) < 0.25
    assert rep.bits_per_weight(value_bits=16) == (16 * 32 * 4 + 32 + 16 * 16) / (16 * 32)
    run, other = Run(composition()), Run(composition(), start=7)
    run.step()
    torch.save(run.optimizer.state_dict(), tmp_path / "state.pt")
    other.optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(other.state(), run.state())


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(PowersOfTwo()),
        Scheme(PowersOfTwo(powers=5), PositiveColumns(by_metric=True)),
        Scheme(PowersOfTwo(powers=5), Chain((PositiveColumns(), Rotation(seed=4, block=2)))),
        Scheme(
            QuantizedNonzeros(
                support=SparseNM(nonzeros=2, group_size=4), inner=PowersOfTwo(powers=7)
            )
        ),
    ],
    ids=str,
)
def test_names_and_files_know_them(scheme):
    assert parse_scheme(scheme.name) == scheme
    assert Scheme.from_json(scheme.to_json()) == scheme


def test_rules_have_names_too():
    for registry, rule in ((ROUNDINGS, Hesitant(courage=0.25)), (SUBSPACES, EveryNth(n=7))):
        assert registry.parse(registry.name(rule)) == rule
        assert registry.from_json(registry.to_json(rule)) == rule


def test_they_are_forgotten_again():
    for registry, kind, _ in PLUGINS:
        assert kind in registry
    with registered():
        pass
    for registry, kind, form in PLUGINS:
        assert kind not in registry
        assert form not in registry.forms


def test_a_name_belongs_to_one_module():
    class UniformGrid_(UniformGrid):
        pass

    UniformGrid_.__name__ = "UniformGrid"
    with pytest.raises(ValueError, match=r"the name UniformGrid is registered already, by pvopt"):
        PARAMETRIZATIONS.register()(UniformGrid_)
    with pytest.raises(TypeError, match="only dataclasses can be registered as a space"):
        SPACES.register()(type("Plain", (), {}))
