"""Tuning of a tiny Llama on a device: its losses are those of the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import pvopt
from benchmarks.report import Check, Report, parser
from pvopt.llm import TokenBatches, language_loss, load_model, load_text

SCHEMES = ("grid:2g32", "2x4g8", "had+e8p:2", "trellis:2l8")
# Sums are taken in another order there; codes that are as near may be taken.
TOLERANCE = 2e-3


def losses(scheme: str, device: str, steps: int) -> list[float]:
    """Return the loss of each step."""
    loaded = load_model("tiny-llama")
    tokens = loaded.encode(load_text("pydoc")[:20_000])
    batches = TokenBatches(tokens, 4, 64, 0)
    spec = {"*_proj": pvopt.parse_scheme(scheme)}
    weights = pvopt.quantize_(loaded.model, spec)  # on the CPU, so that both begin alike
    model: Any = loaded.model.to(torch.device(device))  # pyright: ignore[reportArgumentType]
    weights = pvopt.QuantizedWeights(model, {n: rep.to(device) for n, rep in weights.items()})
    weights.write_()
    base = torch.optim.Adam(model.parameters(), lr=1e-3)
    optimizer = pvopt.subspace_pv_ste(base, weights)
    found = []
    for step in range(steps):
        loss = language_loss(model, batches[step].to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; return 0 if the losses agree."""
    options = parser("gpu_here.tune", __doc__ or "")
    options.add_argument("--device", default="cuda")
    chosen = options.parse_args(arguments)
    steps = 3 if chosen.quick else 10
    settings = {"device": chosen.device, "steps": steps}
    report = Report("gpu_here.tune", settings, packages=("torch", "triton", "transformers"))
    for scheme in SCHEMES[:1] if chosen.quick else SCHEMES:
        own, there = losses(scheme, "cpu", steps), losses(scheme, chosen.device, steps)
        row: dict[str, Any] = {"scheme": scheme, "cpu": own, chosen.device: there}
        report.rows.append(row)
        gap = max(abs(a - b) / a for a, b in zip(own, there, strict=True))
        report.checks.append(Check.at_most(f"{scheme}: relative gap of losses", gap, TOLERANCE))
        if chosen.json:
            report.write_json(chosen.json)
    print(report.format_checks())
    return 0 if all(check.holds for check in report.checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
