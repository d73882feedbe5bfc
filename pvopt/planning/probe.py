"""What this machine takes: time of passes and steps, memory of a program that has made some."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pvopt.core.heap import release_free_memory
from pvopt.llm import distillation_loss, hidden_states, load_model, output_head
from pvopt.optimizer import PVOptimizer
from pvopt.parametrizations.options import FitOptions
from pvopt.parametrizations.scheme import Scheme
from pvopt.quantization import quantize_
from pvopt.tuning import TuneSettings, autocast_dtype, build_optimizer

from .passes import pass_cost
from .watch import MemoryWatch

__all__ = ["Machine", "measure_machine", "step_spare"]

_REPEATS = 3
_SEQUENCES, _LENGTH = 2, 128
_WIDTH = 512
# How good the start is does not matter.
_QUICKLY = FitOptions(iterations=1)
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine does in a second, and what a program takes on it.

    Attributes:
        seconds_per_flop: of forward and backward passes.
        seconds_per_weight: of an optimizer's step on quantized weights.
        seconds_per_other: of its step on all other parameters.
        spare_per_weight: bytes that the optimizer's step takes for a moment, for each quantized
            weight that takes it at once.
        program: bytes of Python and its packages once they have made passes and steps; 0 where the
            system does not tell.

    Example:
        >>> from pvopt.planning import Machine
        >>> rates = {"seconds_per_flop": 1e-9, "seconds_per_weight": 1e-6, "seconds_per_other": 0.0}
        >>> machine = Machine(**rates, spare_per_weight=8.0, program=0)
        >>> machine.seconds(1e9, 1_000_000, 0)
        2.0
    """

    seconds_per_flop: float
    seconds_per_weight: float
    seconds_per_other: float
    spare_per_weight: float
    program: int

    def seconds(self, flops: float, quantized: float, others: float) -> float:
        """Return how long a step takes.

        Args:
            flops: of its passes.
            quantized: number of quantized weights.
            others: number of all other weights that move.
        """
        in_step = self.seconds_per_weight * quantized + self.seconds_per_other * others
        return self.seconds_per_flop * flops + in_step


def measure_machine(
    scheme: Scheme,
    shape: tuple[int, int],
    settings: TuneSettings,
    *,
    device: torch.device | str = "cpu",
) -> Machine:
    """Make passes of a small model and steps of a small weight, in a few seconds.

    Args:
        scheme: of the weights.
        shape: of a matrix that the scheme fits, should it not fit one of 512 by 512.
        settings: of the run, with the dtype that ``auto`` stands for.
        device: where to measure.

    Raises:
        ValueError: if the settings do not fit the scheme.

    Example:
        >>> from pvopt import parse_scheme
        >>> from pvopt.planning import measure_machine
        >>> from pvopt.tuning import TuneSettings
        >>> settings = TuneSettings(dtype="float32", recipe="subspace_pv")
        >>> machine = measure_machine(parse_scheme("grid:2g64"), (64, 64), settings)
        >>> 0 < machine.seconds(1e6, 1000, 0) < machine.seconds(2e6, 2000, 10)
        True
    """
    load_model("tiny-llama").encode("a text")  # what every run loads
    per_weight, per_other = _seconds_per_weight(scheme, shape, settings, device)
    model = _small_model(settings.seed)
    in_pass = _seconds_per_pass(model, settings, device)
    program = _program_bytes() - sum(p.nbytes for p in model.parameters())
    # Last: counting loads more than a run needs.
    dtype = autocast_dtype(settings.dtype)
    cost = pass_cost(model, sequences=_SEQUENCES, length=_LENGTH, autocast_dtype=dtype)
    return Machine(
        seconds_per_flop=in_pass / cost.flops,
        seconds_per_weight=per_weight,
        seconds_per_other=per_other,
        spare_per_weight=step_spare(scheme, shape, settings),
        program=max(0, program),
    )


def step_spare(scheme: Scheme, shape: tuple[int, int], settings: TuneSettings) -> float:
    """Return the bytes per weight that an optimizer's step takes for a moment.

    Args:
        scheme: of the weights.
        shape: of a matrix that the scheme fits, should it not fit one of 512 by 512.
        settings: of the run.

    Example:
        >>> from pvopt import parse_scheme
        >>> from pvopt.planning import step_spare
        >>> from pvopt.tuning import TuneSettings
        >>> 0 < step_spare(parse_scheme("grid:2g64"), (64, 64), TuneSettings()) < 100
        True
    """
    optimizer, layer, _ = _probe(scheme, shape, settings, "cpu")
    optimizer.step()
    with MemoryWatch() as watch:
        optimizer.step()
    return watch.peak / layer.weight.numel()


def _probe(
    scheme: Scheme, shape: tuple[int, int], settings: TuneSettings, device: torch.device | str
) -> tuple[PVOptimizer, nn.Linear, nn.Linear]:
    """Return an optimizer of a quantized layer, which has a gradient, and of another one."""
    plain, size = Scheme(scheme.parametrization, scheme.space), (_WIDTH, _WIDTH)
    try:
        plain.check(size)
    except ValueError:
        size = shape
    generator = torch.Generator().manual_seed(settings.seed)
    layer, other = nn.Linear(size[1], size[0], bias=False), nn.Linear(_WIDTH, _WIDTH, bias=False)
    for module in (layer, other):
        drawn = torch.randn(module.weight.shape, generator=generator)
        module.weight.data.copy_(drawn * module.in_features**-0.5)
    weights = quantize_(
        nn.Sequential(layer, other).to(device), {"0": plain}, seed=settings.seed, options=_QUICKLY
    )
    layer.weight.grad = 1e-3 * torch.randn(size, generator=generator).to(device)
    return build_optimizer(weights, settings), layer, other


def _seconds_per_weight(
    scheme: Scheme, shape: tuple[int, int], settings: TuneSettings, device: torch.device | str
) -> tuple[float, float]:
    """Return how long an optimizer's step takes on a quantized weight and on another one."""
    optimizer, layer, other = _probe(scheme, shape, settings, device)
    per_weight = _seconds(optimizer.step, device) / layer.weight.numel()
    if not other.weight.requires_grad:
        return per_weight, 0.0
    layer.weight.grad, other.weight.grad = None, torch.ones_like(other.weight)
    return per_weight, _seconds(optimizer.step, device) / other.weight.numel()


def _small_model(seed: int) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def _seconds_per_pass(model: Any, settings: TuneSettings, device: torch.device | str) -> float:
    """Return how long a forward and a backward pass with a teacher take."""
    model, dtype = model.to(device), autocast_dtype(settings.dtype)
    ids = torch.arange(_SEQUENCES * _LENGTH, device=device).view(_SEQUENCES, _LENGTH)
    head = output_head(model).detach()

    def work() -> None:
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
            with torch.no_grad():
                hidden = hidden_states(model, ids)
            loss = distillation_loss(model, hidden, head, ids)
        loss.backward()

    found = _seconds(work, device)
    model.zero_grad()
    return found


def _seconds(work: Callable[[], Any], device: torch.device | str) -> float:
    """Return the shortest time of a few runs; the first one compiles."""
    work()
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def _program_bytes() -> int:
    """Return what this process takes beside what is free; 0 where the system does not tell."""
    gc.collect()
    release_free_memory()
    if not _STATUS.exists():
        return 0
    fields = (line.partition(":") for line in _STATUS.read_text().splitlines())
    return next(int(size.split()[0]) << 10 for name, _, size in fields if name == "VmRSS")
