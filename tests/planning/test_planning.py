"""What is planned against what real models, optimizers and files take."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers", reason="the language-model extra is not installed")

from pvopt import FitOptions, parse_scheme, planning, quantize_
from pvopt.cli import main
from pvopt.core.byte_sizes import parse_bytes
from pvopt.formats import save, storage_report
from pvopt.llm import (
    distillation_loss,
    empty_model,
    hidden_states,
    language_loss,
    load_model,
    output_head,
)
from pvopt.planning import (
    Machine,
    StoredSize,
    formats_of_size,
    pass_cost,
    passes,
    tuning_memory,
    tuning_passes,
)
from pvopt.planning.watch import MemoryWatch
from pvopt.tuning import TuneSettings, build_optimizer

FORMATS = ("ternary:g16", "2:4+binary:g16")
SETTINGS = TuneSettings(batch=2, length=32, dtype="float32")


def quantized(form):
    model = load_model("tiny-llama").model
    weights = quantize_(model, parse_scheme(form), options=FitOptions(iterations=1))
    return model, weights, {name: rep.scheme for name, rep in weights.items()}


@pytest.mark.parametrize("form", FORMATS)
def test_sizes_are_those_of_the_file(form, tmp_path):
    model, weights, schemes = quantized(form)
    report = storage_report(save(tmp_path / "out", model, weights))
    size = StoredSize.of(empty_model("tiny-llama"), schemes)
    assert size.bits_per_weight == pytest.approx(report.bits_per_weight_16, rel=1e-3)
    assert (size.others, size.other_bytes) == (report.other_count, report.other_bytes)


@pytest.mark.parametrize("bits", [1.6, 4.1])
def test_formats_are_near_the_bits_that_were_asked_for(bits):
    found = formats_of_size(empty_model("tiny-llama"), bits)
    away = [abs(size.bits_per_weight - bits) for size in found.values()]
    assert away == sorted(away)
    assert away[-1] <= 0.3


@pytest.mark.parametrize("bits", [0.0, -1.0, math.inf, math.nan, 30.0])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be"):
        formats_of_size(empty_model("tiny-llama"), bits)


@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("vq:4g4", {"recipe": "subspace_pv", "base": "adafactor"}),
        ("2:4+binary:g16", {"recipe": "ste", "base": "rmsprop", "lr": 0.0}),
        ("ternary:g16", {"recipe": "continuous_only", "base": "adamw"}),
    ],
)
def test_what_is_kept_is_what_an_optimizer_keeps(form, changes):
    settings = replace(SETTINGS, **changes)
    model, weights, schemes = quantized(form)
    optimizer = build_optimizer(weights, settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 1e-3)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimizer.step()
    kept = {"codes": 0, "values": 0, "latents": 0, "base_state": 0}
    for state in optimizer.state_dict()["state"].values():
        for key, value in state.items():
            part = key.split(".")[1] if key.startswith("pv.") else "base"
            names = {"codes": "codes", "values": "values", "moments": "values"}
            names |= {"latent": "latents", "base": "base_state"}
            if isinstance(value, torch.Tensor) and part in names:
                kept[names[part]] += value.nbytes
    empty = empty_model("tiny-llama")
    cost = tuning_passes(empty, schemes, settings)
    memory = tuning_memory(empty, schemes, settings, cost)
    assert {name: getattr(memory, name) for name in kept} == kept
    assert cost.gradient_bytes == gradients
    assert memory.student == sum(p.nbytes for p in model.parameters())


# Of the cross-entropy one buffer of logits more is counted, 64 MB at most.
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"micro_batch": 1}, 0.03), ({"loss": "ce", "lr": 0.0}, 0.2), ({"dtype": "bfloat16"}, 0.05)],
)
def test_passes_take_what_was_counted_without_memory(changes, tolerance):
    settings = replace(SETTINGS, **changes)
    model, _, schemes = quantized("binary:g16")
    teacher = copy.deepcopy(model).requires_grad_(False)
    if not settings.lr:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in schemes)
    head, ids = output_head(teacher), torch.zeros(2, 32, dtype=torch.long)
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else None
    with MemoryWatch() as watch:
        for part in ids.split(settings.sequences_per_pass):
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                if settings.loss == "ce":
                    loss = language_loss(model, part)
                else:
                    with torch.no_grad():
                        hidden = hidden_states(teacher, part)
                    loss = distillation_loss(model, hidden, head, part)
            loss.backward()
    planned = tuning_passes(empty_model("tiny-llama"), schemes, settings)
    assert planned.peak_bytes == pytest.approx(watch.peak, rel=tolerance)


def test_several_devices_share_all_but_the_block_they_compute():
    model = empty_model("tiny-llama")
    schemes = {n: parse_scheme("grid:2g16") for n, _ in model.named_parameters() if "_proj" in n}

    def memory(devices, schemes=schemes, **changes):
        own = replace(SETTINGS, **changes)
        cost = tuning_passes(model, schemes, own, devices=devices)
        return tuning_memory(model, schemes, own, cost, devices=devices)

    one, two = memory(1, micro_batch=1), memory(2)  # a sequence at a time
    assert two.standing == pytest.approx(one.standing / 2, abs=64)
    assert two.gradients == one.gradients // 2
    assert two.activations == one.activations > 0
    assert two.gathered > 0 == one.gathered
    books = {name: parse_scheme("vq:8g8") for name in schemes}
    kept = 3 * 4 * 256 * 8 * len(books)  # each device has all codebooks, and their moments
    assert 2 * (memory(2, books).values - kept) == memory(1, books).values - kept
    with pytest.raises(ValueError, match="devices must be at least 1, got 0"):
        memory(0)


def test_many_equal_blocks_are_counted_by_few(monkeypatch):
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=5,
        num_attention_heads=2,
        vocab_size=50,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    whole = pass_cost(model, sequences=1, length=8)
    monkeypatch.setattr(passes, "_FEWER", (1, 2))
    assert pass_cost(model, sequences=1, length=8) == whole


LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
LLAMA_70B = {
    **LLAMA_7B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
MIXTRAL = {**LLAMA_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "num_local_experts": 8}


@pytest.mark.parametrize(
    ("kind", "config", "count", "bits", "fits"),
    [
        ("llama", LLAMA_7B, 6_476_005_376, "2", "yes"),
        ("llama", LLAMA_70B, 68_451_041_280, "2", "no"),
        ("mixtral", MIXTRAL, 46_440_382_464, "4", "no"),
    ],
)
def test_large_models_are_planned_from_their_configuration(
    kind, config, count, bits, fits, tmp_path, capsys, monkeypatch
):
    from transformers import AutoConfig

    machine = Machine(
        seconds_per_flop=1e-12,
        seconds_per_weight=0.0,
        seconds_per_other=0.0,
        spare_per_weight=8.0,
        program=0,
    )
    monkeypatch.setattr(planning, "measure_machine", lambda *_: machine)
    monkeypatch.setattr(passes, "_FEWER", (1, 2))

    AutoConfig.for_model(kind, **config).save_pretrained(tmp_path)
    flags = ["--bits", bits, "--memory", "24GB", "--devices", "8", "--micro-batch", "1"]
    flags += ["--format", f"grid:{bits}g128s", "--length", "256", "--lr", "0"]
    assert main(["plan", str(tmp_path), *flags]) == 0
    shown = capsys.readouterr().out
    assert shown.split("as asked")[1].splitlines()[0].endswith(fits)
    # teacher and student 2 + 2, gradients 4 for each weight and token that is not looked up
    seconds = 1e-12 * 8 * count * 256 * (2 / 8 if kind == "mixtral" else 1)
    assert float(shown.split("about ")[1].split()[0]) == pytest.approx(seconds, rel=0.15)
    row = next(line for line in shown.splitlines() if line.startswith(f"grid:{bits}g128s "))
    model = empty_model(tmp_path)
    others = sum(p.numel() for p in model.parameters()) - count
    expected = count * (int(bits) + 16 / 128) / 8 + 4 * others
    assert f"{expected / 1e9:,.2f} GB" in row


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["tiny-llama", "--bits", "0"], "bits must be positive"),
        (["tiny-llama", "--bits", "2", "--memory", "much"], "--memory must be a size"),
        (["tiny-llama", "--bits", "2", "--devices", "0"], "devices must be at least 1"),
        (["tiny-llama", "--bits", "2", "--length", "4096"], "--length must be at most 512"),
        (["tiny-llama", "--bits", "2", "--format", "grid:2g48"], "cannot quantize"),
        (["tiny-llama", "--bits", "2", "--micro-batch", "3"], "--micro-batch must divide"),
        (["/nowhere/at/all", "--bits", "2"], "/nowhere/at/all"),
    ],
)
def test_bad_plans_are_refused(flags, message, capsys):
    assert main(["plan", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"hidden_size": -64}, "cannot be loaded as a model .*negative dimension"),
        ("llama", {"intermediate_size": 10**18}, "cannot be loaded as a model .*overflowed"),
        ("llama", {"num_attention_heads": 0}, "cannot be loaded as a model"),
        (
            "llama",
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1000000000, far more than any",
        ),
        ("llama", {"num_hidden_layers": 0}, "no layer to quantize"),
        ("llama", {"architectures": "ZorbLM"}, "is a ZorbLM, no causal language model"),
        ("llama", {"num_key_value_heads": 3}, "its passes fail, or depend"),
        ("mixtral", {"num_local_experts": 10**9}, "num_local_experts is 1000000000, far more than"),
        ("mixtral", {"num_experts_per_tok": 9}, "its passes fail, or depend"),
    ],
)
def test_configurations_of_no_model_are_refused(kind, changes, message, tmp_path, caplog):
    config = {"model_type": kind, "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | changes))

    def planned():
        model = empty_model(tmp_path)
        formats_of_size(model, 2.0)
        pass_cost(model, sequences=1, length=8)

    with pytest.raises(ValueError, match=message):
        planned()
    assert not caplog.records


@pytest.mark.parametrize("text", ["0GB", "24 G B", "GB", "-1GB", "1iB", "nan"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="--memory must be a size"):
        parse_bytes(text, "--memory")
