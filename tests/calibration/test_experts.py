"""Experts that lie in one tensor: each is calibrated on its own tokens."""

from __future__ import annotations

import pytest
import torch
from recording import Recording
from torch import nn

from pvopt import UniformGrid, quantize_
from pvopt.calibration import FineTuning, calibrate_
from pvopt.calibration.experts import ExpertHessians
from pvopt.starts import GPTQ

transformers = pytest.importorskip("transformers", reason="the extra llm is not installed")

GRID = UniformGrid(bits=2, group_size=8)
TOKENS = torch.randint(3, 60, (3, 1, 2), generator=torch.Generator().manual_seed(1))[:, 0]
SMALL = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def make(kind):
    config = transformers.AutoConfig.for_model(kind, **SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return model


def tokens_of_experts(model, names):
    """What each expert of the first block is given, from the routing that its module is told."""
    seen = []
    experts = model.model.layers[0].mlp.experts
    hook = experts.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((*args, *kwargs.values())[:2]), with_kwargs=True
    )
    with torch.no_grad():
        for row in TOKENS:
            model(row[None], use_cache=False)
    hook.remove()
    found = [[] for _ in range(8)]
    for hidden, chosen in seen:
        for token, own in zip(hidden.flatten(0, -2), chosen.flatten(0, -2), strict=True):
            for expert in own.tolist():
                found[expert].append(token.double())
    return found


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_each_expert_is_calibrated_on_its_own_tokens(kind, tmp_path):
    model, method = make(kind), Recording()
    name = "model.layers.0.mlp.experts.gate_up_proj"
    weight = model.get_parameter(name).detach().clone()
    tokens = tokens_of_experts(model, name)
    reached = [number for number, own in enumerate(tokens) if own]
    assert 2 <= len(reached) < 8
    implementation = model.config._experts_implementation
    result = calibrate_(model, TOKENS, {name: GRID}, method)
    assert model.config._experts_implementation == implementation
    for number, hessian in zip(reached, method.hessians, strict=True):
        x = torch.stack(tokens[number])
        torch.testing.assert_close(hessian, x.T @ x, rtol=1e-5, atol=1e-6)
    without = [f"{name}[{number}]" for number in range(8) if number not in reached]
    assert list(result.without_tokens) == without
    errors = []
    view = result.weights[name].view
    pairs = zip(view.matrices(weight), view.matrices(result.weights[name].decode()), strict=True)
    for number, (dense, decoded) in enumerate(pairs):
        if number in reached:
            x = torch.stack(tokens[number])
            wrong = (x @ (dense - decoded).double().T).norm()
            errors.append(float(wrong / (x @ dense.double().T).norm()))
    assert result.layer_errors[name] == pytest.approx(sum(errors) / len(errors), rel=1e-4)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_whole_models_are_calibrated_resumed_and_better(kind, tmp_path):
    results = []
    for _ in range(2):
        model = make(kind)
        result = calibrate_(
            model, TOKENS, GRID, GPTQ(), work=tmp_path, fine_tuning=FineTuning(lr=1e-3)
        )
        results.append(result)
        assert all(
            torch.equal(model.get_parameter(n), r.decode()) for n, r in result.weights.items()
        )
    first, again = results
    assert first.layer_errors == again.layer_errors
    assert first.without_tokens == again.without_tokens != ()
    for name, rep in first.weights.items():
        assert torch.equal(rep.decode(), again.weights[name].decode())
    name = "model.layers.0.mlp.experts.down_proj"
    # Codes are those of the fit. Values need not be: once the layers before are quantized, tokens
    # may reach other experts, and fine-tuning sees them.
    fitted, found = quantize_(make(kind), {name: GRID})[name], first.weights[name]
    untouched = [int(n[:-1].rpartition("[")[2]) for n in first.without_tokens if name in n]
    for expert in untouched:
        own = [rep.codes["levels"].chunk(len(rep.decode()))[expert] for rep in (found, fitted)]
        assert torch.equal(*own)


@pytest.mark.parametrize("way", ["linear", "matmul", "bmm", "bias"])
@torch.no_grad()
def test_inputs_are_seen_however_they_are_multiplied(way):
    weight, other = nn.Parameter(torch.randn(3, 4, 5)), torch.randn(3, 4, 5)
    x = torch.randn(2, 7, 5)
    with ExpertHessians({"w": (weight, 5)}) as hessians:
        torch.nn.functional.linear(x, other[0])
        if way == "linear":
            torch.nn.functional.linear(x, weight[1])
        elif way == "matmul":
            _ = x @ weight[1].T
        elif way == "bmm":
            batch = torch.zeros(3, 14, 5)
            batch[1] = x.flatten(0, 1)
            torch.bmm(batch, weight.transpose(1, 2))
        else:
            torch.nn.functional.linear(x.flatten(0, 1), weight[1], torch.ones(4))
    rows = x.flatten(0, 1).double()
    torch.testing.assert_close(hessians["w"][1], rows.T @ rows, rtol=1e-5, atol=1e-5)
    assert not hessians["w"][[0, 2]].any()


def test_experts_that_cannot_be_observed_are_refused():
    model = make("mixtral")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    experts = model.model.layers[0].mlp.experts
    experts.forward = lambda hidden, *others: hidden * experts.gate_up_proj.sum()
    with pytest.raises(ValueError, match=f"cannot quantize '{name}': what its experts are given"):
        calibrate_(model, TOKENS, {name: GRID}, GPTQ())


def test_conv1d_is_calibrated_on_its_inputs():
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).eval()
    name, rows, method = "transformer.h.0.mlp.c_fc.weight", [], Recording()
    layer = model.transformer.h[0].mlp.c_fc
    hook = layer.register_forward_pre_hook(lambda module, args: rows.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for row in TOKENS:
            model(row[None])
    hook.remove()
    weight = layer.weight.detach().clone()
    result = calibrate_(model, TOKENS, {name: GRID}, method)
    x = torch.cat(rows).double()
    torch.testing.assert_close(method.hessians[0], x.T @ x, rtol=1e-5, atol=1e-6)
    decoded = result.weights[name].decode()
    expected = (x @ (weight - decoded).double()).norm() / (x @ weight.double()).norm()
    assert result.layer_errors[name] == pytest.approx(float(expected), rel=1e-4)
