"""Layers that are no plain linear ones read packed weights, and do what they did."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers.pytorch_utils import Conv1D

from pvopt import (
    AdditiveCodebooks,
    MatrixView,
    Rotation,
    Scheme,
    SharedValues,
    UniformGrid,
    quantize_,
)
from pvopt.layers import PackedWeight, QuantizedLinear, representations, to_dense, to_quantized


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 0.5 * super().forward(input)


class Named(nn.Linear):
    """A subclass that does what its parent does."""


class Experts(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        up, down = ((8, 12), (6, 8)) if transposed else ((12, 8), (8, 6))
        self.gate_up_proj = nn.Parameter(torch.randn(3, *up))
        self.down_proj = nn.Parameter(torch.randn(3, *down))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for expert in range(3):
            up, down = self.gate_up_proj[expert], self.down_proj[expert]
            gate, value = (x @ (up if self.transposed else up.T)).chunk(2, -1)
            total = total + (gate.relu() * value) @ (down if self.transposed else down.T)
        return total


class Reads(nn.Module):
    """An owner that multiplies by the weight of its layer itself, as state-space models do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.inner.weight.T


def hooked() -> nn.Module:
    layer = nn.Linear(8, 4)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return layer


def replaced_forward() -> nn.Module:
    layer = nn.Linear(8, 4)
    layer.forward = lambda x: 3 * nn.functional.linear(x, layer.weight)  # type: ignore[method-assign]
    return layer


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
# Layer, its input, and how many weights become layers, and how many are read.
CASES: dict[str, tuple[Callable[[], nn.Module], Any, int, int]] = {
    "linear": (lambda: nn.Linear(8, 4), X, 1, 0),
    "subclass": (lambda: Named(8, 4), X, 1, 0),
    "own-forward": (lambda: Scaled(8, 4), X, 0, 1),
    "hooked": (hooked, X, 0, 1),
    "read-by-its-owner": (Reads, X, 1, 0),
    "Conv1D": (lambda: Conv1D(4, 8), X, 1, 0),
    "conv": (lambda: nn.Conv1d(5, 4, 3), X, 0, 1),
    "conv-transposed": (lambda: nn.ConvTranspose1d(5, 4, 3), X, 0, 1),
    "attention": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        X,
        2,
        2,
    ),
    "embedding": (lambda: nn.Embedding(6, 8, padding_idx=1), torch.tensor([[0, 1, 5]]), 0, 1),
    "weight-norm": (lambda: parametrizations.weight_norm(nn.Linear(8, 4)), X, 0, 1),
    "experts": (lambda: Experts(False), X, 0, 2),
    "experts-transposed": (lambda: Experts(True), X, 0, 2),
}
FORMS = [
    UniformGrid(bits=3),
    Scheme(AdditiveCodebooks(num_codebooks=2, bits=3, in_group=1), Rotation(seed=2)),
]


def make(name: str, form: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(CASES[name][0]())
    spec = {"0": form} if name == "embedding" else form
    return model, quantize_(model, spec)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_the_dense_model(name, training, form):
    dense, weights = make(name, form)
    model = to_quantized(copy.deepcopy(dense).train(training), weights)
    dense.train(training)
    _, x, layers, read = CASES[name]
    assert sum(isinstance(m, QuantizedLinear) for m in model.modules()) == layers
    assert sum(isinstance(m, PackedWeight) for m in model.modules()) == read
    assert not set(weights) & {n for n, _ in model.named_parameters()}
    with torch.no_grad():  # the fast path of attention
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    model(x).square().sum().backward()
    dense(x).square().sum().backward()
    found = dict(model.named_parameters())
    # Gradients are sums of a few hundred float32 products, taken in another order.
    for weight_name, rep in weights.items():
        pulled = rep.pull([dense.get_parameter(weight_name).grad])
        owner, _, leaf = weight_name.rpartition(".")
        layer = f"{owner}." if f"{owner}.values.{next(iter(pulled))}" in found else None
        prefix = layer or f"{owner}.{leaf}_packed."
        for value, gradient in pulled.items():
            own = found[f"{prefix}values.{value}"].grad
            torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-5)
    for parameter_name, parameter in dense.named_parameters():
        if parameter_name in found and parameter.grad is not None:
            grad = found[parameter_name].grad
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name):
    dense, weights = make(name, UniformGrid(bits=3))
    model = copy.deepcopy(dense)
    kinds = [type(m) for m in model.modules()]
    to_quantized(model, weights)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(CASES[name][1]), model(CASES[name][1]))
    for (found_name, found), (own_name, rep) in zip(
        sorted(representations(model).items()), sorted(weights.items()), strict=True
    ):
        assert (found_name, found.scheme, found.shape) == (own_name, rep.scheme, rep.shape)
    back = to_dense(model)
    assert sorted(back) == sorted(weights)
    assert [type(m) for m in model.modules()] == kinds
    for parameter_name, parameter in dense.named_parameters():
        assert torch.equal(model.get_parameter(parameter_name), parameter), parameter_name
    torch.testing.assert_close(model(CASES[name][1]), dense(CASES[name][1]))


def test_the_state_is_that_of_codes_and_values():
    model, weights = make("experts", UniformGrid(bits=3))
    other = to_quantized(copy.deepcopy(model), weights)
    state = other.state_dict()
    assert state["0.down_proj_packed.codes.levels"].numel() == 3 * 8 * 6 * 3 // 8
    for tensor in state.values():
        tensor.zero_()
    other.load_state_dict(to_quantized(model, weights).state_dict())
    torch.testing.assert_close(other(X), model(X))


def test_a_weight_is_decoded_once_while_its_layer_runs(monkeypatch):
    model, weights = make("experts", UniformGrid(bits=3))
    to_quantized(model, weights)
    calls = []
    forward = PackedWeight.forward
    monkeypatch.setattr(PackedWeight, "forward", lambda self: calls.append(1) or forward(self))
    model(X)
    model(X)
    assert len(calls) == 4
    assert torch.equal(model[0].down_proj, model[0].down_proj)
    assert len(calls) == 6


def test_a_forward_that_was_replaced_is_kept():
    model = nn.Sequential(replaced_forward())
    weights = quantize_(model, UniformGrid(bits=3))
    expected = model(X)
    to_quantized(model, weights)
    torch.testing.assert_close(model(X), expected)


def test_dtypes_of_dense_weights_are_kept():
    model = nn.Sequential(nn.Conv1d(5, 4, 3)).to(torch.bfloat16)
    to_quantized(model, quantize_(model, UniformGrid(bits=3)), dtype=torch.float16)
    assert model[0].weight.dtype == torch.bfloat16
    assert model(X.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("make_layer", [lambda: nn.Linear(8, 4), lambda: nn.Conv1d(5, 4, 3)])
@pytest.mark.parametrize("size", [1e9, 1e-9])
def test_values_beyond_a_dtype_are_refused_by_name(make_layer, size):
    model = nn.Sequential(make_layer())
    with torch.no_grad():
        model[0].weight.mul_(size)
    weights = quantize_(model, SharedValues(num_values=4))
    with pytest.raises(ValueError, match=r"cannot convert '0.weight': values 'values' must be in"):
        to_quantized(model, weights, dtype=torch.float16)
    assert isinstance(model[0].weight, nn.Parameter)
    to_quantized(model, weights, dtype=torch.bfloat16)


def test_recurrent_layers_and_views_are_refused_where_they_cannot_be():
    model = nn.Sequential(nn.LSTM(8, 4))
    with pytest.raises(ValueError, match=r"'0.weight_ih_l0' must stay dense: recurrent"):
        to_quantized(model, quantize_(model, UniformGrid(bits=3)))
    rep = Scheme(UniformGrid(bits=3), view=MatrixView(transposed=True)).fit(torch.randn(8, 4))
    with pytest.raises(ValueError, match=r"must be of one matrix \[out, in\]"):
        QuantizedLinear.from_representation(rep)
