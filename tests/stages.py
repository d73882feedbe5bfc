"""Stages of a benchmark's quick variant, whose processes would take longer to start than to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.processes import in_own_process


class FirstAlone:
    """Stands for ``in_own_process``: the first stage gets a process, the others run in this one."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self, stage: Callable[..., Any], *arguments: Any) -> Any:
        first, self.called = not self.called, True
        return in_own_process(stage, *arguments) if first else stage(*arguments)
