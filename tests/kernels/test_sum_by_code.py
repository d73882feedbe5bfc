"""sum_by_code against a loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt_kernels.ops import sum_by_code


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 30),
    g=st.integers(1, 4),
    num_codes=st.integers(1, 9),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_sum_by_code_equals_a_loop(seed, n, g, num_codes, dtype):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, g, generator=generator, dtype=torch.float64).to(dtype)
    codes = torch.randint(num_codes, (n,), generator=generator)
    expected = torch.zeros(num_codes, g, dtype=torch.float64)
    for value, code in zip(values, codes.tolist(), strict=True):
        expected[code] += value.double()
    found = sum_by_code(values, codes, num_codes)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


def test_half_precision_is_summed_in_single():
    """Added up in bfloat16 a thousand ones would stop at 256."""
    values = torch.ones(1000, 1, dtype=torch.bfloat16)
    found = sum_by_code(values, torch.zeros(1000, dtype=torch.int64), 2)
    assert found.flatten().tolist() == [1000.0, 0.0]


@pytest.mark.parametrize("layout", ["strided", "transposed"])
def test_any_memory_layout(layout):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 8, generator=generator)
    values = values[:, ::2] if layout == "strided" else values.t()
    codes = torch.randint(3, (len(values),), generator=generator)
    found = sum_by_code(values, codes, 3)
    torch.testing.assert_close(found, sum_by_code(values.contiguous(), codes, 3))
