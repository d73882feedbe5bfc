"""largest against a stable sort, for every implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvopt_kernels import largest

SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-42, -1e-42, 3e38]


def check(keys: torch.Tensor, k: int) -> None:
    values, indices = largest(keys, k)
    assert values.dtype == keys.dtype
    assert indices.dtype == torch.int64
    order = (-keys.cpu()).sort(dim=1, stable=True).indices[:, :k]  # NaN last
    assert torch.equal(indices.cpu(), order)
    expected = keys.cpu().gather(1, order)
    torch.testing.assert_close(values.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 4),
    m=st.sampled_from([1, 31, 1024, 1025, 1040, 3000, 20000]),
    share=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
    levels=st.sampled_from([1, 3, 100, 10**6]),
    special=st.booleans(),
)
def test_largest_equals_a_stable_sort(kind, guard, device, seed, n, m, share, levels, special):
    source = torch.Generator().manual_seed(seed)
    keys = torch.randint(-levels, levels + 1, (n, m), generator=source) / 8
    if special:
        places = torch.randint(m, (n, len(SPECIAL)), generator=source)
        keys.scatter_(1, places, torch.tensor(SPECIAL).expand(n, -1))
    check(guard(keys.to(device)), max(1, int(share * m)))


@pytest.mark.parametrize("distance", [1, 15, 16, 17, 72, 1000])
def test_ties_at_distances_of_vectors_and_samples(kind, distance, device):
    """The k-th and the next one are equal: the first wins."""
    keys = torch.rand(2, 4000, generator=torch.Generator().manual_seed(distance)).to(device)
    keys[:, 5 : 5 + 3 * distance : distance] = 2.0
    keys[:, 3990:] = 3.0
    check(keys, 40)
    keys[:, 100:140] = 2.0
    for k in (10, 11, 32, 40, 53):
        check(keys, k)


def test_an_unlucky_sample_is_made_up_for(kind, device):
    """The sample has only large entries: its bound is above most of those that are wanted."""
    keys = torch.rand(1, 5000, generator=torch.Generator().manual_seed(0)).to(device)
    keys[:, ::17] += 10
    keys[:, 1::17] += 5
    check(keys, 600)


def test_all_nan(kind, device):
    keys = torch.full((2, 2000), float("nan"), device=device)
    assert largest(keys, 50)[1].tolist() == [list(range(50))] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(kind, dtype, device):
    keys = torch.randn(2, 2000, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    check(keys, 50)


def test_any_layout_and_no_rows(kind, device):
    keys = torch.randn(2000, 3, generator=torch.Generator().manual_seed(2)).to(device)
    check(keys.T, 40)
    assert largest(keys[:0].T[:0].new_empty(0, 64), 2)[1].shape == (0, 2)


def test_errors():
    with pytest.raises(ValueError, match=r"k must be in 1 \.\. 4, the entries of a row, got 5"):
        largest(torch.zeros(2, 4), 5)
    with pytest.raises(TypeError, match="keys must be one of"):
        largest(torch.zeros(2, 4).int(), 1)
