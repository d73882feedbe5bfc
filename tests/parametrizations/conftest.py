"""Small cases of every parametrization, random representations of them, and all their codes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pvopt import (
    AdditiveCodebooks,
    AffineGrid,
    Binary,
    Chain,
    NestedGrid,
    Parametrization,
    Permutation,
    QuantizedNonzeros,
    Representation,
    Rotation,
    Scaling,
    Scheme,
    SharedValues,
    Sparse,
    SparseNM,
    Ternary,
    UniformGrid,
    VectorCodebook,
)
from pvopt.parametrizations import as_scheme

Case = tuple[Scheme, tuple[int, ...]]

# Every combination of codes can be enumerated; the beams of sums are wide enough to be exact.
SETTINGS: dict[str, tuple[Parametrization | Scheme, tuple[int, ...]]] = {
    "shared": (SharedValues(num_values=5), (4, 6)),
    "shared-single": (SharedValues(num_values=1), (2, 3)),
    "shared-vector": (SharedValues(num_values=3), (7,)),
    "grid": (UniformGrid(bits=2, group_size=3), (4, 6)),
    "grid-row": (UniformGrid(bits=3), (3, 5)),
    "grid-symmetric": (UniformGrid(bits=2, group_size=2, symmetric=True), (4, 6)),
    "grid-zeros": (UniformGrid(bits=2, group_size=3, integer_zeros=True), (4, 6)),
    "affine": (AffineGrid(bits=2, group_size=3), (4, 6)),
    "nested": (NestedGrid(bits=2, group_size=2, groups=2, scale_bits=3), (3, 8)),
    "grid-binary": (UniformGrid(bits=1), (3, 4)),
    "binary": (Binary(), (3, 5)),
    "binary-group": (Binary(group_size=3), (4, 6)),
    "ternary": (Ternary(group_size=2), (4, 6)),
    "ternary-row": (Ternary(), (2, 3, 2)),
    "sparse": (Sparse(density=0.5), (3, 5)),
    "sparse-few": (Sparse(density=0.2), (2, 6)),
    "sparse-all": (Sparse(density=1.0), (2, 3)),
    "sparse-tensor": (Sparse(density=0.4, per="tensor"), (2, 4)),
    "sparse-conv": (Sparse(density=0.3), (2, 2, 3, 1)),
    "sparse-nm": (SparseNM(nonzeros=2, group_size=4), (3, 8)),
    "sparse-1m": (SparseNM(nonzeros=1, group_size=3), (2, 6)),
    "nonzeros-nm": (
        QuantizedNonzeros(support=SparseNM(nonzeros=2, group_size=4), inner=UniformGrid(bits=1)),
        (3, 4),
    ),
    "nonzeros-row": (QuantizedNonzeros(support=Sparse(density=0.5), inner=Ternary()), (3, 4)),
    "nonzeros-tensor": (
        QuantizedNonzeros(support=Sparse(density=0.4, per="tensor"), inner=Binary()),
        (2, 4),
    ),
    "vector": (VectorCodebook(bits=2, group_size=3), (4, 6)),
    "vector-scale-group": (VectorCodebook(bits=3, group_size=2, scale_group=4), (3, 8)),
    "vector-scalar": (VectorCodebook(bits=3, group_size=1), (3, 4)),
    "additive": (AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2), (4, 6)),
    "additive-out": (
        AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, out_group=2),
        (4, 6),
    ),
    "additive-scale-group": (
        AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, out_group=2, scale_group=4),
        (4, 8),
    ),
    "additive-three": (AdditiveCodebooks(num_codebooks=3, bits=1, in_group=4), (2, 8)),
    "additive-conv": (
        AdditiveCodebooks(num_codebooks=2, bits=2, in_group=3, out_group=2),
        (4, 2, 3, 1),
    ),
    "rotated-grid": (Scheme(UniformGrid(bits=2, group_size=3), Rotation()), (4, 6)),
    "rotated-vector": (
        Scheme(VectorCodebook(bits=2, group_size=4), Rotation(seed=3)),
        (3, 12),
    ),
    "rotated-conv": (
        Scheme(AdditiveCodebooks(num_codebooks=2, bits=2, in_group=3, out_group=2), Rotation()),
        (4, 2, 3, 1),
    ),
    "permuted-grid": (Scheme(UniformGrid(bits=2, group_size=3), Permutation()), (4, 6)),
    "scaled-vector": (
        Scheme(VectorCodebook(bits=2, group_size=3), Scaling(inputs=True)),
        (4, 6),
    ),
    "rotated-and-scaled-conv": (
        Scheme(Ternary(group_size=3), Chain((Rotation(block=2), Scaling(inputs=True)))),
        (4, 2, 3, 1),
    ),
}
CASES: dict[str, Case] = {name: (as_scheme(p), shape) for name, (p, shape) in SETTINGS.items()}


@pytest.fixture(scope="session", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """One scheme and a shape it fits."""
    return CASES[request.param]


@pytest.fixture(
    scope="session", params=[name for name in CASES if not name.startswith(("sparse", "nonzeros"))]
)
def fixed_case(request: pytest.FixtureRequest) -> Case:
    """One parametrization without a support, which is exact in any metric, and a shape."""
    return CASES[request.param]


@pytest.fixture(
    scope="session",
    params=[name for name, (s, _) in CASES.items() if s.parametrization.values_follow_codes],
)
def sparse_case(request: pytest.FixtureRequest) -> Case:
    """One parametrization whose values follow the codes, and a shape."""
    return CASES[request.param]


@functools.cache
def list_codes(parametrization: Parametrization, shape: tuple[int, ...]) -> Tensor:
    if isinstance(parametrization, QuantizedNonzeros):
        inner = parametrization.nonzero_shape(shape)
        places = math.prod(inner) // parametrization.layout(shape).num_groups
        own = list_codes(parametrization.support, shape)
        one = list_codes(parametrization.inner, inner)
        rest = torch.tensor(list(itertools.product(one[:, 0].tolist(), repeat=places)))
        return torch.cat([own.repeat_interleave(len(rest), 0), rest.repeat(len(own), 1)], dim=1)
    if isinstance(parametrization, Sparse):  # masks of another number of ones do not exist
        size = parametrization.layout(shape).group_size
        masks = torch.tensor(list(itertools.product((False, True), repeat=size)))
        return parametrization.codes_of(masks[masks.sum(1) == parametrization.num_nonzeros(shape)])
    ranges = [
        range(stream.num_codes)
        for stream in parametrization.streams(shape).values()
        if stream.moves
        for _ in range(stream.shape[2])
    ]
    return torch.tensor(list(itertools.product(*ranges)))


def draw_codes(scheme: Scheme, shape: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    """Return codes of every stream, those that do not move and a space's permutation last."""
    inner = scheme.space.inner_shape(shape)
    every = list_codes(scheme.parametrization, inner)
    count = scheme.parametrization.layout(inner).num_groups
    codes = every[torch.randint(len(every), (count,), generator=generator)]
    streams = [s for s in scheme.parametrization.streams(inner).values() if s.moves]
    parts = codes.split([stream.shape[2] for stream in streams], dim=1)
    found = [p.reshape(s.shape).to(s.dtype) for s, p in zip(streams, parts, strict=True)]
    for stream in scheme.parametrization.streams(inner).values():
        if not stream.moves:
            drawn = torch.randint(stream.num_codes, stream.shape, generator=generator)
            found.append(drawn.to(stream.dtype))
    for stream in scheme.space.streams(shape).values():
        found.append(torch.randperm(stream.count, generator=generator).to(stream.dtype))
    return found


@pytest.fixture(scope="session")
def draw_rep() -> Callable[..., Representation]:
    """Return a function that draws codes and values, scales of both signs and zero included."""

    def draw(
        case: Case | tuple[Parametrization, tuple[int, ...]],
        seed: int,
        *,
        dtype: torch.dtype = torch.float64,
        usual: bool = False,
    ) -> Representation:
        scheme, shape = as_scheme(case[0]), case[1]
        generator = torch.Generator().manual_seed(seed)
        space, inner = scheme.space, scheme.space.inner_shape(shape)
        names = [*scheme.parametrization.streams(inner)]
        names += [f"space.{name}" for name in space.streams(shape)]
        codes = dict(zip(names, draw_codes(scheme, shape, generator), strict=True))
        sizes = scheme.parametrization.value_shapes(inner)
        sizes |= {f"space.{name}": size for name, size in space.value_shapes(shape).items()}
        values = {
            name: torch.randn(size, generator=generator, dtype=torch.float64)
            for name, size in sizes.items()
        }
        if "scales" in values and usual:
            values["scales"] = values["scales"].abs() + 0.1
        elif "scales" in values and seed % 3 == 0:
            values["scales"].flatten()[0] = 0.0
        for name in values:
            if name.startswith("space."):
                values[name] = values[name].abs() + 0.1
        values = {name: value.to(dtype) for name, value in values.items()}
        return Representation(scheme.parametrization, codes, values, shape, space)

    return draw


@pytest.fixture(scope="session")
def all_codes() -> Callable[[Representation], Tensor]:
    """Return a function that lists every code of a group, ``[N, codes_per_group]``."""
    return lambda rep: list_codes(rep.parametrization, rep.inner_shape)
