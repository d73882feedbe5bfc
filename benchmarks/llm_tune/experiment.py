"""The stages of the benchmark; each runs in a process of its own, so that its memory is its own."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pvopt
from benchmarks.evaluation import peak_bytes, text_perplexity
from pvopt import formats
from pvopt.llm import (
    LanguageModel,
    OutputHead,
    TokenBatches,
    distillation_loss,
    hidden_states,
    load_model,
    load_text,
    output_head,
)
from pvopt.tuning import TuneSettings, build_optimizer

__all__ = ["RECIPES", "TEACHER", "Settings", "keep_teacher", "prepare", "tune"]

RECIPES = (
    "subspace_pv_ste",
    "subspace_pv",
    "ste",
    "stochastic_rounding",
    "naive_pv",
    "continuous_only",
)
_START = "start"
TEACHER = "teacher.pt"


@dataclass(frozen=True)
class Settings:
    """Everything the numbers depend on.

    Args:
        model: source for :func:`pvopt.llm.load_model`.
        train_text, test_text: sources for :func:`pvopt.llm.load_text`.
        steps, batch, length: optimizer steps; sequences per step; tokens per sequence.
        stop_after: end a run after that many of the steps (learning rates fall as in all of them);
            None: all. For a first comparison in a third of the time.
        micro_batch: sequences per forward and backward pass.
        evaluate_at: steps after which the perplexity is measured.
        context, windows: of the evaluation.
        precision: "float32", "bfloat16" (autocast) or "auto" (bfloat16 where native).
        code_lr, values_lr, other_lr: learning rates of quantized weights, of codebooks and scales,
            and of all other parameters, each in units of the root mean square of the tensor. All
            fall linearly to 0.
        fraction, trust_ratio: of the subspace recipes.
        beam_size: of the V step where a fraction of the groups moves; where all move it is 1.
        seed: of the batches, the fit and the draws of the optimizer.
    """

    model: str = "smollm2"
    train_text: str = "hub:Salesforce/wikitext:wikitext-2-v1:validation"
    test_text: str = "hub:Salesforce/wikitext:wikitext-2-raw-v1:test"
    num_codebooks: int = 2
    bits: int = 8
    group: int = 8
    steps: int = 48
    batch: int = 4
    length: int = 512
    stop_after: int | None = None
    micro_batch: int = 1
    evaluate_at: tuple[int, ...] = (16, 32, 48)
    context: int = 1024
    windows: int = 24
    precision: str = "auto"
    code_lr: float = 4e-2
    values_lr: float = 2e-3
    other_lr: float = 3e-3
    fraction: float = 0.01
    trust_ratio: float | None = None
    beam_size: int = 5
    seed: int = 0

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes for a first look: a tiny random model on Python's manual."""
        return cls(
            model="tiny-llama",
            train_text="pydoc",
            test_text="pydoc",
            bits=4,
            steps=12,
            batch=4,
            length=64,
            micro_batch=2,
            evaluate_at=(4, 8, 12),
            context=128,
            windows=4,
            code_lr=0.3,
        )

    def start_key(self) -> str:
        """Return what the start and the teacher's states depend on, as text."""
        later = {"code_lr", "values_lr", "other_lr", "fraction", "trust_ratio", "micro_batch"}
        later |= {"evaluate_at", "beam_size", "stop_after"}
        return repr({k: v for k, v in asdict(self).items() if k not in later})

    def batches(self, tokens: Tensor) -> TokenBatches:
        """Return the training batches, the same for every recipe."""
        return TokenBatches(tokens, self.batch, self.length, self.seed)


def keep_teacher(settings: Settings, folder: Path) -> LanguageModel:
    """Keep what every run needs of the teacher: its hidden states for every batch, the test text.

    The teacher's states are the same for every recipe: computed once, they cost each of them
    neither time nor the memory of a second model.
    """
    teacher = load_model(settings.model)
    batches = settings.batches(teacher.encode(load_text(settings.train_text)))
    test = teacher.encode(load_text(settings.test_text))
    ids = torch.stack([batches[step] for step in range(settings.steps)])  # [steps, batch, length]
    with torch.no_grad():
        hidden = torch.stack(
            [hidden_states(teacher.model, row[None])[0] for row in ids.flatten(0, 1)]
        ).unflatten(0, ids.shape[:2])  # [steps, batch, length, H]
    kept = {
        "ids": ids,
        "hidden": hidden,
        "head": vars(output_head(teacher.model).clone()),  # plain, for torch.load
        "test": test[: settings.context * settings.windows],
    }
    torch.save(kept, folder / TEACHER)
    return teacher


def prepare(settings: Settings, folder: Path) -> dict[str, Any]:
    """Measure the teacher, keep its states, and quantize by k-means."""
    teacher = keep_teacher(settings, folder)
    test = torch.load(folder / TEACHER, mmap=True, weights_only=True)["test"]
    teacher_ppl = text_perplexity(settings, teacher.model, test)
    spec = pvopt.AdditiveCodebooks(
        num_codebooks=settings.num_codebooks, bits=settings.bits, in_group=settings.group
    )
    begin = time.perf_counter()
    weights = pvopt.quantize_(teacher.model, spec, seed=settings.seed)
    quantize_s = time.perf_counter() - begin
    formats.save(folder / _START, teacher.model, weights, tokenizer=teacher.tokenizer)
    return {
        "teacher_ppl": teacher_ppl,
        "start_ppl": text_perplexity(settings, teacher.model, test),
        "quantize_s": quantize_s,
        "bits_per_weight": weights.bits_per_weight(),
        "peak_bytes": peak_bytes(),
    }


def _tune_settings(settings: Settings, recipe: str, *, beams: bool) -> TuneSettings:
    """Return the settings of a run; ``beams`` tells whether the format is searched with a beam."""
    # Adafactor: learning rates in units of each weight's size, and a factored second moment, which
    # keeps the ratios between the updates of a row. Adam makes every update alike, and with it the
    # choice of the groups of largest update arbitrary.
    in_subspace = recipe.startswith("subspace")
    # Where every group is searched in every step, a beam of 5 would take a minute a step.
    beam_size = settings.beam_size if in_subspace else 1
    return TuneSettings(
        recipe=recipe,
        base="adafactor",
        steps=settings.steps,
        code_lr=settings.code_lr,
        values_lr=settings.values_lr,
        lr=settings.other_lr,
        subspace=f"greedy:{settings.fraction}" if in_subspace else None,
        beam=beam_size if beams else None,
        trust_ratio=settings.trust_ratio or 0.0,
        lr_schedule="linear",
        seed=settings.seed,
    )


def tune(
    settings: Settings,
    recipe: str,
    folder: Path,
    start: str = _START,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Tune the start of that name by one recipe, keep the result if asked to; return its row."""
    loaded = formats.load(folder / start)
    model, weights = loaded.model, loaded.weights
    kept = torch.load(folder / TEACHER, mmap=True, weights_only=True)
    beams = any(rep.parametrization.usual_beam > 1 for rep in weights.values())
    plan = _tune_settings(settings, recipe, beams=beams)
    optimizer = build_optimizer(weights, plan)
    row: dict[str, Any] = {"recipe": recipe}
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, plan.lr_factor)
    losses, backward_s, step_s, changed = [], [], [], []
    for step in range(settings.stop_after or settings.steps):
        begin = time.perf_counter()
        loss = 0.0
        for first in range(0, settings.batch, settings.micro_batch):
            part = slice(first, first + settings.micro_batch)
            ids, hidden = kept["ids"][step, part], kept["hidden"][step, part]
            share = len(ids) / settings.batch
            term = distillation_loss(model, hidden, OutputHead(**kept["head"]), ids) * share
            term.backward()
            loss += float(term.detach())
        middle = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(loss)
        backward_s.append(middle - begin)
        step_s.append(end - middle)
        changed.append(optimizer.report.changed_groups)
        if step + 1 in settings.evaluate_at:
            row[f"ppl_{step + 1}"] = text_perplexity(settings, model, kept["test"])
    if keep is not None:
        formats.save(keep, model, weights, tokenizer=loaded.tokenizer)
    total = sum(rep.layout.num_groups for rep in weights.values())
    return row | {
        "forward_backward_s": statistics.median(backward_s),
        "step_s": statistics.median(step_s),
        "step_s_max": max(step_s),
        "peak_bytes": peak_bytes(),
        "changed_groups": statistics.mean(changed),
        "changed_fraction": statistics.mean(changed) / total,
        "changed_by_step": changed,
        "loss": losses,
    }
