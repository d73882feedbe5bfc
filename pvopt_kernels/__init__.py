"""Operations on codes and codebooks, with kernels for GPUs and CPUs; independent of :mod:`pvopt`.

Every operation is in :mod:`pvopt_kernels.ops`; ``pvopt_kernels.dispatch`` says which
implementation runs.
"""

from .e8p_tables import e8_ball, e8p_absolute
from .ops import (
    assign,
    beam_search,
    codebook_grad,
    decode,
    e8p_assign,
    e8p_decode,
    group_sq_norms,
    hadamard,
    matmul,
    smallest,
    sum_by_code,
    uniform_decode,
    uniform_grad,
    uniform_matmul,
)
from .packing import pack_rows, unpack_rows

__all__ = [
    "assign",
    "beam_search",
    "codebook_grad",
    "decode",
    "e8_ball",
    "e8p_absolute",
    "e8p_assign",
    "e8p_decode",
    "group_sq_norms",
    "hadamard",
    "matmul",
    "pack_rows",
    "smallest",
    "sum_by_code",
    "uniform_decode",
    "uniform_grad",
    "uniform_matmul",
    "unpack_rows",
]
