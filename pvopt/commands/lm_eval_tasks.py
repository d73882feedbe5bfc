"""Tasks of lm-eval: which are asked for, and what a model reaches in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pvopt.llm import LanguageModel

__all__ = ["Tasks"]


@dataclass(frozen=True)
class Tasks:
    """Tasks that exist.

    Args:
        names: of registered tasks and groups, and absolute paths of files that describe one.
        manager: of lm-eval, which knows them.
    """

    names: tuple[str, ...]
    manager: Any

    @classmethod
    def find(cls, text: str) -> Tasks:
        """Look tasks up, before any work is done.

        Args:
            text: names, patterns of them (``mmlu_*``) and files in YAML, with commas between.

        Raises:
            ValueError: if there is no such task; the message says what comes close.
        """
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

        manager = TaskManager()
        found: dict[str, None] = {}
        for name in filter(None, (part.strip() for part in text.split(","))):
            if name.endswith(".yaml"):
                if not Path(name).is_file():
                    raise ValueError(f"--tasks: there is no file {name!r}")
                found[str(Path(name).absolute())] = None
                continue
            matches = manager.match_tasks([name])
            if not matches:
                near = get_close_matches(name, manager.all_tasks, n=3)
                guess = f"; did you mean {', '.join(near)}?" if near else ""
                raise ValueError(f"--tasks: lm-eval has no task {name!r}{guess}")
            found |= dict.fromkeys(matches)
        if not found:
            raise ValueError(f"--tasks must name a task, got {text!r}")
        return cls(tuple(found), manager)

    def measure(
        self, loaded: LanguageModel, *, cast: torch.dtype | None, limit: int | None
    ) -> list[list[str]]:
        """Return a row for each measure of each task: task, measure, value.

        Args:
            loaded: the model.
            cast: autocast dtype, None for float32.
            limit: at most so many examples of each task; None for all.
        """
        import torch
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

        with _quiet(), torch.autocast(loaded.model.device.type, cast, enabled=cast is not None):
            results = simple_evaluate(
                model=HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer),
                tasks=list(self.names),
                task_manager=self.manager,
                limit=limit,
            )["results"]
        return [
            [task, name.removesuffix(",none"), f"{value:.4f}"]
            for task, measures in results.items()
            for name, value in measures.items()
            if isinstance(value, float)
        ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence advice for those who call lm-eval themselves; errors still show."""
    import logging

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
