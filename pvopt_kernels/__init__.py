"""Operations on codes and codebooks, in plain torch; independent of :mod:`pvopt`."""

from .beam_search import beam_search, smallest
from .sum_by_code import sum_by_code

__all__ = ["beam_search", "smallest", "sum_by_code"]
