"""Models whose linear layers are replaced by quantized ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pvopt
from pvopt import AdditiveCodebooks, FitOptions, Permutation, Rotation, Scheme, UniformGrid
from pvopt.layers import QuantizedLinear, representations, to_dense, to_quantized
from pvopt.llm import load_model

SPEC = {
    "*.mlp.*": AdditiveCodebooks(num_codebooks=2, bits=4, in_group=8),
    "*.self_attn.q_proj": Scheme(UniformGrid(bits=3, group_size=16), Rotation()),
    "*.self_attn.k_proj": Scheme(UniformGrid(bits=3, group_size=16), Permutation()),
    "*": UniformGrid(bits=3, group_size=16),
}
TOKENS = torch.arange(40)[None] + 60


@pytest.fixture(scope="module")
def quantized():
    model = load_model("tiny-llama").model
    return model, pvopt.quantize_(model, SPEC)


def test_a_converted_language_model_has_the_same_logits_and_gradients(quantized):
    dense, weights = quantized
    model = to_quantized(copy.deepcopy(dense), weights)
    assert sum(isinstance(m, QuantizedLinear) for m in model.modules()) == len(weights) == 14
    assert not any(name in dict(model.named_parameters()) for name in weights)
    expected, found = dense(TOKENS).logits, model(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    names = [n for n in dict(dense.named_parameters()) if n not in weights]
    loss = found.square().mean()
    loss.backward()
    dense.zero_grad()
    expected.square().mean().backward()
    # Through all layers back: sums of float32 products, taken in another order.
    for name in names:
        one, other = model.get_parameter(name).grad, dense.get_parameter(name).grad
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for name, rep in weights.items():
        grads = rep.pull([dense.get_parameter(name).grad])
        layer = model.get_submodule(name.removesuffix(".weight"))
        for value, parameter in layer.values.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[value], rtol=1e-4, atol=1e-6)


def test_there_and_back(quantized):
    dense, weights = quantized
    model = to_quantized(copy.deepcopy(dense), weights)
    found = representations(model)
    assert list(found) == list(weights)
    with torch.no_grad():
        for parameter in model.get_submodule("model.layers.0.mlp.up_proj.values").parameters():
            parameter.mul_(2)
    back = to_dense(model)
    assert list(back) == list(weights)
    assert back.model is model
    doubled = weights["model.layers.0.mlp.up_proj.weight"].decode() * 4
    for name, parameter in dense.named_parameters():
        if name == "model.layers.0.mlp.up_proj.weight":
            torch.testing.assert_close(model.get_parameter(name), doubled)
        else:
            torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)
    assert not any(isinstance(m, QuantizedLinear) for m in model.modules())


def test_bias_mode_and_tied_parameters_are_kept():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)).eval()
    bias = model[0].bias
    weights = pvopt.quantize_(model, {"0": UniformGrid(bits=2)})
    to_quantized(model, weights, dtype=torch.bfloat16)
    layer = model[0]
    assert isinstance(layer, QuantizedLinear)
    assert layer.bias is bias
    assert not layer.training
    assert layer.values.get_parameter("scales").dtype == torch.bfloat16
    assert isinstance(model[1], nn.Linear)
    to_dense(model, dtype=torch.float64)
    assert model[0].weight.dtype == torch.float64
    assert model[0].bias is bias


def test_memory_is_that_of_codes_and_values():
    model = nn.Sequential(nn.Linear(256, 512, bias=False))
    rep = AdditiveCodebooks(num_codebooks=2, bits=8, in_group=8).fit(
        model[0].weight, options=FitOptions(iterations=0, beam_size=1)
    )
    to_quantized(model, {"0.weight": rep}, dtype=torch.float16)
    held = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert held == 2 * 512 * 256 // 8 + 2 * (2 * 256 * 8 + 512)


def test_refused_weights_leave_the_model_as_it_was(quantized):
    dense, weights = quantized
    model = copy.deepcopy(dense)
    before = [type(m) for m in model.modules()]
    good = dict(weights)
    embedding = UniformGrid(bits=2).fit(model.get_parameter("model.embed_tokens.weight"))
    with pytest.raises(ValueError, match=r"embed_tokens\.weight' is shared with another module"):
        to_quantized(model, good | {"model.embed_tokens.weight": embedding})
    with pytest.raises(ValueError, match=r"'lm_head\.weight' is shared with another module"):
        to_quantized(model, good | {"lm_head.weight": embedding})
    with pytest.raises(ValueError, match="'nothing' is not a weight"):
        to_quantized(model, good | {"nothing": embedding})
    small = UniformGrid(bits=2).fit(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"must have shape \[64, 64\], got \[4, 4\]"):
        to_quantized(model, good | {"model.layers.0.self_attn.q_proj.weight": small})
    assert [type(m) for m in model.modules()] == before
    alone = nn.Linear(8, 4)
    with pytest.raises(ValueError, match="must contain the layer"):
        to_quantized(alone, pvopt.quantize_(alone, UniformGrid(bits=2)))
    with pytest.raises(ValueError, match="must contain the quantized layers"):
        to_dense(QuantizedLinear(UniformGrid(bits=2), 8, 4))
