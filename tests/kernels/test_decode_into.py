"""decode_into against float64 NumPy and decode, for every implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quantized_weights import FORMATS
from stacks import LAYOUTS, draw_stack

from pvopt_kernels import decode, decode_into

BAND = 64
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def guarded_outputs(shape, dtypes, layout, device) -> tuple[list, list]:
    """Return memory full of -7 and views in it to write to, with a band on both sides."""
    wholes, outs = [], []
    size = shape[0] * shape[1]
    for w, dtype in enumerate(dtypes):
        strided = layout == "one of them strided" and w == len(dtypes) - 1
        step = 2 if strided else 1
        whole = torch.full((step * size + 2 * BAND,), -7.0, dtype=dtype, device=device)
        inside = whole[BAND : BAND + step * size : step]
        out = inside.view(shape[1], shape[0]).T if layout == "transposed" else inside.view(shape)
        wholes.append(whole)
        outs.append(out)
    return wholes, outs


def check(stack, dtypes, layout, device, guard) -> None:
    wholes, outs = guarded_outputs(stack.shape, dtypes, layout, device)
    decode_into(outs, *map(guard, stack.args), out_group=stack.out_group)
    for out, whole, weight in zip(outs, wholes, stack.weights, strict=True):
        codes, books, scales = weight.args
        single = decode(codes, books.float(), scales.float(), out_group=weight.out_group)
        if device.type == "cpu" and out.dtype == torch.bfloat16 and is_interpreted():
            torch.testing.assert_close(out, single.to(out.dtype), rtol=2**-7, atol=0)
        else:
            assert torch.equal(out, single.to(out.dtype))  # rounded once
        expected = weight.dense()
        torch.testing.assert_close(single.double().cpu(), expected, rtol=1e-6, atol=1e-6)
        untouched = whole.numel() - out.numel()
        assert int((whole == -7).sum()) >= untouched
        for band in (whole[:BAND], whole[-BAND:]):
            assert band.tolist() == [-7.0] * BAND


def is_interpreted() -> bool:
    """Triton's interpreter truncates to bfloat16 where a GPU rounds."""
    import os

    return os.environ.get("PVOPT_KERNELS") == "triton"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_format_and_dtype(kind, name, dtype, guard, device):
    stack = draw_stack(1, device, torch.float32, 2, **FORMATS[name])
    check(stack, [dtype] * 2, "contiguous", device, guard)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_mixed_dtypes(kind, layout, guard, device):
    stack = draw_stack(2, device, torch.float32, 3, rows=3, out_group=2, in_group=4, scales=2)
    dtypes = DTYPES if layout == "mixed dtypes" else [torch.float32] * 3
    check(stack, dtypes, layout, device, guard)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 4),
    rows=st.sampled_from([0, 1, 2, 7]),
    cols=st.sampled_from([0, 1, 6, 41]),
    books=st.integers(1, 3),
    group=st.sampled_from([(1, 1), (1, 8), (2, 3), (1, 5), (4, 2)]),
    dtype=st.sampled_from(DTYPES),
    values=st.sampled_from(DTYPES),
)
def test_ragged_stacks(kind, guard, device, seed, count, rows, cols, books, group, dtype, values):
    stack = draw_stack(
        seed, device, values, count, rows=rows, cols=cols, books=books, entries=5,
        out_group=group[0], in_group=group[1],
    )  # fmt: skip
    check(stack, [dtype] * count, "contiguous", device, guard)


def test_half_precision_rounds_to_nearest_even_and_keeps_what_is_not_finite(kind, device):
    if kind == "triton" and device.type == "cpu":
        pytest.skip("the interpreter truncates to bfloat16")
    values = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -(1 + 2**-11), 1 + 2**-11, 1e-7, -1e-7,
              65504.0, 65519.0, 65520.0, 3.4e38, 1e-42, float("nan"), float("inf"), -float("inf"),
              0.0]  # fmt: skip
    books = torch.tensor(values, device=device).view(1, 1, 16, 1)
    codes = torch.arange(16, dtype=torch.uint8, device=device).view(1, 1, 16, 1)
    scales = torch.ones(1, 1, 1, device=device)
    for dtype in DTYPES:
        out = torch.empty(1, 16, dtype=dtype, device=device)
        decode_into([out], codes, books, scales)
        expected = torch.tensor([values], device=device).to(dtype)
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def test_large_weights_go_past_the_caches_with_the_same_result(monkeypatch, device):
    import importlib

    module = importlib.import_module("pvopt_kernels.cpu.decode_into")
    if device.type != "cpu":
        pytest.skip("the implementation for CPUs")
    pytest.importorskip("numba")
    monkeypatch.setenv("PVOPT_KERNELS", "cpu")
    for group, dtype in ((8, torch.float32), (8, torch.bfloat16), (16, torch.float16)):
        stack = draw_stack(3, device, torch.float32, 2, rows=5, cols=7, in_group=group)
        found = []
        for least in (1 << 40, 0):
            monkeypatch.setattr(module, "_CACHED", least)
            outs = [torch.empty(stack.shape, dtype=dtype) for _ in range(2)]
            odd = [torch.empty(stack.shape[0] * stack.shape[1] + 1, dtype=dtype)[1:] for _ in outs]
            odd = [out.view(stack.shape) for out in odd]  # not at multiples of a vector
            decode_into(outs, *stack.args)
            decode_into(odd, *stack.args)
            found += [*outs, *odd]
        assert all(torch.equal(found[0], out) for out in found[2::2])
        assert all(torch.equal(found[1], out) for out in found[3::2])


def test_autograd_notices_that_a_tensor_has_changed(kind, device):
    stack = draw_stack(4, device, torch.float32, 1)
    with torch.no_grad():
        out = torch.ones(stack.shape, device=device)
        before = out._version
        decode_into([out], *stack.args)
    assert out._version > before


def test_errors(device):
    stack = draw_stack(5, device, torch.float32, 2)
    codes, books, scales = stack.args
    outs = [torch.empty(stack.shape, device=device) for _ in range(2)]
    with pytest.raises(ValueError, match="outs must have 2 tensors, one for each weight, got 1"):
        decode_into(outs[:1], *stack.args)
    with pytest.raises(ValueError, match=r"outs\[1\] must have shape \[5, 48\], got \[4, 48\]"):
        decode_into([outs[0], outs[1][:4]], *stack.args)
    with pytest.raises(TypeError, match=r"outs\[0\] must be one of float16.*got torch\.int64"):
        decode_into([outs[0].long(), outs[1]], *stack.args)
    with pytest.raises(ValueError, match=r"outs\[1\] must be on .* like the others, got meta"):
        decode_into([outs[0], outs[1].to("meta")], *stack.args)
    with pytest.raises(ValueError, match=r"codebooks must have shape \[2, 2, K, g\]"):
        decode_into(outs, codes, books[:1], scales)
    with pytest.raises(ValueError, match=r"codes must have shape \[W, rows, cols, M\]"):
        decode_into(outs, codes[0], books, scales)
