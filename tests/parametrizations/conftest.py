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
    Binary,
    Incoherent,
    Parametrization,
    QuantizedNonzeros,
    Representation,
    SharedValues,
    Sparse,
    SparseNM,
    Ternary,
    UniformGrid,
    VectorCodebook,
)

Case = tuple[Parametrization, tuple[int, ...]]

# Every combination of codes can be enumerated; the beams of sums are wide enough to be exact.
CASES: dict[str, Case] = {
    "shared": (SharedValues(num_values=5), (4, 6)),
    "shared-single": (SharedValues(num_values=1), (2, 3)),
    "shared-vector": (SharedValues(num_values=3), (7,)),
    "grid": (UniformGrid(bits=2, group_size=3), (4, 6)),
    "grid-row": (UniformGrid(bits=3), (3, 5)),
    "grid-symmetric": (UniformGrid(bits=2, group_size=2, symmetric=True), (4, 6)),
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
    "additive": (AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, beam_size=4), (4, 6)),
    "additive-out": (
        AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, out_group=2, beam_size=4),
        (4, 6),
    ),
    "additive-scale-group": (
        AdditiveCodebooks(
            num_codebooks=2, bits=2, in_group=2, out_group=2, scale_group=4, beam_size=4
        ),
        (4, 8),
    ),
    "additive-three": (AdditiveCodebooks(num_codebooks=3, bits=1, in_group=4, beam_size=4), (2, 8)),
    "additive-conv": (
        AdditiveCodebooks(num_codebooks=2, bits=2, in_group=3, out_group=2, beam_size=4),
        (4, 2, 3, 1),
    ),
    "incoherent-grid": (Incoherent(UniformGrid(bits=2, group_size=3)), (4, 6)),
    "incoherent-vector": (Incoherent(VectorCodebook(bits=2, group_size=4), seed=3), (3, 12)),
    "incoherent-conv": (
        Incoherent(
            AdditiveCodebooks(num_codebooks=2, bits=2, in_group=3, out_group=2, beam_size=4)
        ),
        (4, 2, 3, 1),
    ),
}


@pytest.fixture(scope="session", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """One parametrization and a shape it fits."""
    return CASES[request.param]


@pytest.fixture(
    scope="session", params=[name for name in CASES if not name.startswith(("sparse", "nonzeros"))]
)
def fixed_case(request: pytest.FixtureRequest) -> Case:
    """One parametrization without a support, which is exact in any metric, and a shape."""
    return CASES[request.param]


@pytest.fixture(
    scope="session", params=[name for name, (p, _) in CASES.items() if p.values_follow_codes]
)
def sparse_case(request: pytest.FixtureRequest) -> Case:
    """One parametrization whose values follow the codes, and a shape."""
    return CASES[request.param]


@functools.cache
def list_codes(parametrization: Parametrization, shape: tuple[int, ...] | None = None) -> Tensor:
    if isinstance(parametrization, QuantizedNonzeros):
        assert shape is not None
        inner = parametrization.nonzero_shape(shape)
        places = math.prod(inner) // parametrization.layout(shape).num_groups
        own = list_codes(parametrization.support, shape)
        one = list_codes(parametrization.inner, inner)
        rest = torch.tensor(list(itertools.product(one[:, 0].tolist(), repeat=places)))
        return torch.cat([own.repeat_interleave(len(rest), 0), rest.repeat(len(own), 1)], dim=1)
    single = range(parametrization.num_codes)
    repeat = (
        parametrization.codes_per_group if shape is None else parametrization.code_shape(shape)[2]
    )
    every = torch.tensor(list(itertools.product(single, repeat=repeat)))
    if isinstance(parametrization, Sparse):  # masks of another number of ones do not exist
        group_size = every.shape[1]
        every = every[every.sum(1) == max(1, round(parametrization.density * group_size))]
    return every


@pytest.fixture(scope="session")
def draw_rep() -> Callable[..., Representation]:
    """Return a function that draws codes and values, scales of both signs and zero included."""

    def draw(
        case: Case, seed: int, *, dtype: torch.dtype = torch.float64, usual: bool = False
    ) -> Representation:
        parametrization, shape = case
        generator = torch.Generator().manual_seed(seed)
        every = list_codes(parametrization, shape)
        size = parametrization.code_shape(shape)
        codes = every[torch.randint(len(every), size[:2], generator=generator)]
        values = {
            name: torch.randn(size, generator=generator, dtype=torch.float64)
            for name, size in parametrization.value_shapes(shape).items()
        }
        if "scales" in values and usual:
            values["scales"] = values["scales"].abs() + 0.1
        elif "scales" in values and seed % 3 == 0:
            values["scales"].flatten()[0] = 0.0
        codes = codes.to(torch.uint8 if parametrization.code_bits <= 8 else torch.int32)
        values = {name: value.to(dtype) for name, value in values.items()}
        return Representation(parametrization, codes, values, shape)

    return draw


@pytest.fixture(scope="session")
def all_codes() -> Callable[..., Tensor]:
    """Return a function that lists every code of a group, ``[N, codes_per_group]``.

    It takes the parametrization and, where the codes depend on it, the weight's shape.
    """
    return list_codes
