"""Names of settings: every registered class, every field, losslessly in files and for people."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, make_dataclass
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
    MatrixView,
    Nearest,
    NestedGrid,
    Padding,
    Permutation,
    Proportional,
    QuantizedNonzeros,
    QuantizedScales,
    Rotation,
    Scaling,
    Scheme,
    SharedValues,
    Sparse,
    SparseNM,
    Stochastic,
    Ternary,
    Trellis,
    Uniform,
    UniformGrid,
    VectorCodebook,
    ZeroRow,
    parse_scheme,
)
from pvopt.core.registry import Registry, ShortForm
from pvopt.core.views import VIEWS
from pvopt.rules.rounding import ROUNDINGS
from pvopt.rules.subspace import SUBSPACES
from pvopt.spaces import SPACES

some = settings(max_examples=20, deadline=None, derandomize=True)


def maybe(strategy):
    return st.none() | strategy


GROUPS = maybe(st.integers(1, 4096))
SHARES = st.floats(1e-9, 1.0)
DIVISORS = st.integers(1, 64)


@st.composite
def vectors(draw):
    size = draw(st.integers(1, 1024))
    times = draw(maybe(DIVISORS))
    return VectorCodebook(
        bits=draw(st.integers(1, 16)), group_size=size, scale_group=times and times * size
    )


@st.composite
def additive(draw):
    size, times = draw(st.integers(1, 1024)), draw(maybe(DIVISORS))
    return AdditiveCodebooks(
        num_codebooks=draw(st.integers(1, 16)),
        bits=draw(st.integers(1, 16)),
        in_group=size,
        out_group=draw(st.integers(1, 1024)),
        scale_group=times and times * size,
    )


@st.composite
def lattices(draw):
    times = draw(maybe(DIVISORS))
    per_tensor = times is None and draw(st.booleans())
    bits = draw(st.integers(2, 4))
    return E8P(bits=bits, scale_group=times and 8 * times, per_tensor=per_tensor)


@st.composite
def trellises(draw):
    code = draw(st.sampled_from(["mul1", "mcg", "3inst", "1mad", "hyb", "table"]))
    bits = draw(st.integers(1, 4))
    state_bits = draw(st.integers(4 * bits if code == "hyb" else 2 * bits, 16))
    sizes = [draw(st.sampled_from([4, 16])) for _ in range(2)]
    times = draw(maybe(st.integers(1, 8)))
    if draw(st.booleans()):
        return Trellis(
            bits=bits, state_bits=state_bits, code=code, out_group=16, in_group=16,
            order=draw(st.sampled_from(["rows", "mma"])), per_tensor=draw(st.booleans()),
        )  # fmt: skip
    return Trellis(
        bits=bits, state_bits=state_bits, code=code, out_group=sizes[0], in_group=sizes[1],
        scale_group=times and times * sizes[1],
    )  # fmt: skip


@st.composite
def few_of_many(draw):
    size = draw(st.integers(2, 16))
    return SparseNM(nonzeros=draw(st.integers(1, size - 1)), group_size=size)


BITS = st.integers(1, 8)
GRIDS = st.builds(UniformGrid, bits=BITS, group_size=GROUPS, symmetric=st.booleans()) | st.builds(
    UniformGrid, bits=BITS, group_size=GROUPS, integer_zeros=st.just(True)
)
SPARSE = st.builds(Sparse, density=SHARES, per=st.sampled_from(["row", "tensor"])) | few_of_many()
QUANTIZED_SCALES = st.builds(
    QuantizedScales, inner=vectors() | additive() | lattices(), bits=st.integers(1, 8)
)
PLAIN = [
    st.builds(SharedValues, num_values=st.integers(1, 65536)),
    GRIDS,
    st.builds(AffineGrid, bits=BITS, group_size=GROUPS),
    st.builds(
        NestedGrid, bits=BITS, group_size=DIVISORS, groups=DIVISORS, scale_bits=st.integers(1, 8)
    ),
    st.builds(Binary, group_size=GROUPS),
    st.builds(Ternary, group_size=GROUPS),
    vectors(),
    additive(),
    lattices(),
    trellises(),
    QUANTIZED_SCALES,
]
FORMATS = [
    *PLAIN,
    SPARSE,
    st.builds(QuantizedNonzeros, support=SPARSE, inner=st.one_of(PLAIN)),
]
BLOCKS = st.sampled_from([None, 1, 2, 12, 128, 1 << 20])
PLAIN_SPACES = [
    st.builds(Rotation, seed=st.integers(0, 2**63 - 1), block=BLOCKS),
    st.just(Permutation()),
    st.builds(
        Padding, rows=st.integers(1, 1 << 20), columns=st.integers(1, 1 << 20), free=st.booleans()
    ),
    st.sampled_from(
        [Scaling(inputs=True), Scaling(outputs=True), Scaling(inputs=True, outputs=True)]
    ),
    st.builds(ZeroRow, row=st.integers(0, 1 << 40)),
]
VIEWS_OF = st.builds(MatrixView, experts=st.booleans(), transposed=st.booleans())
CHAINS = st.builds(
    lambda spaces: Chain(tuple(spaces)), st.lists(st.one_of(PLAIN_SPACES), min_size=2, max_size=4)
)
WARM = st.floats(1e-6, 1e6)
ROUNDING = [
    st.just(Nearest()),
    st.just(Forced()),
    st.builds(Stochastic, rule=st.sampled_from(["power", "linear"]), temperature=WARM),
]
SELECTION = [
    st.just(AllGroups()),
    *(st.builds(kind, fraction=SHARES) for kind in (Greedy, Uniform, Gain)),
    st.builds(Proportional, fraction=SHARES, temperature=WARM),
]
REGISTRIES = [
    (PARAMETRIZATIONS, FORMATS),
    (SPACES, [*PLAIN_SPACES, CHAINS, st.just(Identity())]),
    (ROUNDINGS, ROUNDING),
    (SUBSPACES, SELECTION),
    (VIEWS, [VIEWS_OF.filter(lambda view: not view.plain)]),
]


@pytest.mark.parametrize(
    ("registry", "strategies"), REGISTRIES, ids=lambda x: getattr(x, "kind", "")
)
@settings(some, max_examples=100)
@given(data=st.data())
def test_names_and_descriptions_are_lossless(registry, strategies, data):
    found = data.draw(st.one_of(strategies))
    described = json.loads(json.dumps(registry.to_json(found)))
    assert registry.from_json(described) == found
    if not isinstance(found, Identity | Chain):  # these have no short form of their own
        name = registry.name(found)
        assert registry.parse(name) == found
        assert registry.name(registry.parse(name)) == name
        assert registry.matches(name)


@pytest.mark.parametrize(
    ("registry", "strategies"), REGISTRIES, ids=lambda x: getattr(x, "kind", "")
)
def test_every_registered_class_is_drawn(registry, strategies):
    kinds = set()
    for strategy in strategies:
        kinds |= _kinds(strategy)
    assert {kind.__name__ for kind in kinds} == set(registry)


def _kinds(strategy) -> set[type]:
    """Return the classes of some examples."""
    found: set[type] = set()

    @settings(some, max_examples=10)
    @given(strategy)
    def look(example):
        found.add(type(example))

    look()
    return found


@settings(some, max_examples=100)
@given(
    parametrization=st.one_of(FORMATS),
    space=st.one_of(*PLAIN_SPACES, CHAINS, st.just(Identity())),
    view=VIEWS_OF,
)
def test_schemes_are_named_and_described_losslessly(parametrization, space, view):
    scheme = Scheme(parametrization, space, view)
    assert parse_scheme(scheme.name) == scheme
    assert Scheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("grid:2g64", Scheme(UniformGrid(bits=2, group_size=64))),
        ("grid:2g64z", Scheme(UniformGrid(bits=2, group_size=64, integer_zeros=True))),
        ("grid:2g64[symmetric=True]", Scheme(UniformGrid(bits=2, group_size=64, symmetric=True))),
        ("e8p:4[per_tensor=True]", Scheme(E8P(bits=4, per_tensor=True))),
        (
            "q3+e8p:4[per_tensor=True]",
            Scheme(QuantizedScales(inner=E8P(bits=4, per_tensor=True), bits=3)),
        ),
        (
            "2:4+q3+e8p:4[per_tensor=True]",
            Scheme(
                QuantizedNonzeros(
                    support=SparseNM(nonzeros=2, group_size=4),
                    inner=QuantizedScales(inner=E8P(bits=4, per_tensor=True), bits=3),
                )
            ),
        ),
        (
            "had128[seed=3]+vq:8g4",
            Scheme(VectorCodebook(bits=8, group_size=4), Rotation(seed=3, block=128)),
        ),
        (
            "perm+pad4x8[free=False]+scale:in-out+had+binary",
            Scheme(
                Binary(),
                Chain(
                    (
                        Permutation(),
                        Padding(rows=4, columns=8, free=False),
                        Scaling(inputs=True, outputs=True),
                        Rotation(),
                    )
                ),
            ),
        ),
        (" sparse:12.5%:tensor ", Scheme(Sparse(density=0.125, per="tensor"))),
    ],
)
def test_short_names(text, scheme):
    assert parse_scheme(text) == scheme


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gird:2g64", r"parametrization 'gird:2g64' is unknown \(did you mean 'grid:2g64'\?\)"),
        ("hat+e8p:2", r"did you mean 'e8p:2'"),
        ("zzzzzzzz", r"'zzzzzzzz' is unknown; the forms are .*grid:B"),
        ("grid:9", r"^parametrization 'grid:9' \(grid:B\S*\): bits must be in 1\.\.8, got 9$"),
        ("grid:9[bits=10]", r"^parametrization 'grid:9\[bits=10\]' \(grid:B\S*\): bits must be"),
        ("2:4+grid:9", r"bits must be in 1\.\.8, got 9"),
        ("q6+grid:2", "inner must be VectorCodebook, AdditiveCodebooks or E8P"),
        ("e8p:4[per_tensor=1]", "per_tensor must be a bool, got 1"),
        ("e8p:4[rows=2]", "e8p:4.*: has no setting 'rows', only bits, scale_group"),
        ("q2+e8p:4[rows=2]", "e8p:4.*rows"),
        ("e8p:4[True]", r"'True' of 'e8p:4\[True\]' must be NAME=VALUE"),
        ("e8p:4[bits=2", "is unknown"),
        ("e8p:4[bits=__import__('os')]", "must be NAME=VALUE"),
        ("had[block=0]+e8p:2", "block must be in"),
        ("", "is unknown"),
    ],
)
def test_what_is_no_name_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_scheme(text)


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (None, "must be described by an object, got None"),
        ({"class": "Nothing"}, "unknown parametrization 'Nothing'; known are .*'E8P'"),
        ({"class": ["E8P"]}, "unknown parametrization"),
        ({"class": "E8P", "bats": 2}, r"E8P: unknown settings \['bats'\]"),
        ({"class": "UniformGrid"}, r"UniformGrid: missing settings \['bits'\]"),
        ({"class": "E8P", "bits": "2"}, "E8P: bits must be an int"),
        ({"class": "E8P", "bits": 7}, r"bits must be in 2\.\.4"),
        ({"class": "QuantizedScales", "inner": {"of": "space"}}, "unknown kind of settings"),
        ({"class": "QuantizedScales", "inner": {"class": "E8P"}}, "unknown kind of settings None"),
        ({"class": "QuantizedScales", "inner": 2}, "inner must be"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(description, words):
    with pytest.raises(ValueError, match=words):
        PARAMETRIZATIONS.from_json(description)


def test_a_setting_that_is_not_described_has_its_default():
    assert PARAMETRIZATIONS.from_json({"class": "E8P"}) == E8P()


def fresh() -> tuple[Registry[Any], type]:
    registry: Registry[Any] = Registry("thing")

    @dataclass(frozen=True)
    class Thing:
        size: int
        parts: Any = ()

    form = ShortForm(
        form="thing:N",
        meaning="",
        example="thing:2",
        pattern=r"thing:(\d+)",
        settings=lambda n: dict(size=int(n)),
        write=lambda t: f"thing:{t.size}",
    )
    registry.register(form)(Thing)
    return registry, Thing


@some
@given(
    size=st.integers(0, 99),
    parts=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text("ab[]=,+'\"", max_size=5) | SHARES,
        lambda inner: st.lists(inner, max_size=3).map(tuple),
        max_leaves=5,
    ),
)
def test_settings_in_brackets_may_be_any_literal(size, parts):
    registry, thing = fresh()
    assume(not (isinstance(parts, str) and parts.count("[") != parts.count("]")))
    found = thing(size, parts)
    assert registry.from_json(json.loads(json.dumps(registry.to_json(found)))) == found
    if _balanced(registry.name(found)):
        assert registry.parse(registry.name(found)) == found


def _balanced(text: str) -> bool:
    depth = 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if depth < 0:
            return False
    return depth == 0


def test_what_cannot_be_saved_or_named_says_so():
    registry, thing = fresh()
    with pytest.raises(ValueError, match=r"Thing\.parts: only numbers.*got \[1\]"):
        registry.to_json(thing(1, [1]))
    with pytest.raises(ValueError, match="E8P is not registered as a thing"):
        registry.to_json(E8P())
    with pytest.raises(ValueError, match="E8P is not registered as a thing"):
        registry.name(E8P())
    registry.forget(thing)
    assert thing not in registry
    assert list(registry) == []
    with pytest.raises(ValueError, match="Thing is not registered"):
        registry.to_json(thing(1))


def test_settings_of_another_registry_may_be_inside():
    registry, thing = fresh()
    with pytest.raises(ValueError, match=r"Thing\.parts"):
        registry.to_json(thing(1, Rotation(seed=2)))
    registry.nests(SPACES)
    found = thing(1, (Rotation(seed=2), (Permutation(), 3)))
    assert registry.from_json(json.loads(json.dumps(registry.to_json(found)))) == found


def test_every_field_of_every_class_is_described():
    for registry, _ in REGISTRIES:
        for form in registry.forms:
            for word in form.example.split(", "):
                text = word if registry not in (SPACES, VIEWS) else word.partition("+")[0]
                settings_ = registry.parse(text)
                assert set(registry.to_json(settings_)) == {
                    "class",
                    *(f.name for f in fields(settings_)),
                }


def test_a_class_without_a_short_form_is_named_by_its_class_and_all_settings():
    things, plain = (
        Registry("thing"),
        make_dataclass("Plain", [("size", int), ("odd", bool, False)]),
    )
    things.register()(plain)
    assert things.name(plain(3)) == "Plain[size=3, odd=False]"
    for text in ("Plain[size=3, odd=False]", "Plain[size=3]"):
        assert things.matches(text)
        assert things.parse(text) == plain(3)
    with pytest.raises(ValueError, match=r"Plain: missing settings \['size'\]"):
        things.parse("Plain")
    assert things.forms == ()
