"""``pvopt plan``: what quantizing and tuning a model would take, before any weight is read."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pvopt.core.byte_sizes import parse_bytes

from .tables import print_table
from .tune import add_fields

if TYPE_CHECKING:
    from pvopt import Scheme
    from pvopt.planning import PassCost, TuningMemory
    from pvopt.tuning import TuneSettings

__all__ = ["add_parser", "run"]

# The settings of a run on which its memory and time depend.
_FIELDS = (
    "recipe",
    "batch",
    "micro_batch",
    "length",
    "loss",
    "base",
    "lr",
    "latent_decay",
    "dtype",
)
_LABELS = {
    "program": "Python and packages",
    "teacher": "full-precision model",
    "student": "model that is tuned",
    "codes": "codes",
    "values": "scales and codebooks, with their moments",
    "latents": "latent weights",
    "base_state": "moments of the base optimizer",
    "gradients": "gradients",
    "activations": "activations",
    "step": "copies within the optimizer's step",
    "holes": "free memory in pieces",
    "gathered": "the block that is computed, gathered",
}


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    from pvopt.parametrizations import PARAMETRIZATIONS
    from pvopt.spaces import SPACES
    from pvopt.tuning import TuneSettings

    parser = commands.add_parser(
        "plan",
        help=help,
        argument_default=argparse.SUPPRESS,
        description="Show what quantizing and tuning a model would take. Of a folder or a model on "
        "the hub the configuration alone is read.",
    )
    parser.example = "pvopt plan meta-llama/Llama-2-7b-hf --bits 2 --memory 24GB"
    parser.explained = (PARAMETRIZATIONS, SPACES)
    parser.add_argument("model", help="folder, GGUF file, hub id, smollm2 or tiny-llama")
    parser.add_argument(
        "--bits", type=float, required=True, help="per quantized weight, scales counted"
    )
    parser.add_argument(
        "--memory", default=None, metavar="SIZE", help="of each device, such as 24GB or 16GiB"
    )
    parser.add_argument("--devices", type=int, default=1, help="that share the run (default 1)")
    parser.add_argument(
        "--format",
        default=None,
        help="to plan the tuning of, a form below; default: the first of the table",
    )
    parser.add_argument(
        "--weights",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of dense weights, as quantize --dtype takes it (default float32)",
    )
    add_fields(
        parser.add_argument_group("settings of the run, as tune takes them"), TuneSettings, _FIELDS
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print sizes, memory and seconds."""
    from pvopt.planning import formats_of_size
    from pvopt.tuning import TuneSettings

    memory = None if args.memory is None else parse_bytes(args.memory, "--memory")
    if args.devices < 1:
        raise ValueError(f"--devices must be at least 1, got {args.devices}")
    given = {name: value for name, value in vars(args).items() if name in _FIELDS}
    settings = TuneSettings(**given)
    model = _empty(args.model, args.weights, settings)
    sizes = formats_of_size(model, args.bits)
    rows = [
        [
            name,
            f"{size.bits_per_weight:.3f}",
            f"{size.total_bits_per_weight:.3f}",
            _shown(size.bytes),
        ]
        for name, size in sizes.items()
    ]
    print_table(["format", "bits per quantized weight", "over all weights", "file"], rows)
    print()
    _print_run(args, model, args.format or next(iter(sizes)), settings, memory)
    return 0


def _print_run(
    args: argparse.Namespace, model: Any, format: str, settings: TuneSettings, memory: float | None
) -> None:
    """Print memory and seconds of a tuning run, and what ways to save memory bring."""
    from pvopt.engine.placing import dependence
    from pvopt.planning import measure_machine, step_spare, tuning_memory, tuning_passes

    settings = _exact(settings, model)
    schemes = _schemes(model, format)
    name, scheme = next(iter(schemes.items()))
    outputs, inputs = scheme.view.matrix_shape(tuple(model.get_parameter(name).shape))
    machine = measure_machine(scheme, (outputs, inputs), settings)

    def passes(**changes: Any) -> PassCost:
        return tuning_passes(model, schemes, replace(settings, **changes), devices=args.devices)

    def memory_of(cost: PassCost, **changes: Any) -> TuningMemory:
        own = replace(settings, **changes)
        used = machine
        if own.recipe != settings.recipe:
            used = replace(machine, spare_per_weight=step_spare(scheme, (outputs, inputs), own))
        return tuning_memory(model, schemes, own, cost, machine=used, devices=args.devices)

    cost = passes()
    found = memory_of(cost)
    shared = f" on each of {args.devices} devices" if args.devices > 1 else ""
    rows = [[_LABELS[part], _shown(size)] for part, size in found.parts.items()]
    print_table(
        [f"memory to tune {format}{shared}", "size"], [*rows, ["at most", _shown(found.peak)]]
    )
    reason = dependence(scheme, tuple(model.get_parameter(name).shape))
    if args.devices > 1 and reason is not None:
        print(f"\nfully_shard cannot share out these weights, as this table does: {reason}")
    print()
    ways = {"as asked": found.peak}
    changes: dict[str, Any] = {}
    if found.latents:  # the passes are the same
        recipe = {"recipe": "subspace_pv", "latent_decay": None}
        ways["--recipe subspace_pv"] = memory_of(cost, **recipe).peak
        changes |= recipe
    for flag, change in (("micro_batch", 1), ("lr", 0.0)):
        if {"micro_batch": settings.sequences_per_pass, "lr": settings.lr}[flag] != change:
            own = {flag: change}
            name = f"--{flag.replace('_', '-')} {change:g}"
            ways[name] = memory_of(passes(**own), **own).peak
            changes |= own
    if len(ways) > 2:
        ways["all of these"] = memory_of(passes(**changes), **changes).peak
    fits = {} if memory is None else {way: peak <= memory for way, peak in ways.items()}
    rows = [
        [way, _shown(peak), *(["yes" if fits[way] else "no"] if fits else [])]
        for way, peak in ways.items()
    ]
    print_table(["way to tune", "memory", *(["fits"] if fits else [])], rows)
    quantized = sum(model.get_parameter(name).numel() for name in schemes)
    others = sum(p.numel() for p in model.parameters()) - quantized if settings.lr else 0
    each = -(-settings.batch // args.devices)
    flops = cost.flops * -(-each // min(each, settings.sequences_per_pass))
    seconds = machine.seconds(flops, quantized / args.devices, others / args.devices)
    in_passes = machine.seconds(flops, 0, 0)
    print(
        f"\nabout {seconds:.3g} s per step of {settings.batch} sequences of {settings.length} "
        f"tokens in {settings.dtype} at the speed of this machine: {in_passes:.3g} s in passes, "
        f"{seconds - in_passes:.3g} s in the optimizer"
    )


def _shown(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _empty(source: str, weights: str, settings: TuneSettings) -> Any:
    """Return a model of meta tensors, which is long enough."""
    import torch

    from pvopt.llm import check_length, empty_model

    model = empty_model(source, dtype=getattr(torch, weights))
    check_length(model, "--length", settings.length)
    return model


def _schemes(model: Any, format: str) -> dict[str, Scheme]:
    from pvopt.parametrizations import parse_scheme
    from pvopt.selection.schemes import select_schemes

    return select_schemes(model, {"*": parse_scheme(format)}, ("lm_head", "*.lm_head")).chosen


def _exact(settings: TuneSettings, model: Any) -> TuneSettings:
    """Return settings with the dtype that ``auto`` stands for."""
    from pvopt.tuning import computing_dtype

    return replace(settings, dtype=computing_dtype(settings.dtype, model))
