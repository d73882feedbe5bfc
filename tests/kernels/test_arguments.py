"""What no operation takes: wrong kinds of arguments, and codes that read memory of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pvopt_kernels
from pvopt_kernels import ops
from pvopt_kernels.packing import pack_rows

ROWS, COLS, BOOKS, ENTRIES, GROUP = 16, 8, 2, 5, 4


def weight(**changes: Any) -> dict[str, Any]:
    """Arguments of one weight; small numbers, and so exact sums."""
    codes = torch.arange(ROWS * COLS * BOOKS).view(ROWS, COLS, BOOKS) % ENTRIES
    return {
        "codes": codes,
        "codebooks": torch.ones(BOOKS, ENTRIES, GROUP),
        "scales": torch.ones(ROWS, 1),
        **changes,
    }


def stack() -> dict[str, Any]:
    return {name: tensor[None] for name, tensor in weight().items()}


def dense() -> torch.Tensor:
    return torch.ones(ROWS, COLS * GROUP)


GRID = {
    "packed": pack_rows(torch.zeros(4, 8, dtype=torch.int64), 2),
    "scales": torch.ones(4, 1),
    "zeros": torch.ones(4, 1),
    "bits": 2,
}
CALLS: dict[str, dict[str, Any]] = {
    "assign": {"target": torch.ones(3, 4), "codebook": torch.ones(5, 4), "k": 2},
    "beam_search": {
        "target": torch.ones(6, GROUP),
        "codebooks": torch.ones(BOOKS, ENTRIES, GROUP),
        "codes": torch.zeros(6, BOOKS, dtype=torch.int64),
        "k": 1,
        "beam_size": 2,
        "order": [0, 1],
    },
    "better_codes": {
        "target": torch.ones(ROWS * COLS, GROUP),
        "groups": torch.arange(ROWS * COLS),
        **stack(),
        "beam_size": 2,
        "order": [0, 1],
        "out_group": 1,
    },
    "codebook_grad": {"gradient": dense(), **weight(), "out_group": 1},
    "copy_into": {"outs": [dense()], "sources": [dense()]},
    "decode": {**weight(), "out_group": 1},
    "decode_groups": {"groups": torch.arange(ROWS * COLS), **stack(), "out_group": 1},
    "decode_into": {"outs": [dense()], **stack(), "out_group": 1},
    "decoded_sq_norms": {"targets": [dense()], **stack(), "out_group": 1},
    "e8p_assign": {"target": torch.ones(3, 8), "k": 2},
    "e8p_decode": {"codes": torch.zeros(3, 2, dtype=torch.int64), "dtype": torch.float32},
    "gather_groups": {
        "targets": [dense()],
        "groups": torch.zeros(1, 3, dtype=torch.int64),
        "out_group": 1,
        "in_group": 4,
    },
    "group_sq_norms": {"target": dense(), "weight": dense(), "out_group": 1, "in_group": 4},
    "hadamard": {"x": torch.ones(3, 8)},
    "largest": {"keys": torch.ones(3, 4), "k": 2},
    "largest_changes": {"targets": [dense()], **stack(), "k": 3, "out_group": 1},
    "matmul": {"x": torch.ones(2, COLS * GROUP), **weight(), "out_group": 1},
    "scatter_groups": {
        "outs": [dense()],
        "groups": torch.zeros(1, 1, dtype=torch.int64),
        "rows": torch.ones(1, 1, 4),
        "out_group": 1,
        "in_group": 4,
    },
    "smallest": {"scores": torch.ones(3, 4), "k": 2},
    "stacked_codebook_grad": {"gradients": [dense()], **stack(), "out_group": 1},
    "sum_by_code": {"values": torch.ones(6, 2), "codes": torch.zeros(6).long(), "num_codes": 3},
    "trellis_decode": {
        "symbols": torch.zeros(2, 6, dtype=torch.int64),
        "table": torch.ones(16, 1),
        "symbol_bits": 2,
    },
    "trellis_search": {
        "target": torch.ones(2, 6),
        "table": torch.ones(16, 1),
        "k": 1,
        "symbol_bits": 2,
    },
    "uniform_decode": {**GRID, "columns": 8},
    "uniform_grad": {"gradient": torch.ones(4, 8), **GRID},
    "uniform_matmul": {"x": torch.ones(2, 8), **GRID, "columns": 8},
}


def op(name: str) -> Callable[..., Any]:
    return getattr(ops, name)


def test_the_table_names_every_operation():
    assert sorted(CALLS) == sorted(ops.__all__)
    assert set(ops.__all__) <= set(pvopt_kernels.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_wrong_kinds_of_arguments(name):
    op(name)(**CALLS[name])
    for argument, right in CALLS[name].items():
        kinds = [None, "x", 1.5, object()]
        if isinstance(right, int):
            kinds += [True, False, torch.ones(2)]
        elif isinstance(right, torch.Tensor):
            kinds += [3, [1.0], torch.zeros(right.shape, dtype=torch.complex64)]
        for wrong in kinds:
            if argument == "zeros" and wrong is None:
                continue
            with pytest.raises(TypeError, match=r"must|iter"):
                op(name)(**{**CALLS[name], argument: wrong})


@pytest.mark.parametrize("name", CALLS)
def test_integers_out_of_range(name):
    for argument, right in CALLS[name].items():
        if isinstance(right, int):
            for wrong in (0, -1, -(2**40)):
                with pytest.raises(
                    ValueError, match="columns|packed" if argument == "columns" else argument
                ):
                    op(name)(**{**CALLS[name], argument: wrong})


CODED = [n for n, arguments in CALLS.items() if {"codes", "groups"} & arguments.keys()]


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("wrong", [-1, 256, 10**6, -(10**9), 2**31 - 1])
def test_codes_that_do_not_exist(name, wrong):
    argument = "codes" if "codes" in CALLS[name] else "groups"
    for place in (0, -1):
        codes = CALLS[name][argument].clone()
        codes.view(-1)[place] = wrong
        with pytest.raises(IndexError, match=f"{argument} must be in 0 \\.\\. "):
            op(name)(**{**CALLS[name], argument: codes})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_codes_of_every_dtype(dtype):
    for name in ("decode", "matmul", "codebook_grad", "decode_into", "sum_by_code"):
        most = 3 if name == "sum_by_code" else ENTRIES
        codes = CALLS[name]["codes"].to(dtype)
        op(name)(**{**CALLS[name], "codes": codes})
        codes.view(-1)[3] = most
        with pytest.raises(IndexError, match="codes must be in"):
            op(name)(**{**CALLS[name], "codes": codes})


@pytest.mark.parametrize(("dtype", "entries"), [(torch.int8, 256), (torch.int16, 40_000)])
def test_signed_codes_are_unsigned_ones(dtype, entries):
    books = torch.arange(float(entries)).view(1, entries, 1)
    codes = torch.tensor([[[entries - 1]]]).to(dtype)
    found = ops.decode(codes, books, torch.ones(1, 1))
    assert found.item() == entries - 1
    if entries < 1 << 16 and dtype == torch.int16:
        with pytest.raises(IndexError, match="codes must be in"):
            ops.decode(torch.tensor([[[-1]]], dtype=dtype), books, torch.ones(1, 1))
