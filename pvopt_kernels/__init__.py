"""Operations on codes and codebooks, with kernels for GPUs and CPUs; independent of :mod:`pvopt`.

Everything public is in :mod:`pvopt_kernels.ops`; :mod:`pvopt_kernels.dispatch` says which
implementation runs.
"""

from .ops import beam_search, group_sq_norms, smallest, sum_by_code

__all__ = ["beam_search", "group_sq_norms", "smallest", "sum_by_code"]
