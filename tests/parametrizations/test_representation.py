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
    for name, codes in rep.codes.items():
        assert cast.codes[name].dtype == codes.dtype
        assert torch.equal(cast.codes[name], codes)


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


def test_group_codes_are_those_of_all_streams_that_move(case, draw_rep):
    rep = draw_rep(case, 1)
    width = sum(s.shape[2] for s in rep.streams.values() if s.moves)
    codes = rep.group_codes()
    assert codes.shape == (rep.layout.num_groups, width)
    parts = codes.split(list(rep.moving.values()), dim=1)
    for name, part in zip(rep.moving, parts, strict=True):
        assert torch.equal(part, rep.codes[name].flatten(0, 1))
    groups = torch.tensor([rep.layout.num_groups - 1, 0])
    assert torch.equal(rep.group_codes(groups), codes[groups])
    if len(rep.moving) == 1:
        assert codes.data_ptr() == rep.codes[next(iter(rep.moving))].data_ptr()


def test_written_codes_are_read_again(case, draw_rep):
    rep, other = draw_rep(case, 1), draw_rep(case, 2)
    before, new = rep.group_codes().clone(), other.group_codes()
    groups = torch.tensor([rep.layout.num_groups - 1])
    rep.write_codes_(groups, new[groups].long())
    assert torch.equal(rep.group_codes()[-1], new[-1])
    assert torch.equal(rep.group_codes()[:-1], before[:-1])
    rep.write_codes_(None, new.long())
    assert torch.equal(rep.group_codes(), new)
    rep.check_codes()


def test_tensors_are_named_and_deepcopy_keeps_everything(case, draw_rep):
    rep = draw_rep(case, 1)
    names = [name for name, _ in rep.tensors()]
    assert names == [*(f"codes.{n}" for n in rep.codes), *(f"values.{n}" for n in rep.values)]
    twin = copy.deepcopy(rep)
    assert torch.equal(twin.decode(), rep.decode())
    for (_, left), (_, right) in zip(twin.tensors(), rep.tensors(), strict=True):
        assert left.data_ptr() != right.data_ptr()


def test_copies_and_codes_do_not_depend_on_the_order_of_names():
    rep = UniformGrid(bits=2).fit(torch.tensor([[0.0, 1.0, 5.0]]))
    values = {name: rep.values[name].clone() for name in reversed(rep.values)}
    twin = Representation(rep.parametrization, rep.codes, values, rep.shape)
    other = UniformGrid(bits=2).fit(torch.tensor([[3.0, 1.0, -5.0]]))
    twin.copy_(other)
    assert torch.equal(twin.decode(), other.decode())


GOOD = {"values": torch.zeros(2)}
ZEROS = torch.zeros(2, 3, 1, dtype=torch.uint8)
CODES = {"entries": ZEROS}


@pytest.mark.parametrize(
    ("codes", "values", "shape", "kind", "words"),
    [
        (
            {"entries": ZEROS.float()},
            GOOD,
            (2, 3),
            TypeError,
            "codes must be integer tensors, got torch.float32 for 'entries'",
        ),
        ({"entries": ZEROS.bool()}, GOOD, (2, 3), TypeError, "codes.*bool"),
        (
            {"entries": ZEROS[:, :2]},
            GOOD,
            (2, 3),
            ValueError,
            r"codes must be tensors of shapes.*\(2, 3, 1\).*\(2, 2, 1\)",
        ),
        ({"levels": ZEROS}, GOOD, (2, 3), ValueError, "entries.*got.*levels"),
        ({}, GOOD, (2, 3), ValueError, "codes must be"),
        (CODES, {"values": torch.zeros(3)}, (2, 3), ValueError, r"values.*\(2,\).*\(3,\)"),
        (CODES, {"value": torch.zeros(2)}, (2, 3), ValueError, "values"),
        (CODES, {}, (2, 3), ValueError, "values"),
        (CODES, GOOD, (3, 2), ValueError, "codes must be tensors of shapes"),
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
    for p, dtype in (
        (SharedValues(num_values=256), torch.uint8),
        (SharedValues(num_values=257), torch.int32),
        (AdditiveCodebooks(num_codebooks=1, bits=9, in_group=2), torch.int32),
    ):
        assert p.fit(weight).codes["entries"].dtype == dtype


def stack_of(case, draw_rep, count=3):
    members = [draw_rep(case, seed) for seed in range(count)]
    alone = [member.clone() for member in members]
    return Representation.stack(members), members, alone


def test_a_stack_is_its_members_below_each_other(case, draw_rep):
    stack, members, alone = stack_of(case, draw_rep)
    assert stack.count == 3
    assert stack.num_groups == 3 * stack.layout.num_groups
    stack.check_codes()
    for name, tensor in stack.tensors():
        parts = torch.cat([dict(member.tensors())[name] for member in alone])
        assert torch.equal(tensor, parts)
    for member, view, other in zip(members, stack.members(), alone, strict=True):
        assert torch.equal(member.decode(), other.decode())
        assert torch.equal(view.decode(), other.decode())
        assert view.scheme == other.scheme
    # members show what happens to the stack, and only theirs
    for _, tensor in stack.narrow(1, 1).tensors():
        tensor.zero_()
    assert torch.equal(members[0].decode(), alone[0].decode())
    assert torch.equal(members[2].decode(), alone[2].decode())
    assert all(int(codes.sum()) == 0 for codes in members[1].codes.values())
    assert stack.narrow(0, 3) is stack
    assert stack.narrow(1, 2).count == 2


def test_group_codes_of_a_stack_count_through_its_members(case, draw_rep):
    stack, _, alone = stack_of(case, draw_rep)
    assert torch.equal(stack.group_codes(), torch.cat([a.group_codes() for a in alone]))
    each = stack.layout.num_groups
    groups = torch.tensor([0, each, 3 * each - 1])
    wanted = [alone[0].group_codes()[0], alone[1].group_codes()[0], alone[2].group_codes()[-1]]
    assert torch.equal(stack.group_codes(groups), torch.stack(wanted))


def test_a_stack_of_one_is_the_weight_itself():
    rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
    assert Representation.stack([rep]) is rep
    with pytest.raises(ValueError, match="count must be positive, got 0"):
        Representation(rep.parametrization, rep.codes, rep.values, rep.shape, count=0)
