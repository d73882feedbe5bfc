"""The E8P codebook against its definition, and decoding against a loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pvopt_kernels import e8_ball, e8p_absolute, e8p_decode

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def every_code() -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(256), torch.arange(256))


def test_the_codebook_is_the_published_one():
    """2^16 distinct points: +-1/4 off D8 + 1/2, absolute values as published."""
    points = e8p_decode(every_code(), torch.float64).numpy()
    assert len(np.unique(points, axis=0)) == 1 << 16
    absolute = {tuple(x) for x in e8p_absolute().tolist()}
    for shift in (-0.25, 0.25):
        vectors = points - shift
        # half-odd and of even sum: in D8 + 1/2
        inside = (vectors % 1 == 0.5).all(1) & (vectors.sum(1) % 2 == 0)
        assert inside.sum() == 1 << 15
        assert {tuple(x) for x in np.abs(vectors[inside])} == absolute
    # norm 10 is complete, of norm 12 there are 29
    half_odd = np.array(list(itertools.product((0.5, 1.5, 2.5), repeat=8)))
    norms = (half_odd**2).sum(1)
    assert {tuple(x) for x in half_odd[norms <= 10]} <= absolute
    rest = [x for x in absolute if sum(v * v for v in x) > 10]
    assert len(absolute) == 256
    assert len(rest) == 29
    assert all(sum(v * v for v in x) == 12 for x in rest)
    # no symmetry of the places tells which: some that QuIP# took, and some that it did not
    ones = {tuple(i for i, v in enumerate(x) if v == 0.5) for x in rest}
    assert {(1, 2, 3), (3, 6, 7), (0, 4, 5), (0, 1, 4), (2, 3, 7)} <= ones
    assert not {(1, 4, 5), (5, 6, 7), (0, 1, 5)} & ones


def test_the_ball_is_in_the_lattice():
    points = e8_ball().numpy()
    assert points.shape == (256, 8)
    assert len(np.unique(points, axis=0)) == 256
    integer, half = (points % 1 == 0).all(1), (points % 1 == 0.5).all(1)
    assert (integer | half).all()
    assert (points.sum(1) % 2 == 0).all()
    norms = (points**2).sum(1)
    assert np.unique(norms, return_counts=True)[1].tolist() == [1, 240, 15]


def test_e8p_decode_equals_a_loop(kind, precision, generator, guard, device):
    codes = torch.randint(256, (41, 3, 2), generator=generator(0))
    expected = torch.empty(41, 3, 8, dtype=torch.float64)
    for i, j in itertools.product(range(41), range(3)):
        vector, sign = codes[i, j].tolist()
        signs = [-1.0 if sign >> place & 1 else 1.0 for place in range(7)]
        absolute = e8p_absolute()[vector].tolist()
        parity = -1.0 if sum(absolute) % 2 else 1.0
        signs.append(parity * float(np.prod(signs)))
        shift = 0.25 if sign & 128 else -0.25
        values = [s * a + shift for s, a in zip(signs, absolute, strict=True)]
        expected[i, j] = torch.tensor(values, dtype=torch.float64)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        found = e8p_decode(guard(codes.to(device, dtype)), precision.dtype)
        assert found.dtype == precision.dtype
        assert torch.equal(found.double().cpu(), expected)  # exact in every dtype


def test_no_codes_and_any_memory_layout(kind, device):
    assert e8p_decode(torch.empty(0, 2, dtype=torch.uint8, device=device)).shape == (0, 8)
    assert e8p_decode(torch.empty(3, 0, 2, dtype=torch.uint8, device=device)).shape == (3, 0, 8)
    codes = every_code()[::777].to(device)
    assert torch.equal(e8p_decode(codes.T.contiguous().T), e8p_decode(codes))
    assert e8p_decode(codes[0]).shape == (8,)


def test_bad_arguments_are_refused():
    codes = torch.zeros(3, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"codes must have shape \[..., 2\], got \[2, 3\]"):
        e8p_decode(codes.T)
    with pytest.raises(TypeError, match="codes must be one of"):
        e8p_decode(codes.float())
    with pytest.raises(TypeError, match="dtype must be floating"):
        e8p_decode(codes, torch.int32)


def test_it_passes_the_checks_of_custom_operators(monkeypatch):
    monkeypatch.undo()  # the checks have their own way with memory
    codes = torch.zeros(3, 2, dtype=torch.uint8)
    torch.library.opcheck(
        torch.ops.pvopt.e8p_decode.default, (codes, torch.float32), test_utils=CHECKS
    )
