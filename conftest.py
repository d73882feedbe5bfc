"""Settings that must be made before anything is imported."""

from __future__ import annotations

import importlib.util
import os

import pytest

# Triton kernels run in Triton's interpreter, on a CPU. Triton reads this when it is imported, so it
# cannot be changed later; `make gpu` sets it to 0, and compilation is tested in its own process.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Two threads on a busy core wait for each other by sleeping: tests that use two take a tenth of the
# time beside others. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

collect_ignore_glob = []
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob += ["pvopt_kernels/triton/*", "tests/kernels/ahead_of_time/*"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run the example of a docstring as somebody would who has copied it: with no other names.

    By default it sees everything that its module has imported.
    """
    if isinstance(item, pytest.DoctestItem) and item.dtest is not None:
        item.dtest.globs = {"__name__": "__main__"}
