"""Representation: one thing that is cloned, moved, copied and validated."""

from __future__ import annotations

import copy

import pytest
import torch

from pvopt import AdditiveCodebooks, Representation, SharedValues, UniformGrid


def test_clone_is_independent(case, draw_rep):
    rep = draw_rep(case, 1)
    twin = rep.clone()
    before = rep.decode()
    for _, tensor in twin.tensors():
        tensor.zero_()
    assert torch.equal(rep.decode(), before)
    assert twin.parametrization == rep.parametrization
    assert twin.shape == rep.shape


def test_to_returns_a_copy_even_if_nothing_changes(case, draw_rep):
    rep = draw_rep(case, 1)
    before = rep.decode()
    twin = rep.to(device="cpu", dtype=rep.dtype)
    for _, tensor in twin.tensors():
        tensor.zero_()
    assert torch.equal(rep.decode(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_to_casts_values_and_keeps_codes(case, draw_rep, dtype):
    rep = draw_rep(case, 2)
    cast = rep.to(dtype=dtype)
    assert cast.dtype == dtype
    assert all(value.dtype == dtype for value in cast.values.values())
    assert cast.codes.dtype == rep.codes.dtype
    assert torch.equal(cast.codes, rep.codes)


def test_copy_overwrites_in_place(case, draw_rep):
    rep, other = draw_rep(case, 1), draw_rep(case, 2, dtype=torch.float32)
    tensors = dict(rep.tensors())
    assert rep.copy_(other) is rep
    for name, tensor in rep.tensors():
        assert tensor is tensors[name]
        assert torch.equal(tensor, dict(other.tensors())[name].to(tensor.dtype))


def test_copy_refuses_other_settings_and_shapes():
    rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
    with pytest.raises(ValueError, match="SharedValues"):
        rep.copy_(SharedValues(num_values=3).fit(torch.tensor([[0.0, 1.0]])))
    with pytest.raises(ValueError, match=r"\[1, 2\].*\[2, 1\]"):
        rep.copy_(SharedValues(num_values=2).fit(torch.tensor([[0.0], [1.0]])))
    assert rep.decode().tolist() == [[0.0, 1.0]]


def test_flat_codes_are_a_view(case, draw_rep):
    rep = draw_rep(case, 1)
    assert rep.flat_codes.shape == (rep.layout.num_groups, rep.codes.shape[-1])
    rep.flat_codes.zero_()
    assert int(rep.codes.sum()) == 0


def test_tensors_are_named_and_deepcopy_keeps_everything(case, draw_rep):
    rep = draw_rep(case, 1)
    names = [name for name, _ in rep.tensors()]
    assert names == ["codes", *(f"values.{name}" for name in rep.values)]
    twin = copy.deepcopy(rep)
    assert torch.equal(twin.decode(), rep.decode())
    assert twin.codes.data_ptr() != rep.codes.data_ptr()


GOOD = {"values": torch.zeros(2)}
CODES = torch.zeros(2, 3, 1, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("codes", "values", "shape", "kind", "words"),
    [
        (CODES.float(), GOOD, (2, 3), TypeError, "codes must be an integer tensor.*float32"),
        (CODES.bool(), GOOD, (2, 3), TypeError, "codes.*bool"),
        (CODES[:, :2], GOOD, (2, 3), ValueError, r"codes must have shape \(2, 3, 1\)"),
        (CODES, {"values": torch.zeros(3)}, (2, 3), ValueError, r"values.*\(2,\).*\(3,\)"),
        (CODES, {"value": torch.zeros(2)}, (2, 3), ValueError, "values"),
        (CODES, {}, (2, 3), ValueError, "values"),
        (CODES, GOOD, (3, 2), ValueError, "codes must have shape"),
    ],
)
def test_parts_that_do_not_fit_are_refused(codes, values, shape, kind, words):
    with pytest.raises(kind, match=words):
        Representation(SharedValues(num_values=2), codes, values, shape)


def test_bits_count_the_values_at_their_dtype():
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    rep = UniformGrid(bits=2, group_size=4).fit(weight)
    # 32 codes of 2 bits, 8 scales and 8 zeros of 32 bits
    assert rep.bits_per_weight() == (32 * 2 + 16 * 32) / 32
    assert rep.to(dtype=torch.bfloat16).bits_per_weight() == (32 * 2 + 16 * 16) / 32


def test_codes_take_the_narrowest_dtype_that_indexes():
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    assert SharedValues(num_values=256).fit(weight).codes.dtype == torch.uint8
    assert SharedValues(num_values=257).fit(weight).codes.dtype == torch.int32
    assert (
        AdditiveCodebooks(num_codebooks=1, bits=9, in_group=2).fit(weight).codes.dtype
        == torch.int32
    )
