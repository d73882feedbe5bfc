"""Starts against references of the field, on the layers of a model.

Every row is the squared error of a layer's outputs, ours over the reference's, both on the X'X that
they were given: below 1 is better.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import Check, Report, format_table, parser
from pvopt import Row, parse_scheme
from pvopt.llm import load_model
from pvopt.starts import parse_start

from .references import greedy_obs, reference_gptq, sparse_gpt

Reference = Callable[[Tensor, Tensor], Tensor]
STILL = "gptq[activation_order=False]"
gptq = partial(reference_gptq, bits=2, group=64)
symmetric = partial(gptq, symmetric=True)
joint = partial(sparse_gpt, bits=4, group=64)
TRELLIS = "had+trellis:2l12-mul1@192x1"


def trellis_gptq(weight: Tensor, hessian: Tensor) -> Tensor:
    """Return a weight as a trellis by GPTQ's recursion alone, without rounds after it."""
    return parse_start("gptq").start(weight, parse_scheme(TRELLIS), metric=Row(hessian)).decode()


#: Scheme, start, the reference and its name. Symmetric grids and integer zero points are the
#: reference's own formats; `grid:2g64` has zero points of 16 bits, which it lacks.
CASES: list[tuple[str, str, str, Reference]] = [
    ("grid:2g64s", STILL, "GPTQ", symmetric),
    ("grid:2g64s", "gptq", "GPTQ, activation order", partial(symmetric, order=True)),
    ("perm+grid:2g64s", "gptq", "GPTQ, act-order", partial(symmetric, order=True, moving=True)),
    ("grid:2g64z", STILL, "GPTQ", gptq),
    ("grid:2g64z", "gptq", "GPTQ, activation order", partial(gptq, order=True)),
    ("perm+grid:2g64z", "gptq", "GPTQ, act-order", partial(gptq, order=True, moving=True)),
    ("grid:4g64z", "gptq", "GPTQ, activation order", partial(gptq, bits=4, order=True)),
    ("grid:2g64", "gptq", "GPTQ, activation order", partial(gptq, order=True)),
    ("grid:2g64z", "lnq", "GPTQ, activation order", partial(gptq, order=True)),
    (TRELLIS, "aqlm", "GPTQ alone", trellis_gptq),
    ("sparse:50%", "obs", "SparseGPT", sparse_gpt),
    ("sparse:50%", "iterative-obs", "SparseGPT", sparse_gpt),
    ("sparse:50%:tensor", "obs", "SparseGPT", sparse_gpt),
    ("sparse:50%:tensor", "iterative-obs", "SparseGPT", sparse_gpt),
    ("sparse:50%:tensor", "iterative-obs", "exact greedy OBS", greedy_obs),
    ("2:4", "iterative-obs", "SparseGPT", partial(sparse_gpt, pattern=(2, 4))),
    ("2:4+grid:4g32z", "iterative-obs", "SparseGPT, joint", partial(joint, pattern=(2, 4))),
    ("sparse:50%+grid:4g32z", "iterative-obs", "SparseGPT, joint", joint),
]
# Exact greedy OBS keeps the inverse of every row: some rows, of layers of few inputs.
_GREEDY_ROWS, _GREEDY_COLUMNS = 8, 640


@torch.no_grad()
def layers(model: str, text: str, blocks: Sequence[int], tokens: int) -> dict[str, tuple]:
    """Return weight and X'X of the linear layers of some blocks, by name."""
    loaded = load_model(model)
    length = 512
    ids = loaded.encode(text[: 8 * tokens])[:tokens]
    ids = ids[: len(ids) // length * length].view(-1, length)
    found: dict[str, list] = {}

    def add(name: str, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, 1).double()
        found.setdefault(name, [module.weight, 0])[1] += rows.T @ rows

    def hook(name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: add(name, module, inputs)

    for number in blocks:
        for name, module in loaded.model.model.layers[number].named_modules():
            if isinstance(module, torch.nn.Linear):
                place = f"{number}.{name.rpartition('.')[2]}"
                module.register_forward_pre_hook(hook(place))
    for row in ids:
        loaded.model.model(row[None], use_cache=False)
    return {name: (weight.detach().clone(), xx) for name, (weight, xx) in found.items()}


def compare(case: tuple[str, str, str, Reference], weight: Tensor, hessian: Tensor) -> dict:
    """Return the ratio of the squared errors, and the seconds of both."""
    scheme, start, name, reference = case
    if reference is greedy_obs:
        weight = weight[:_GREEDY_ROWS]
    metric, began = Row(hessian), time.perf_counter()
    rep = parse_start(start).start(weight, parse_scheme(scheme), metric=metric)
    ours_s, began = time.perf_counter() - began, time.perf_counter()
    theirs = reference(weight, hessian)
    errors = [
        float(metric.squared_norm(weight.double() - q.double())) for q in (rep.decode(), theirs)
    ]
    return {
        "scheme": scheme,
        "start": start,
        "reference": name,
        "ratio": errors[0] / errors[1],
        "ours_s": ours_s,
        "reference_s": time.perf_counter() - began,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print it."""
    own = parser("starts", (__doc__ or "").partition("\n")[0])
    own.add_argument("--model", default="smollm2", help="as pvopt.llm.load_model takes it")
    own.add_argument("--text", type=Path, help="calibration text, a file")
    own.add_argument("--tokens", type=int, default=8192, help="of the text")
    own.add_argument("--blocks", default="2,15,27", help="numbers of the blocks, separated by ','")
    own.add_argument("--only", default="", help="cases whose scheme, start, reference contain this")
    settings = own.parse_args(arguments)
    if settings.quick:
        settings.model, settings.blocks, settings.tokens = "tiny-llama", "0", 1024
    if settings.text is None and not settings.quick:
        own.error("--text is needed, but with --quick")
    text = settings.text.read_text() if settings.text else "".join(map(chr, range(32, 127))) * 20
    numbers = [int(number) for number in settings.blocks.split(",")]
    kept = {name: str(value) for name, value in vars(settings).items()}
    report = Report("starts", kept, packages=("torch", "transformers"))
    cases = [case for case in CASES if settings.only in " ".join(case[:3])]
    means = []
    found = layers(settings.model, text, numbers, settings.tokens)
    if settings.quick:
        found = dict(list(found.items())[:2])
    for case in cases:
        rows = []
        for name, (weight, hessian) in found.items():
            if case[3] is greedy_obs and len(hessian) > _GREEDY_COLUMNS:
                continue
            rows.append({"layer": name, **compare(case, weight, hessian)})
        ratios = [row["ratio"] for row in rows]
        mean = {**rows[0], "least": min(ratios), "mean": statistics.geometric_mean(ratios)}
        seconds = {key: sum(row[key] for row in rows) for key in ("ours_s", "reference_s")}
        means.append({**mean, "most": max(ratios), **seconds})
        report.rows += rows
        report.checks.append(Check.at_most(" ".join(case[:3]), mean["mean"], 1.0))
        print(format_table(means[-1:], COLUMNS).splitlines()[-1], file=sys.stderr, flush=True)
    print(format_table(means, COLUMNS))
    print(report.format_checks())
    if settings.json:
        report.write_json(settings.json)
    return 0


COLUMNS = {
    "scheme": "format",
    "start": "start",
    "reference": "reference",
    "least": "least",
    "mean": "mean",
    "most": "most",
    "ours_s": "seconds",
    "reference_s": "reference's",
}

if __name__ == "__main__":
    sys.exit(main())
