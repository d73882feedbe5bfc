"""Operations on codes and codebooks, with kernels for GPUs and CPUs; independent of :mod:`pvopt`.

Every operation is in :mod:`pvopt_kernels.ops`; ``pvopt_kernels.dispatch`` says which
implementation runs.
"""

from .e8p_tables import e8_ball, e8p_absolute
from .ops import (
    assign,
    beam_search,
    better_codes,
    codebook_grad,
    copy_into,
    decode,
    decode_groups,
    decode_into,
    decoded_sq_norms,
    e8p_assign,
    e8p_decode,
    gather_groups,
    group_sq_norms,
    hadamard,
    largest,
    largest_changes,
    matmul,
    scatter_groups,
    smallest,
    stacked_codebook_grad,
    sum_by_code,
    trellis_decode,
    trellis_search,
    uniform_decode,
    uniform_grad,
    uniform_matmul,
)
from .packing import pack_rows, unpack_rows
from .trellis_states import trellis_states
from .trellis_tables import hybrid_index, trellis_table

__all__ = [
    "assign",
    "beam_search",
    "better_codes",
    "codebook_grad",
    "copy_into",
    "decode",
    "decode_groups",
    "decode_into",
    "decoded_sq_norms",
    "e8_ball",
    "e8p_absolute",
    "e8p_assign",
    "e8p_decode",
    "gather_groups",
    "group_sq_norms",
    "hadamard",
    "hybrid_index",
    "largest",
    "largest_changes",
    "matmul",
    "pack_rows",
    "scatter_groups",
    "smallest",
    "stacked_codebook_grad",
    "sum_by_code",
    "trellis_decode",
    "trellis_search",
    "trellis_states",
    "trellis_table",
    "uniform_decode",
    "uniform_grad",
    "uniform_matmul",
    "unpack_rows",
]
