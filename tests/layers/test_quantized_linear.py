"""QuantizedLinear against the dense layer with the decoded weight."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from schemes import PARAMETRIZATIONS, SCHEMES, SHAPE, SPACES, draw, representation
from torch import Tensor, nn

import pvopt
from pvopt import (
    AdditiveCodebooks,
    Binary,
    CodeStream,
    Metric,
    Representation,
    Rotation,
    Scheme,
    Space,
    Sparse,
    SparseNM,
    UniformGrid,
    VectorCodebook,
)
from pvopt.layers import QuantizedLinear

ROWS, COLUMNS = SHAPE
# One per way of keeping codes (bytes, two bytes, packed for the kernels, packed for any), in spaces
# with codes, with values, with both, with neither.
EACH = [
    "additive-identity",
    "vector-wide-scaling",
    "grid-permutation",
    "ternary-rotation",
    "shared-chain",
    "nonzeros-identity",
    "sparse-tensor-padding",
    "scales-scaling",
]
each = pytest.mark.parametrize("name", EACH)


@dataclass(frozen=True)
class Signs(Space):
    """Every entry with a sign of its own: no activations can be mapped in place of the weight."""

    def streams(self, shape):
        return {"signs": CodeStream(shape=shape, num_codes=2, moves=False)}

    def value_shapes(self, shape):
        return {"size": (1,)}

    def start(self, weight, metric):
        return {"signs": (weight < 0).to(torch.uint8)}, {"size": weight.abs().mean()[None]}

    def enter(self, weight, owned):
        return weight * (1 - 2 * owned["signs"].to(weight)) / owned["size"].to(weight)

    def leave(self, inner, owned, shape):
        return inner * (1 - 2 * owned["signs"].to(inner)) * owned["size"].to(inner)

    def pull(self, gradient, owned):
        return self.leave(gradient, owned, tuple(gradient.shape))

    def pull_values(self, gradient, inner, owned):
        signed = inner * (1 - 2 * owned["signs"].to(inner))
        return {"size": (gradient * signed).sum()[None]}

    def enter_metric(
        self, metric: Metric | None, shape: tuple[int, ...], owned: Mapping[str, Tensor]
    ) -> Metric | None:
        return None


def of(name: str, dtype: torch.dtype = torch.float32) -> Representation:
    if name == "signs":
        found = Scheme(VectorCodebook(bits=3, group_size=2), Signs()).fit(draw(*SHAPE))
        return found.to(dtype=dtype)
    return representation(name, dtype)


def pair(
    name: str, dtype: torch.dtype = torch.float32
) -> tuple[QuantizedLinear, nn.Linear, Representation]:
    """Return a quantized layer and the dense layer it stands for, with the same bias."""
    rep = of(name, dtype)
    layer = QuantizedLinear.from_representation(rep, draw(ROWS, seed=1, dtype=dtype))
    dense = nn.Linear(COLUMNS, ROWS, dtype=dtype)
    with torch.no_grad():
        dense.weight.copy_(rep.decode())
        dense.bias.copy_(layer.bias)
    return layer, dense, rep


def values_of(layer: QuantizedLinear) -> dict[str, nn.Parameter]:
    """Return trained values by the names that representations have for them."""
    named = dict(layer.named_parameters())
    named.pop("bias", None)
    return {name.removeprefix("values."): value for name, value in named.items()}


def assert_gradients(layer, dense, rep, tolerance):
    pulled = rep.pull([dense.weight.grad])
    leaves = {n: v.detach().clone().requires_grad_() for n, v in rep.values.items()}
    free = Representation(rep.parametrization, rep.codes, leaves, rep.shape, rep.space)
    free.decode().backward(dense.weight.grad.to(rep.dtype))
    found = values_of(layer)
    assert found.keys() == pulled.keys() == leaves.keys()
    for name, value in found.items():
        assert value.grad is not None, name
        for wanted in (pulled[name], leaves[name].grad):
            scale = max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(
                value.grad, wanted, rtol=tolerance, atol=tolerance * scale, msg=name
            )


def compare(name: str, dtype: torch.dtype, tolerance: float) -> None:
    layer, dense, rep = pair(name, dtype)
    x, slope = draw(2, 3, COLUMNS, seed=2, dtype=dtype), draw(2, 3, ROWS, seed=3, dtype=dtype)
    found, wanted = ([t.clone().requires_grad_()] for t in (x, x))
    y, expected = layer(found[0]), dense(wanted[0])
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    y.backward(slope)
    expected.backward(slope)
    torch.testing.assert_close(found[0].grad, wanted[0].grad, rtol=tolerance, atol=tolerance)
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    assert_gradients(layer, dense, rep, tolerance)


@pytest.mark.parametrize("name", [*SCHEMES, "signs"])
def test_forward_and_backward_equal_the_dense_layer(name):
    compare(name, torch.float32, 1e-4 if "rotation" in name or "chain" in name else 1e-5)


@pytest.mark.parametrize("name", [*EACH, "signs"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 5e-2)])
def test_other_dtypes(name, dtype, tolerance):
    # Activations that are rotated in bfloat16 are rounded twice.
    rounded = dtype == torch.bfloat16 and ("rotation" in name or "chain" in name)
    compare(name, dtype, 2 * tolerance if rounded else tolerance)


def test_the_table_has_every_class_that_is_registered():
    from pvopt.spaces.contract import SPACES as REGISTERED

    library = {c for c in pvopt.PARAMETRIZATIONS if hasattr(pvopt, c)}
    assert {type(p).__name__ for p in PARAMETRIZATIONS.values()} == library
    library = {c for c in REGISTERED if hasattr(pvopt, c)}
    chained = [
        s for chain in SPACES.values() if isinstance(chain, pvopt.Chain) for s in chain.spaces
    ]
    assert {type(s).__name__ for s in [*SPACES.values(), *chained]} == library


@pytest.mark.parametrize("name", [*SCHEMES, "signs"])
def test_the_representation_comes_back_as_a_copy(name):
    rep = of(name)
    layer = QuantizedLinear.from_representation(rep)
    back = layer.representation()
    assert back.scheme == rep.scheme
    for (key, one), (other, two) in zip(rep.tensors(), back.tensors(), strict=True):
        assert key == other
        assert one.dtype == two.dtype, key
        assert torch.equal(one, two), key
        memory = two.untyped_storage().data_ptr()
        held = [*layer.buffers(), *layer.parameters(), one]
        assert memory not in {t.untyped_storage().data_ptr() for t in held}, key


def test_codes_of_16_bits_come_back():
    codes = torch.tensor([0, 1, 32767, 32768, 65535], dtype=torch.int32).view(1, 5, 1)
    rep = VectorCodebook(bits=16, group_size=1).fit(torch.zeros(1, 5) + torch.arange(5.0))
    rep.codes["entries"].copy_(codes)
    rep.values["codebooks"].copy_(torch.arange(65536.0).view(1, -1, 1))
    layer = QuantizedLinear.from_representation(rep)
    assert layer.get_buffer("codes.entries").dtype == torch.int16
    assert torch.equal(layer.representation().codes["entries"], codes)
    torch.testing.assert_close(layer(torch.eye(5)), rep.decode().T)


def test_a_member_of_a_stack_takes_its_own_memory_only():
    reps = [
        AdditiveCodebooks(num_codebooks=1, bits=2, in_group=4).fit(draw(*SHAPE, seed=i))
        for i in range(4)
    ]
    stack = Representation.stack(reps)
    layer = QuantizedLinear.from_representation(reps[2])
    for tensor in layer.state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert torch.equal(layer.representation().decode(), reps[2].decode())
    with pytest.raises(ValueError, match=r"of one matrix \[out, in\], got 4 of shape \[6, 16\]"):
        QuantizedLinear.from_representation(stack)


@pytest.mark.parametrize(
    ("parametrization", "sizes"),
    [
        (Sparse(density=0.25), {"support": 64 * 256 // 8}),
        (SparseNM(nonzeros=2, group_size=4), {"support": 64 * 64 * 3 // 8}),
        (Binary(), {"levels": 64 * 256 // 8}),
        (UniformGrid(bits=3), {"levels": 64 * 256 * 3 // 8}),
        (
            pvopt.QuantizedNonzeros(
                support=Sparse(density=0.25), inner=UniformGrid(bits=2, group_size=16)
            ),
            {"support": 64 * 256 // 8, "levels": 64 * 64 * 2 // 8},
        ),
        (
            pvopt.QuantizedScales(inner=pvopt.E8P(bits=2, scale_group=32), bits=5),
            {"points": 64 * 32 * 2, "scales": 64 * 8 * 5 // 8},
        ),
        (pvopt.Ternary(), {"levels": None}),
    ],
    ids=str,
)
def test_codes_take_their_real_width(parametrization, sizes):
    """A mask takes one bit for each entry; the kernels of grids read ternary codes of two bits."""
    layer = QuantizedLinear(parametrization, 256, 64, device="meta")
    held = {name: tensor.nbytes for name, tensor in layer.codes.named_buffers()}
    if None not in sizes.values():
        assert held == sizes
    stored = sum(s.stored_bytes for s in parametrization.streams((64, 256)).values())
    assert sum(held.values()) <= math.ceil(stored * 2 / 1.6)


@each
def test_state_dicts_devices_and_dtypes(name):
    layer, _, rep = pair(name)
    x = draw(3, COLUMNS, seed=2)
    expected = layer(x)
    other = QuantizedLinear(rep.scheme, COLUMNS, ROWS)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)
    empty = QuantizedLinear(rep.scheme, COLUMNS, ROWS, device="meta")
    assert {t.device.type for t in empty.state_dict().values()} == {"meta"}
    assert empty(x.to("meta")).shape == (3, ROWS)
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(x), expected)
    held = copy.deepcopy(layer).to(torch.bfloat16)
    assert not any(codes.is_floating_point() for codes in held.buffers())
    assert {v.dtype for v in held.parameters()} == {torch.bfloat16}
    back = held.representation()
    assert all(torch.equal(back.codes[key], codes) for key, codes in rep.codes.items())
    assert held(x).dtype == torch.float32
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer.to("meta")(x.to("meta")).device.type == "meta"


def test_names_in_a_state_dict():
    layer = QuantizedLinear(SCHEMES["scales-books-chain"], COLUMNS, ROWS)
    assert list(layer.state_dict()) == [
        "bias",
        "codes.entries",
        "codes.scales",
        "values.codebooks",
        "values.scales",
        "space.3.order",
        "space.4.input_scales",
        "space.4.output_scales",
    ]
    assert "space.4.input_scales" in dict(layer.named_parameters())
    assert "space.3.order" in dict(layer.named_buffers())


@each
def test_autocast_casts_the_input(name):
    layer, dense, _ = pair(name)
    x = draw(3, COLUMNS, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), dense(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("space", [*SPACES, "signs"])
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_no_dense_tensor_is_kept_for_the_backward_pass(name, space):
    scheme = Scheme(PARAMETRIZATIONS[name], Signs() if space == "signs" else SPACES[space])
    layer = QuantizedLinear(scheme, 48, 48)
    x = draw(2, 48, seed=2).requires_grad_()
    kept: list[int] = []

    def pack(tensor):
        if tensor.is_floating_point():
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x).sum().backward()
    values = max(v.numel() for v in layer.parameters())
    assert max(kept, default=0) <= max(values, x.numel())


def test_recomputing_takes_the_tensors_of_the_call():
    """Also where a functional call put others in the layer's place."""
    layer, _, rep = pair("sparse-scaling")
    x = draw(3, COLUMNS, seed=2)
    others = {n: (2 * p.detach()).requires_grad_() for n, p in layer.named_parameters()}
    torch.func.functional_call(layer, others, (x,)).square().sum().backward()
    assert all(p.grad is None for p in layer.parameters())
    doubled = QuantizedLinear.from_representation(rep, layer.bias)
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    doubled(x).square().sum().backward()
    for name, parameter in doubled.named_parameters():
        torch.testing.assert_close(others[name].grad, parameter.grad)


@pytest.mark.parametrize("name", [*EACH, "signs"])
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_one_graph(name):
    layer, _, _ = pair(name)
    x = draw(5, COLUMNS, seed=2).requires_grad_()
    inputs = [x, *layer.parameters()]
    y = layer(x)
    grads = torch.autograd.grad(y.square().sum(), inputs)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = compiled(x)
    torch.testing.assert_close(found, y)
    again = torch.autograd.grad(found.square().sum(), inputs)
    for one, other in zip(again, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_values_alone_are_tuned():
    layer = QuantizedLinear.from_representation(representation("additive-scaling"))
    codes = layer.get_buffer("codes.entries").clone()
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    x, goal = draw(64, COLUMNS, seed=4), draw(64, ROWS, seed=5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(layer.get_buffer("codes.entries"), codes)
    assert "space.input_scales" in before
    for name, value in layer.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_errors():
    rep = UniformGrid(bits=2).fit(draw(4, 8))
    with pytest.raises(ValueError, match=r"bias must have shape \[4\], got \[8\]"):
        QuantizedLinear.from_representation(rep, torch.zeros(8))
    vector = UniformGrid(bits=2).fit(torch.arange(8.0))
    with pytest.raises(
        ValueError, match=r"must be of one matrix \[out, in\], got 1 of shape \[8\]"
    ):
        QuantizedLinear.from_representation(vector)
    with pytest.raises(ValueError, match="group_size=3 does not divide the 8 columns"):
        QuantizedLinear(UniformGrid(bits=2, group_size=3), 8, 4)
    with pytest.raises(ValueError, match="block=4 does not divide the 6 columns"):
        QuantizedLinear(Scheme(Binary(), Rotation(block=4)), 6, 4)
    with pytest.raises(ValueError, match=r"x must have shape \[tokens, 8\]"):
        QuantizedLinear.from_representation(rep)(torch.zeros(2, 7))
