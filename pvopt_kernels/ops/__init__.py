"""The operations: what each computes, checked arguments, autograd and torch.compile."""

from .assign import assign
from .beam_search import beam_search
from .better_codes import better_codes
from .codebook_grad import codebook_grad
from .copy_into import copy_into
from .decode import decode
from .decode_groups import decode_groups
from .decode_into import decode_into
from .decoded_sq_norms import decoded_sq_norms
from .e8p_assign import e8p_assign
from .e8p_decode import e8p_decode
from .gather_groups import gather_groups
from .group_sq_norms import group_sq_norms
from .hadamard import hadamard
from .largest import largest
from .largest_changes import largest_changes
from .matmul import matmul
from .scatter_groups import scatter_groups
from .smallest import smallest
from .stacked_codebook_grad import stacked_codebook_grad
from .sum_by_code import sum_by_code
from .trellis_decode import trellis_decode
from .trellis_search import trellis_search
from .uniform_decode import uniform_decode
from .uniform_grad import uniform_grad
from .uniform_matmul import uniform_matmul

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
    "e8p_assign",
    "e8p_decode",
    "gather_groups",
    "group_sq_norms",
    "hadamard",
    "largest",
    "largest_changes",
    "matmul",
    "scatter_groups",
    "smallest",
    "stacked_codebook_grad",
    "sum_by_code",
    "trellis_decode",
    "trellis_search",
    "uniform_decode",
    "uniform_grad",
    "uniform_matmul",
]
