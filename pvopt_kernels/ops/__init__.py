"""The operations: what each computes, checked arguments, autograd and torch.compile."""

from .assign import assign
from .beam_search import beam_search
from .codebook_grad import codebook_grad
from .decode import decode
from .e8p_assign import e8p_assign
from .e8p_decode import e8p_decode
from .group_sq_norms import group_sq_norms
from .hadamard import hadamard
from .matmul import matmul
from .smallest import smallest
from .sum_by_code import sum_by_code
from .uniform_decode import uniform_decode
from .uniform_grad import uniform_grad
from .uniform_matmul import uniform_matmul

__all__ = [
    "assign",
    "beam_search",
    "codebook_grad",
    "decode",
    "e8p_assign",
    "e8p_decode",
    "group_sq_norms",
    "hadamard",
    "matmul",
    "smallest",
    "sum_by_code",
    "uniform_decode",
    "uniform_grad",
    "uniform_matmul",
]
