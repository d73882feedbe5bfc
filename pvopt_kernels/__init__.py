"""Operations on codes and codebooks, with kernels for GPUs and CPUs; independent of :mod:`pvopt`.

Every operation is in :mod:`pvopt_kernels.ops`; :mod:`pvopt_kernels.dispatch` says which
implementation runs.
"""

from .e8p_tables import e8_ball, e8p_absolute
from .ops import (
    assign,
    beam_search,
    e8p_assign,
    e8p_decode,
    group_sq_norms,
    hadamard,
    smallest,
    sum_by_code,
)

__all__ = [
    "assign",
    "beam_search",
    "e8_ball",
    "e8p_absolute",
    "e8p_assign",
    "e8p_decode",
    "group_sq_norms",
    "hadamard",
    "smallest",
    "sum_by_code",
]
