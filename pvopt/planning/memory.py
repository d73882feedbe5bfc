"""The memory of a tuning run, part by part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pvopt.engine.runs import AT_ONCE, AT_ONCE_LATENT
from pvopt.parametrizations.scheme import Scheme
from pvopt.parametrizations.uniform_grid import UniformGrid
from pvopt.quantization import quantize_
from pvopt.tuning import TuneSettings, autocast_dtype, build_optimizer
from pvopt.tuning.bases import BASES

from .passes import PassCost, pass_cost
from .probe import Machine
from .states import BaseCost, code_bytes, common_value_count, value_count

__all__ = ["TuningMemory", "tuning_memory", "tuning_passes"]


@dataclass(frozen=True, kw_only=True)
class TuningMemory:
    """What a tuning run takes on each device, in bytes.

    Attributes:
        program: of Python and its packages.
        teacher: weights of the full-precision model.
        student: dense weights of the model that is tuned.
        codes: of the quantized weights, a byte or four each.
        values: scales and codebooks, with their moments.
        latents: latent weights.
        base_state: what the base optimizer keeps.
        gradients: of all parameters that move.
        activations: what the passes take beyond the gradients.
        step: what the optimizer's step takes beyond the gradients.
        holes: memory that is free again and that the allocator keeps all the same, in pieces that
            nothing fits into. Measured runs (``benchmarks.plan``) have about as much of it as the
            gradients take, which come and go in each step.
        gathered: weights of the largest block, where each device has a part of them.
    """

    program: int
    teacher: int
    student: int
    codes: int
    values: int
    latents: int
    base_state: int
    gradients: int
    activations: int
    step: int
    holes: int
    gathered: int = 0

    @property
    def standing(self) -> int:
        """What is there all the time."""
        kept = (self.teacher, self.student, self.codes, self.values, self.latents, self.base_state)
        return self.program + sum(kept)

    @property
    def peak(self) -> int:
        """The most at once.

        What activations leave free is in smaller pieces than the optimizer's step asks for, so
        that both add up.
        """
        passing = (self.gradients, self.activations, self.step, self.holes, self.gathered)
        return self.standing + sum(passing)

    @property
    def parts(self) -> dict[str, int]:
        """All parts by name, those that are there."""
        return {name: size for name, size in vars(self).items() if size}


def tuning_passes(
    model: nn.Module, schemes: Collection[str], settings: TuneSettings, *, devices: int = 1
) -> PassCost:
    """Return what the passes of a step of a tuning run cost on each device.

    Args:
        model: the full-precision causal language model; its tensors may be on the meta device.
        schemes: names of its quantized weights.
        settings: of the run, with the dtype that ``auto`` stands for.
        devices: that share a batch; each takes ``micro_batch`` sequences at a time.

    Raises:
        ValueError: if ``devices`` is below 1, or the passes cannot be planned.

    Example:
        >>> from pvopt.llm import empty_model
        >>> from pvopt.planning import tuning_passes
        >>> from pvopt.tuning import TuneSettings
        >>> settings = TuneSettings(batch=4, length=64, dtype="float32")
        >>> whole = tuning_passes(empty_model("tiny-llama"), (), settings)
        >>> half = tuning_passes(empty_model("tiny-llama"), (), settings, devices=2)
        >>> whole.flops == 2 * half.flops
        True
    """
    if devices < 1:
        raise ValueError(f"devices must be at least 1, got {devices}")
    names = [name for name, _ in model.named_parameters()]
    own = -(-settings.batch // devices)
    sequences = min(own, settings.sequences_per_pass)
    # All further passes are like the second. Of several devices each keeps few gradients, so that
    # its activations are those beside gradients that are there already.
    passes = 2 if devices > 1 else min(2, own // sequences)
    return pass_cost(
        model,
        sequences=sequences,
        length=settings.length,
        passes=passes,
        distilled=settings.loss == "kl",
        autocast_dtype=autocast_dtype(settings.dtype),
        frozen=[] if settings.lr else [name for name in names if name not in schemes],
    )


def tuning_memory(
    model: nn.Module,
    schemes: Mapping[str, Scheme],
    settings: TuneSettings,
    passes: PassCost,
    *,
    machine: Machine | None = None,
    devices: int = 1,
) -> TuningMemory:
    """Return what a tuning run takes, from shapes alone.

    With several devices each has a part of all weights, gradients and states, as
    ``fully_shard`` cuts them, and its share of a batch. Codebooks, and other values that all rows
    of a weight have in common, are kept by each.

    Args:
        model: the full-precision causal language model; its tensors may be on the meta device.
        schemes: of its quantized weights, by parameter name.
        settings: of the run, with the dtype that ``auto`` stands for.
        passes: what they cost (:func:`tuning_passes`).
        machine: that says what a program takes beside the model; None for nothing.
        devices: among which the run is divided.

    Example:
        >>> from dataclasses import replace
        >>> from pvopt import parse_scheme
        >>> from pvopt.llm import empty_model
        >>> from pvopt.planning import tuning_memory, tuning_passes
        >>> from pvopt.tuning import TuneSettings
        >>> model, scheme = empty_model("tiny-llama"), parse_scheme("grid:2g16")
        >>> schemes = {n: scheme for n, _ in model.named_parameters() if "proj" in n}
        >>> settings = TuneSettings(batch=1, length=16, dtype="float32")
        >>> passes = tuning_passes(model, schemes, settings)
        >>> plain = tuning_memory(model, schemes, settings, passes)
        >>> saving = tuning_memory(model, schemes, replace(settings, latent_decay=1.0), passes)
        >>> plain.peak - saving.peak == plain.latents == 4 * 73728
        True
    """
    base = BaseCost.of(BASES[settings.base])
    group = _group_options(settings)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    itemsize = next(p.element_size() for p in model.parameters() if p.is_floating_point())
    others = [n for n in shapes if n not in schemes] if settings.lr else []
    moved = [] if group["freeze_codes"] else list(schemes)
    quantized = sum(counts[name] for name in schemes)
    keeps_latents = group["latent_decay"] < 1 and not group["freeze_codes"]
    values = 4 * value_count(schemes, shapes)
    common = 4 * common_value_count(schemes, shapes)  # every device has all of them
    dense = sum(p.numel() * p.element_size() for p in model.parameters())
    undo = itemsize * sum(counts[name] for name in others) + values
    # Weights in half precision are stepped in full precision: copies of gradients, and of weights.
    widened = 8 * quantized if itemsize < 4 and moved else 0
    spare = int(base.spare * max((counts[name] for name in (*others, *moved)), default=0))
    if machine is not None:
        together = _largest_run(schemes, shapes, keeps_latents=keeps_latents)
        spare = max(spare, int(machine.spare_per_weight * together))
    return TuningMemory(
        program=0 if machine is None else machine.program,
        teacher=dense // devices,
        student=dense // devices,
        codes=code_bytes(schemes, shapes) // devices,
        values=3 * (common + (values - common) // devices),
        latents=4 * quantized // devices if keeps_latents else 0,
        base_state=sum(base.kept(shapes[name]) for name in (*others, *moved)) // devices,
        gradients=passes.gradient_bytes // devices,
        activations=passes.peak_bytes - passes.gradient_bytes,
        step=(undo + widened + spare) // devices,
        holes=passes.gradient_bytes // devices,
        gathered=2 * _largest_block(model) if devices > 1 else 0,
    )


def _group_options(settings: TuneSettings) -> Mapping[str, Any]:
    """Return the options that a recipe gives to quantized weights."""
    weights = quantize_(nn.Linear(4, 4), UniformGrid(bits=2))
    plain = replace(settings, subspace=None, rounding=None, metric="euclidean")
    return build_optimizer(weights, plain).param_groups[0]


def _largest_run(
    schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, ...]], *, keeps_latents: bool
) -> int:
    """Return the most entries of weights that take a step together."""
    runs: Counter[tuple[Any, ...]] = Counter()
    for name, scheme in schemes.items():
        together = scheme.parametrization.stacks and scheme.space.trivial
        runs[(scheme, shapes[name], "" if together else name)] += math.prod(shapes[name])
    most = AT_ONCE_LATENT if keeps_latents else AT_ONCE
    single = max((math.prod(shapes[name]) for name in schemes), default=0)
    return max(single, min(most, max(runs.values(), default=0)))


def _largest_block(model: nn.Module) -> int:
    """Return the bytes of the largest module in a list of modules, or of the whole model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = [block for blocks in lists for block in blocks] or [model]
    return max(sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks)
