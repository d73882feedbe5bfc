"""QuantizedLinear against the dense layer with the decoded weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pvopt import AdditiveCodebooks, SharedValues, Ternary, UniformGrid, VectorCodebook
from pvopt.llm import QuantizedLinear

# One per way of keeping codes: bytes, two bytes, packed for the kernels, packed for any.
EACH = [
    AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4, out_group=2),
    VectorCodebook(bits=9, group_size=1),
    UniformGrid(bits=3, group_size=4),
    Ternary(),
    SharedValues(num_values=5),
]
each = pytest.mark.parametrize("parametrization", EACH, ids=str)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pair(parametrization, dtype=torch.float32, rows=6, columns=8):
    """Return a quantized layer and the dense layer it stands for, with the same bias."""
    rep = parametrization.fit(draw(rows, columns).to(dtype))
    rep = rep.to(dtype=dtype)
    layer = QuantizedLinear.from_representation(rep, draw(rows, seed=1, dtype=dtype))
    dense = nn.Linear(columns, rows, dtype=dtype)
    with torch.no_grad():
        dense.weight.copy_(rep.decode())
        dense.bias.copy_(layer.bias)
    return layer, dense, rep


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_forward_and_backward_equal_the_dense_layer(parametrization, dtype):
    layer, dense, rep = pair(parametrization, dtype)
    x, slope = draw(2, 3, 8, seed=2, dtype=dtype), draw(2, 3, 6, seed=3, dtype=dtype)
    found, wanted = ([t.clone().requires_grad_()] for t in (x, x))
    y, expected = layer(found[0]), dense(wanted[0])
    assert y.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    y.backward(slope)
    expected.backward(slope)
    torch.testing.assert_close(found[0].grad, wanted[0].grad, rtol=tolerance, atol=tolerance)
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    grads = parametrization.value_gradients(rep, dense.weight.grad)
    for name, value in layer.values.named_parameters():
        assert value.grad is not None
        scale = float(grads[name].abs().max())
        torch.testing.assert_close(
            value.grad, grads[name], rtol=tolerance, atol=tolerance * max(1.0, scale)
        )


@each
def test_the_representation_comes_back_as_a_copy(parametrization):
    layer, _, rep = pair(parametrization)
    back = layer.representation()
    assert back.codes.dtype == rep.codes.dtype
    assert torch.equal(back.codes, rep.codes)
    assert all(torch.equal(back.values[name], rep.values[name]) for name in rep.values)
    back.codes.fill_(0)
    next(iter(back.values.values())).fill_(0)
    rep.codes.fill_(1)
    again = layer.representation()
    assert not torch.equal(again.codes, back.codes)
    assert not torch.equal(again.codes, rep.codes)


def test_codes_of_16_bits_come_back():
    codes = torch.tensor([0, 1, 32767, 32768, 65535], dtype=torch.int32).view(1, 5, 1)
    rep = VectorCodebook(bits=16, group_size=1).fit(torch.zeros(1, 5) + torch.arange(5.0))
    rep.codes.copy_(codes)
    rep.values["codebooks"].copy_(torch.arange(65536.0).view(1, -1, 1))
    layer = QuantizedLinear.from_representation(rep)
    assert layer.codes.dtype == torch.int16
    assert torch.equal(layer.representation().codes, codes)
    torch.testing.assert_close(layer(torch.eye(5)), rep.decode().T)


@each
def test_state_dicts_devices_and_dtypes(parametrization):
    layer, _, rep = pair(parametrization)
    x = draw(3, 8, seed=2)
    expected = layer(x)
    other = QuantizedLinear(parametrization, 8, 6)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)
    empty = QuantizedLinear(parametrization, 8, 6, device="meta")
    assert {t.device.type for t in empty.state_dict().values()} == {"meta"}
    assert empty(x.to("meta")).shape == (3, 6)
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(x), expected)
    held = copy.deepcopy(layer).to(torch.bfloat16)
    assert not held.codes.is_floating_point()
    assert {v.dtype for v in held.parameters()} == {torch.bfloat16}
    assert torch.equal(held.representation().codes, rep.codes)
    assert held(x).dtype == torch.float32
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer.to("meta")(x.to("meta")).device.type == "meta"


@each
def test_autocast_casts_the_input(parametrization):
    layer, dense, _ = pair(parametrization)
    x = draw(3, 8, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), dense(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=5e-2, atol=5e-2)


@each
def test_no_dense_tensor_is_kept_for_the_backward_pass(parametrization):
    layer, _, _ = pair(parametrization, rows=32, columns=32)
    x = draw(2, 32, seed=2).requires_grad_()
    kept: list[int] = []

    def pack(tensor):
        if tensor.is_floating_point():
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x).sum().backward()
    values = max(v.numel() for v in layer.parameters())
    assert max(kept, default=0) <= max(values, x.numel())


def test_values_alone_are_tuned():
    layer, _, rep = pair(AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4))
    codes = layer.codes.clone()
    x, goal = draw(64, 8, seed=4), draw(64, 6, seed=5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(layer.codes, codes)
    assert not torch.equal(layer.representation().values["scales"], rep.values["scales"])


def test_errors():
    rep = UniformGrid(bits=2).fit(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"bias must have shape \[4\], got \[8\]"):
        QuantizedLinear.from_representation(rep, torch.zeros(8))
    vector = UniformGrid(bits=2).fit(torch.arange(8.0))
    with pytest.raises(ValueError, match=r"representation must be of a matrix, got shape \[8\]"):
        QuantizedLinear.from_representation(vector)
    with pytest.raises(ValueError, match="group_size=3 does not divide the 8 columns"):
        QuantizedLinear(UniformGrid(bits=2, group_size=3), 8, 4)
    with pytest.raises(ValueError, match=r"x must have shape \[tokens, 8\]"):
        QuantizedLinear.from_representation(rep)(torch.zeros(2, 7))
