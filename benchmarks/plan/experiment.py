"""A prediction and a measurement of one tuning run, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from pvopt.llm import empty_model, load_model
from pvopt.parametrizations.scheme import parse_scheme
from pvopt.planning import measure_machine, tuning_memory, tuning_passes
from pvopt.selection.schemes import select_schemes
from pvopt.tuning import TuneSettings, computing_dtype

__all__ = ["RUNS", "Run", "measure", "predict", "write_model"]


@dataclass(frozen=True)
class Run:
    """A tuning run.

    Args:
        model: ``30M`` stands for a model that is written for the benchmark.
        format: of its weights.
        settings: that differ from the defaults.
    """

    model: str
    format: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """What is shown."""
        flags = [f"{name}={value}" for name, value in self.settings.items()]
        return " ".join([self.format, *flags])


_SMALL = {"batch": 2, "length": 128}
RUNS = (
    Run("tiny-llama", "grid:2g16", {"batch": 2, "length": 64}),
    Run("30M", "ternary:g64", {}),
    Run("30M", "ternary:g64", {"micro_batch": 1, "recipe": "subspace_pv"}),
    Run("30M", "binary:g64", {"base": "adamw", **_SMALL}),
    Run("smollm2", "ternary:g64", {}),
    Run("smollm2", "ternary:g64", {"micro_batch": 1, "recipe": "subspace_pv"}),
    Run("smollm2", "binary:g64", {"base": "adamw", **_SMALL}),
)

# The peak of the process by itself: what getrusage tells begins at the size of its parent.
_TUNE = """
import sys
from pvopt.cli import main
code = main(sys.argv[1:])
print(open("/proc/self/status").read())
sys.exit(code)
"""


def write_model(folder: Path) -> Path:
    """Write a random Llama of 30 M weights with a tokenizer of bytes, unless it is there."""
    if not (folder / "config.json").exists():
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        load_model("tiny-llama").tokenizer.save_pretrained(folder)
    return folder


def predict(source: str, run: Run) -> dict[str, float]:
    """Return bytes at the peak and seconds per step, without a look at any weight."""
    model = empty_model(source)
    schemes = select_schemes(model, {"*": parse_scheme(run.format)}, ("lm_head",)).chosen
    settings = TuneSettings(**run.settings)
    settings = replace(settings, dtype=computing_dtype(settings.dtype, model))
    name, scheme = next(iter(schemes.items()))
    machine = measure_machine(scheme, tuple(model.get_parameter(name).shape), settings)
    passes = tuning_passes(model, schemes, settings)
    memory = tuning_memory(model, schemes, settings, passes, machine=machine)
    quantized = sum(model.get_parameter(name).numel() for name in schemes)
    others = sum(p.numel() for p in model.parameters()) - quantized
    count = settings.batch // settings.sequences_per_pass
    return {
        "planned_bytes": memory.peak,
        "planned_s": machine.seconds(passes.flops * count, quantized, others),
        **{f"{part}_bytes": size for part, size in memory.parts.items()},
    }


def measure(source: str, run: Run, folder: Path, steps: int) -> dict[str, float]:
    """Return the peak of the resident memory and the median seconds per step of a real run."""
    flags = ["tune", "--model", source, "--format", run.format, "--steps", str(steps)]
    flags += ["--eval-windows", "1", "--out", str(folder), "--overwrite"]
    for name, value in run.settings.items():
        flags += ["--" + name.replace("_", "-"), str(value)]
    done = subprocess.run(
        [sys.executable, "-c", _TUNE, *flags], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"pvopt {' '.join(flags)} failed: {done.stderr[-2000:]}")
    peak = next(line for line in done.stdout.splitlines() if line.startswith("VmHWM:"))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["kind"] == "step"]
    return {
        "measured_bytes": int(peak.split()[1]) << 10,
        "measured_s": median(r["forward_backward_s"] + r["optimizer_s"] for r in records[1:]),
    }
