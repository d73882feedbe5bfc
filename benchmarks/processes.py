"""Stages of a benchmark in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

__all__ = ["in_own_process"]


def in_own_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Run one stage in a fresh process: its peak memory is not that of an earlier stage."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
