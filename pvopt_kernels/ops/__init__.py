"""The operations: what each computes, checked arguments, autograd and torch.compile."""

from .assign import assign
from .beam_search import beam_search
from .e8p_assign import e8p_assign
from .e8p_decode import e8p_decode
from .group_sq_norms import group_sq_norms
from .hadamard import hadamard
from .smallest import smallest
from .sum_by_code import sum_by_code

__all__ = [
    "assign",
    "beam_search",
    "e8p_assign",
    "e8p_decode",
    "group_sq_norms",
    "hadamard",
    "smallest",
    "sum_by_code",
]
