"""The training loop: steps, evaluations, checkpoints, in an order that a resumed run repeats."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pvopt.formats import CheckpointError, read_metadata, save
from pvopt.formats.locks import locked
from pvopt.llm import (
    LanguageModel,
    PerplexityResult,
    TokenBatches,
    distillation_loss,
    hidden_states,
    language_loss,
    output_head,
)
from pvopt.weights import QuantizedWeights

from .evaluation import Evaluation
from .optimizers import build_optimizer
from .records import RECORDS, RecordsFile, StepRecord, first_and_last
from .settings import TuneSettings, autocast_dtype, computing_dtype
from .weight_errors import weight_errors

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class _Stopped(Exception):
    """An evaluation was given up because the run is to stop."""


class Trainer:
    """Tune a quantized language model and write what happens into a folder.

    The folder gets ``metrics.jsonl`` and ``checkpoint`` (see :mod:`pvopt.formats`). The
    state after ``n`` steps is a function of the settings, the start and the texts only, however
    often the run was interrupted.

    Args:
        student: the model to tune; it is kept in evaluation mode, dropout would need a saved
            random state.
        weights: its quantized weights.
        teacher: the full-precision model.
        batches: what to tune on, batch by batch.
        eval_tokens: ``[tokens]`` int64, what to measure perplexity on.
        settings: how to tune; the trainer's own name the dtype that ``auto`` stands for here.
        folder: where results go; made if it does not exist.
        metadata: kept in the checkpoints, with the step, the settings and the first and last
            evaluations; ``commands`` among them goes into the model card.
        resumable: whether checkpoints hold the optimizer's state, several times the model's size.

    Example:
        >>> import tempfile
        >>> from pvopt.tuning import Inputs, TuneSettings, start_run
        >>> settings = TuneSettings(steps=2, batch=2, length=16, eval_windows=1)
        >>> inputs = Inputs(model="tiny-llama", format="grid:2")
        >>> trainer = start_run(inputs, settings, tempfile.mkdtemp())
        >>> trainer.run()
        >>> trainer.checkpoint.name
        'checkpoint'
    """

    def __init__(
        self,
        student: LanguageModel,
        weights: QuantizedWeights,
        teacher: nn.Module,
        batches: TokenBatches,
        eval_tokens: Tensor,
        settings: TuneSettings,
        folder: str | Path,
        metadata: Mapping[str, Any] | None = None,
        *,
        resumable: bool = True,
    ) -> None:
        self.student = student
        self.weights = weights
        self.teacher = teacher.requires_grad_(False)
        self._teacher_head = output_head(teacher)
        self.settings = settings = replace(
            settings, dtype=computing_dtype(settings.dtype, student.model)
        )
        self.folder = Path(folder)
        self.records = RecordsFile(self.folder / RECORDS)
        self.resumable = resumable
        self.step = 0
        self._resumed = self._owns_folder = False
        self.metadata = dict(metadata or {})
        self._changed: Counter[str] = Counter()  # groups by weight, since the last record
        self._batches = batches
        self.eval_tokens = eval_tokens
        self._evaluation = Evaluation(eval_tokens, settings)
        self._device = next(student.model.parameters()).device
        self._autocast_dtype = autocast_dtype(settings.dtype)
        own = next(p.dtype for p in student.model.parameters() if p.is_floating_point())
        if settings.dtype == "float32" and own in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"dtype must be auto, bfloat16 or float16 to tune a model in {own}, got float32"
            )
        self.optimizer = build_optimizer(weights, settings)
        self._scheduler = self._new_scheduler()

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint goes."""
        return self.folder / "checkpoint"

    def restore(self, training_state: Mapping[str, Any]) -> None:
        """Continue where a checkpoint left off.

        Args:
            training_state: of the checkpoint that the student was loaded from.

        Raises:
            ValueError: if it belongs to another model or other settings.
        """
        self.optimizer.load_state_dict(training_state["optimizer"])
        self.step = int(training_state["step"])
        self._resumed, self._owns_folder = True, False
        self._scheduler = self._new_scheduler()

    def run(
        self,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[int, StepRecord], None] | None = None,
        on_evaluation: Callable[[int, str, PerplexityResult], None] | None = None,
    ) -> None:
        """Take the remaining steps, with evaluations and checkpoints between them.

        Args:
            stop: asked between steps; if true, a checkpoint is written and the run ends.
            on_step: called after each step with the number of steps taken.
            on_evaluation: called with steps taken, ``student`` or ``teacher``, and the result.

        Raises:
            NonFiniteGradientError: if the training diverged; the last checkpoint stays.
            CheckpointError: if another run writes to the folder, or the disk is full.
        """
        with self._alone():
            if not self._owns_folder:
                self._check_folder()
                self._owns_folder = True
            self.records.forget_after(self.step)  # steps that are going to be repeated
            settings = asdict(self.settings)
            self.records.append("start", self.step, settings=settings, metadata=self.metadata)
            self._run(stop, on_step, on_evaluation)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other runs out of the folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be written ({error})") from error
        with locked(self.folder / ".lock", "another run"):
            yield

    def _check_folder(self) -> None:
        """Raise if another run has used the folder since this one was prepared."""
        if self._resumed:
            other = read_metadata(self.checkpoint).get("step") != self.step
        else:
            other = self.checkpoint.exists() or self.records.path.exists()
        if other:
            raise CheckpointError(f"{self.folder}: another run has written here since")

    def _run(
        self,
        stop: Callable[[], bool],
        on_step: Callable[[int, StepRecord], None] | None,
        on_evaluation: Callable[[int, str, PerplexityResult], None] | None,
    ) -> None:
        saved, saved_at = None, time.monotonic()
        while True:
            try:
                if self._evaluate_if_due(stop, on_evaluation):
                    saved = None
            except _Stopped:
                break
            if self.step >= self.settings.steps or stop():
                break
            record = self._train_step()
            self.step += 1
            self.records.append("step", self.step, **asdict(record))
            if on_step is not None:
                on_step(self.step, record)
            due = self.settings.checkpoint_is_due(self.step, time.monotonic() - saved_at)
            if due and self.step < self.settings.steps:  # the last one tells the perplexity
                self.save()
                saved, saved_at = self.step, time.monotonic()
        if saved != self.step:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        self._record_changes()
        settings = asdict(self.settings)
        state = None
        if self.resumable:
            optimizer = self.optimizer.state_dict()
            state = {"step": self.step, "settings": settings, "optimizer": optimizer}
        metadata = {
            **self.metadata,
            "step": self.step,
            "settings": settings,
            "evaluations": first_and_last(self.records.read()),
        }
        save(
            self.checkpoint,
            self.student.model,
            self.weights,
            tokenizer=self.student.tokenizer,
            metadata=metadata,
            training_state=state,
            card=True,
        )
        logger.info("saved step %d to %s", self.step, self.checkpoint)

    def _new_scheduler(self) -> LambdaLR:
        # The groups keep their initial learning rates, so the step is all there is to restore.
        return LambdaLR(self.optimizer, self.settings.lr_factor, last_epoch=self.step - 1)

    def _train_step(self) -> StepRecord:
        settings = self.settings
        batch = self._batches[self.step].to(self._device)
        factor = settings.lr_factor(self.step)
        start = time.perf_counter()
        self.optimizer.zero_grad()
        total = 0.0
        for ids in batch.split(settings.sequences_per_pass):
            loss = self._loss(ids) * (len(ids) / len(batch))
            loss.backward()
            total += float(loss.detach())
        middle = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        self._scheduler.step()
        self._changed.update(self.optimizer.report.changed)
        self.optimizer.zero_grad()  # frees the gradients before an evaluation
        return StepRecord(
            loss=total,
            changed_groups=self.optimizer.report.changed_groups,
            changed_fraction=self.optimizer.report.changed_fraction,
            forward_backward_s=middle - start,
            optimizer_s=end - middle,
            tokens_per_s=batch.numel() / (time.perf_counter() - start),
            lr_factor=factor,
        )

    def _loss(self, ids: Tensor) -> Tensor:
        model = self.student.model
        dtype = self._autocast_dtype
        with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
            if self.settings.loss == "ce":
                return language_loss(model, ids)
            with torch.no_grad():
                hidden = hidden_states(self.teacher, ids)
            temperature = self.settings.temperature
            return distillation_loss(
                model, hidden, self._teacher_head, ids, temperature=temperature
            )

    def _evaluate_if_due(
        self,
        stop: Callable[[], bool],
        on_evaluation: Callable[[int, str, PerplexityResult], None] | None,
    ) -> bool:
        """Evaluate what is to be evaluated at this step; return whether anything was."""
        every = self.settings.eval_every
        at_an_end = self.step in (0, self.settings.steps)
        due = at_an_end or (every > 0 and self.step % every == 0)
        done = {(r["model"], r["step"]) for r in self.records.read() if r["kind"] == "evaluation"}
        wanted = [("teacher", self.teacher)] * (not any(name == "teacher" for name, _ in done))
        if due and ("student", self.step) not in done:
            wanted.append(("student", self.student.model))

        def check(done: int, windows: int) -> None:
            if stop():
                raise _Stopped

        for name, model in wanted:
            start = time.perf_counter()
            if name == "student" and at_an_end:
                result = self._evaluation.comparison(model, self.teacher, check)
            else:
                result = self._evaluation.perplexity(model, check)
            if name == "student":
                self._record_changes()
                errors = weight_errors(self.weights, self.teacher)
                self.records.append("errors", self.step, weights=errors)
            self.records.append(
                "evaluation",
                self.step,
                model=name,
                **asdict(result),
                dtype=self.settings.dtype,
                seconds=time.perf_counter() - start,
            )
            if on_evaluation is not None:
                on_evaluation(self.step, name, result)
        return bool(wanted)

    def _record_changes(self) -> None:
        """Record what the codes did since this was last done."""
        if self._changed:
            groups = dict(self.optimizer.report.groups)
            self.records.append("codes", self.step, changed=dict(self._changed), groups=groups)
            self._changed.clear()
