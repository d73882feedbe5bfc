"""Steps and evaluations of a run as TensorBoard shows them."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType

from pvopt.llm import PerplexityResult

from .records import StepRecord
from .settings import TuneSettings

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Writes what a trainer reports as scalars of TensorBoard.

    Its methods are what :meth:`Trainer.run` calls ``on_step`` and ``on_evaluation``.

    Args:
        folder: of the run; events go into ``tensorboard`` inside.
        settings: the run's.
        step: number of steps taken: events of later ones, which a resumed run is going to repeat,
            are hidden.

    Raises:
        ImportError: without the package tensorboard.

    Example:
        >>> import tempfile
        >>> from pvopt.llm import PerplexityResult
        >>> from pvopt.tuning import TensorBoardLog, TuneSettings
        >>> with TensorBoardLog(tempfile.mkdtemp(), TuneSettings()) as log:
        ...     log.on_evaluation(0, "student", PerplexityResult(20.0, 3.0, 30, 2, 16))
        >>> log.folder.name, len(list(log.folder.iterdir()))
        ('tensorboard', 1)
    """

    def __init__(self, folder: str | Path, settings: TuneSettings, step: int = 0) -> None:
        # Before torch's own import, which names no package.
        import tensorboard  # noqa: F401
        from torch.utils.tensorboard import SummaryWriter

        self.folder = Path(folder) / "tensorboard"
        self._settings = settings
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def on_step(self, step: int, record: StepRecord) -> None:
        """Write a step."""
        settings, factor = self._settings, record.lr_factor
        for tag, value in (
            (f"train/{settings.loss}", record.loss),
            ("codes/changed_fraction", record.changed_fraction),
            ("codes/changed_groups", record.changed_groups),
            ("lr/codes", settings.code_lr * factor),
            ("lr/values", settings.values_lr * factor),
            ("lr/others", settings.lr * factor),
            ("time/tokens_per_s", record.tokens_per_s),
        ):
            self._writer.add_scalar(tag, value, step)

    def on_evaluation(self, step: int, model: str, result: PerplexityResult) -> None:
        """Write an evaluation."""
        if math.isfinite(result.perplexity):
            self._writer.add_scalar(f"perplexity/{model}", result.perplexity, step)
        self._writer.add_scalar(f"nats_per_token/{model}", result.nll_per_token, step)

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
