"""Every parametrization in every space: the table of files and of layers."""

from __future__ import annotations

import itertools
import zlib

import torch
from torch import Tensor

from pvopt import (
    E8P,
    AdditiveCodebooks,
    AffineGrid,
    Binary,
    Chain,
    Identity,
    NestedGrid,
    Padding,
    Parametrization,
    Permutation,
    QuantizedNonzeros,
    QuantizedScales,
    Representation,
    Rotation,
    Scaling,
    Scheme,
    SharedValues,
    Space,
    Sparse,
    SparseNM,
    Ternary,
    Trellis,
    UniformGrid,
    VectorCodebook,
    ZeroRow,
)

SHAPE = (6, 16)

PARAMETRIZATIONS: dict[str, Parametrization] = {
    "shared": SharedValues(num_values=5),
    "grid": UniformGrid(bits=3, group_size=8),
    "grid-symmetric": UniformGrid(bits=2, symmetric=True),
    "grid-zeros": UniformGrid(bits=2, group_size=8, integer_zeros=True),
    "affine": AffineGrid(bits=2, group_size=8),
    "nested": NestedGrid(bits=2, group_size=2, groups=4, scale_bits=3),
    "binary": Binary(group_size=4),
    "ternary": Ternary(),
    "vector": VectorCodebook(bits=3, group_size=2),
    "vector-wide": VectorCodebook(bits=9, group_size=1),  # codes wider than a byte
    "additive": AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4, out_group=2, scale_group=8),
    "e8p": E8P(bits=2),
    "e8p-3": E8P(bits=3, scale_group=8),
    "e8p-4": E8P(bits=4, per_tensor=True),
    "trellis": Trellis(bits=2, state_bits=5, out_group=2, in_group=4, scale_group=8),
    "trellis-pairs": Trellis(bits=1, state_bits=4, code="hyb", out_group=2, in_group=4),
    "scales": QuantizedScales(inner=E8P(bits=2, scale_group=8), bits=3),
    "scales-books": QuantizedScales(
        inner=VectorCodebook(bits=3, group_size=2, scale_group=4), bits=2
    ),
    "sparse": Sparse(density=0.3),
    "sparse-tensor": Sparse(density=0.4, per="tensor"),
    "sparse-nm": SparseNM(nonzeros=2, group_size=4),
    "nonzeros": QuantizedNonzeros(
        support=SparseNM(nonzeros=2, group_size=4), inner=UniformGrid(bits=2, group_size=4)
    ),
    "nonzeros-books": QuantizedNonzeros(
        support=Sparse(density=0.5), inner=VectorCodebook(bits=3, group_size=2)
    ),
}
SPACES: dict[str, Space] = {
    "identity": Identity(),
    "rotation": Rotation(seed=11),
    "rotation-blocks": Rotation(block=2),
    "permutation": Permutation(),
    "scaling": Scaling(inputs=True, outputs=True),
    "padding": Padding(rows=4, columns=24),
    "chain": Chain(
        (
            ZeroRow(row=2),
            Rotation(seed=3),
            Padding(rows=6, columns=24),
            Permutation(),
            Scaling(inputs=True, outputs=True),
        )
    ),
}
SCHEMES: dict[str, Scheme] = {
    f"{name}-{space}": Scheme(PARAMETRIZATIONS[name], SPACES[space])
    for name, space in itertools.product(PARAMETRIZATIONS, SPACES)
}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def representation(name: str, dtype: torch.dtype = torch.float32) -> Representation:
    """Return a representation of a random weight in a scheme of the table."""
    return SCHEMES[name].fit(draw(*SHAPE, seed=zlib.crc32(name.encode()))).to(dtype=dtype)
