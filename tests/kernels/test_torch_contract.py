"""Every operation is a well-behaved custom op of torch, and compiles without a graph break."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pvopt_kernels import ops, pack_rows

ROOT = Path(__file__).parents[2]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _codes(*shape: int, below: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(sum(shape)))


def _books(requires_grad: bool = False) -> tuple[Tensor, ...]:
    """Codes, codebooks and scales of a weight of 3 x 8 in groups of 4."""
    values = _draw(2, 5, 4), _draw(3, 2)
    return _codes(3, 2, 2, below=5).byte(), *(v.requires_grad_(requires_grad) for v in values)


def _stack() -> tuple[Tensor, ...]:
    """Codes, codebooks and scales of two weights of 3 x 8 in groups of 4."""
    return _codes(2, 3, 2, 2, below=5).byte(), _draw(2, 2, 5, 4), _draw(2, 3, 2)


def _dense(*shape: int) -> list[Tensor]:
    """Two dense weights, of different dtypes."""
    return [_draw(*shape), _draw(*shape).bfloat16()]


def _grid(requires_grad: bool = False) -> tuple[Tensor, ...]:
    """Packed codes, scales and zeros of a weight of 3 x 10 at 3 bits."""
    packed = pack_rows(_codes(3, 10, below=8), 3)
    return packed, *(_draw(3, 2 + i)[:, :2].requires_grad_(requires_grad) for i in range(2))


# One call or more of every operation; arguments that have a gradient are marked by requires_grad.
CALLS: dict[str, list[Callable[[], Call]]] = {
    "assign": [
        lambda: ((_draw(6, 4), _draw(9, 4), 2), {}),
        lambda: ((_draw(6, 4).bfloat16(), _draw(9, 4)), {"metric": torch.ones(6, 4)}),
        lambda: ((_draw(0, 4), _draw(9, 4)), {}),
    ],
    "beam_search": [
        lambda: (
            (_draw(6, 4), _draw(2, 9, 4), _codes(6, 2, below=9), 3),
            {"beam_size": 4, "order": [1, 0]},
        ),
        lambda: (
            (_draw(0, 4), _draw(2, 9, 4), _codes(0, 2, below=9), 3),
            {"beam_size": 4, "order": [1]},
        ),
        lambda: (
            (_draw(6, 4), _draw(2, 2, 9, 4), _codes(6, 2, below=9), 3),
            {"beam_size": 4, "order": [1, 0], "metric": torch.ones(6, 4)},
        ),
    ],
    "better_codes": [
        lambda: (
            (_draw(6, 4), torch.tensor([0, 5, 3, 7, 6, 10]), *_stack()),
            {"beam_size": 3, "order": [1, 0]},
        ),
        lambda: (
            (_draw(0, 4), torch.empty(0, dtype=torch.int64), *_stack()),
            {"beam_size": 1, "order": [0], "out_group": 2},
        ),
    ],
    "codebook_grad": [
        lambda: ((_draw(3, 8), *_books()), {}),
        lambda: ((_draw(6, 4).bfloat16(), *_books()), {"out_group": 2}),
    ],
    "copy_into": [
        lambda: ((_dense(3, 8), [_draw(3, 8), _draw(3, 8).half()]), {}),
    ],
    "decode": [
        lambda: (_books(True), {}),
        lambda: (_books(), {"out_group": 2}),
    ],
    "decode_groups": [
        lambda: ((torch.tensor([0, 5, 3, 7, 6, 10]), *_stack()), {}),
        lambda: (
            (torch.tensor([1, 9]), *_stack()),
            {"out_group": 2, "new_codes": _codes(2, 2, below=4)},
        ),
    ],
    "decode_into": [
        lambda: ((_dense(3, 8), *_stack()), {}),
        lambda: ((_dense(6, 4), *_stack()), {"out_group": 2}),
        lambda: (([], *(part[:0] for part in _stack())), {}),
    ],
    "decoded_sq_norms": [
        lambda: ((_dense(3, 8), *_stack()), {}),
        lambda: (([t.double() for t in _dense(6, 4)], *_stack()), {"out_group": 2}),
    ],
    "e8p_assign": [
        lambda: ((_draw(6, 8), 3), {}),
        lambda: ((_draw(2, 8).half(),), {"metric": torch.ones(2, 8).half()}),
    ],
    "e8p_decode": [lambda: ((_codes(5, 2, below=256),), {"dtype": torch.bfloat16})],
    "gather_groups": [
        lambda: (
            (_dense(4, 8), _codes(2, 3, below=4)),
            {"out_group": 2, "in_group": 4},
        ),
    ],
    "group_sq_norms": [
        lambda: ((_draw(4, 8), _draw(4, 8).half()), {"out_group": 2, "in_group": 4}),
    ],
    "hadamard": [lambda: ((_draw(3, 8).requires_grad_(),), {})],
    "largest": [lambda: ((_draw(3, 40), 2), {})],
    "largest_changes": [
        lambda: ((_dense(3, 8), *_stack(), 2), {}),
        lambda: (([t.double() for t in _dense(6, 4)], *_stack(), 3), {"out_group": 2}),
    ],
    "matmul": [
        lambda: ((_draw(7, 8).requires_grad_(), *_books(True)), {}),
        lambda: ((_draw(2, 7, 6).half(), *_books(True)), {"out_group": 2, "transposed": True}),
    ],
    "scatter_groups": [
        lambda: (
            (_dense(4, 8), torch.tensor([[3, 0], [1, 2]]), _draw(2, 2, 8)),
            {"out_group": 2, "in_group": 4},
        ),
    ],
    "smallest": [lambda: ((_draw(3, 40), 2), {})],
    "stacked_codebook_grad": [
        lambda: ((_dense(3, 8), *_stack()), {}),
        lambda: ((_dense(6, 4), *_stack()), {"out_group": 2}),
    ],
    "sum_by_code": [
        lambda: ((_draw(7, 3).requires_grad_(), _codes(7, below=4), 4), {}),
        lambda: ((_draw(7, 3).bfloat16(), _codes(7, below=4).to(torch.int16), 4), {}),
    ],
    "trellis_decode": [
        lambda: ((_codes(3, 6, below=4).byte(), _draw(16, 1).requires_grad_()), {"symbol_bits": 2}),
        lambda: ((_codes(3, 6, below=2), _draw(16, 2).half()), {"symbol_bits": 1}),
    ],
    "trellis_search": [
        lambda: ((_draw(3, 8), _draw(16, 1)), {"symbol_bits": 2}),
        lambda: (
            (_draw(3, 8).half(), _draw(16, 2).half(), 3),
            {"symbol_bits": 1, "metric": torch.ones(3, 8).half(), "ends": _codes(3, 2, below=8)},
        ),
    ],
    "uniform_decode": [
        lambda: (_grid(True), {"bits": 3, "columns": 10}),
        lambda: ((*_grid()[:2], None), {"bits": 3, "columns": 10}),
    ],
    "uniform_grad": [lambda: ((_draw(3, 10).half(), *_grid()), {"bits": 3})],
    "uniform_matmul": [
        lambda: ((_draw(7, 10).requires_grad_(), *_grid(True)), {"bits": 3, "columns": 10}),
        lambda: (
            (_draw(2, 7, 3), *_grid()[:2], None),
            {"bits": 3, "columns": 10, "transposed": True},
        ),
    ],
}
# Those that write to the tensors of their first argument, a list.
WRITERS = {"copy_into", "decode_into", "scatter_groups"}
EACH = [
    pytest.param(name, i, id=f"{name}-{i}")
    for name, calls in CALLS.items()
    for i in range(len(calls))
]


def test_every_operation_has_a_call():
    assert sorted(CALLS) == sorted(ops.__all__)


def _op_arguments(name: str, call: Call) -> tuple[Any, tuple[Any, ...]]:
    """Return the custom op behind a public function, and what the function calls it with."""
    found: list[tuple[Any, ...]] = []
    module = __import__(f"pvopt_kernels.ops.{name}", fromlist=["_op"])
    op = module._op
    module._op = lambda *arguments: found.append(arguments) or op(*arguments)
    try:
        getattr(ops, name)(*call[0], **call[1])
    finally:
        module._op = op
    return op, found[0]


@pytest.mark.parametrize(("name", "number"), EACH)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_opcheck(name, number):
    """Schema, fake shapes and dtypes, autograd registration, and dynamic shapes."""
    op, arguments = _op_arguments(name, CALLS[name][number]())
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize(("name", "number"), EACH)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_as_one_graph(name, number):
    function = getattr(ops, name)
    arguments, options = CALLS[name][number]()
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    again, _ = CALLS[name][number]()
    expected, found = function(*arguments, **options), compiled(*again, **options)
    if name in WRITERS:
        expected, found = arguments[0], again[0]
    for a, b in zip(_tensors(expected), _tensors(found), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler for torch.compile")
def test_inductor_compiles_around_an_operation():
    """In a process of its own: the compiler imports Triton, which must not be interpreted there."""
    program = """
import torch
from pvopt_kernels.ops import assign

def loss(target, codebook):
    codes, errors = assign(2 * target, codebook, 2)
    return (codebook[codes[:, 0]] - target).square().sum() + errors.sum()

source = torch.Generator().manual_seed(0)
target, codebook = (torch.randn(n, 4, generator=source) for n in (6, 9))
compiled = torch.compile(loss, fullgraph=True)
torch.testing.assert_close(compiled(target, codebook), loss(target, codebook))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=ROOT)


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result or ())


@pytest.mark.parametrize(("name", "number"), EACH)
def test_meta_tensors_give_shapes(name, number):
    """No data is read where shapes are enough: a model on the meta device can be set up."""
    arguments, options = CALLS[name][number]()

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(each) for each in value]
        return value.to("meta") if isinstance(value, Tensor) else value

    function = getattr(ops, name)
    expected = _tensors(function(*arguments, **options))
    found = _tensors(
        function(*map(move, arguments), **{key: move(value) for key, value in options.items()})
    )
    for a, b in zip(expected, found, strict=True):
        assert b.device.type == "meta"
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize(("name", "number"), EACH)
def test_arguments_stay_as_they_are(name, number):
    arguments, options = CALLS[name][number]()
    kept = arguments[1:] if name in WRITERS else arguments
    before = [a.detach().clone() for a in _inputs(kept, options)]
    getattr(ops, name)(*arguments, **options)
    after = [a.detach() for a in _inputs(kept, options)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _inputs(arguments: tuple[Any, ...], options: dict[str, Any]) -> list[Tensor]:
    lists = [a if isinstance(a, list) else [a] for a in (*arguments, *options.values())]
    return [a for each in lists for a in each if isinstance(a, Tensor)]


def test_debug_mode_finds_codes_out_of_range(monkeypatch):
    values, codes = torch.ones(2, 1), torch.tensor([0, 3])
    monkeypatch.setenv("PVOPT_KERNELS_DEBUG", "1")
    with pytest.raises(IndexError, match=r"codes must be in 0 \.\. 2, got 0 \.\. 3"):
        ops.sum_by_code(values, codes, 3)
    target, books = torch.ones(1, 1), torch.ones(1, 2, 1)
    with pytest.raises(IndexError, match=r"codes must be in 0 \.\. 1, got -1 \.\. -1"):
        ops.beam_search(target, books, torch.tensor([[-1]]), 1, beam_size=1, order=[0])
