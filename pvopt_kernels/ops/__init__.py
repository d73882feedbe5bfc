"""The operations: what each computes, checked arguments, autograd and torch.compile."""

from .beam_search import beam_search
from .group_sq_norms import group_sq_norms
from .smallest import smallest
from .sum_by_code import sum_by_code

__all__ = ["beam_search", "group_sq_norms", "smallest", "sum_by_code"]
