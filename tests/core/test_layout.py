"""GroupLayout: how a weight is cut into groups."""

from __future__ import annotations

import pytest
import torch

from pvopt import GroupLayout

LAYOUTS = [
    ((4, 6), 1, 1),
    ((4, 6), 1, 3),
    ((4, 6), 2, 3),
    ((4, 6), 4, 6),
    ((4, 6), 4, 1),
    ((7,), 1, 7),
    ((6,), 1, 2),
    ((4, 2, 3, 3), 1, 9),
    ((4, 2, 3, 3), 2, 6),
]


@pytest.mark.parametrize(("shape", "out_group", "in_group"), LAYOUTS)
def test_groups_are_numbered_row_by_row(shape, out_group, in_group):
    layout = GroupLayout(shape, out_group, in_group)
    weight = torch.arange(torch.Size(shape).numel()).view(shape)
    matrix = weight.view(shape[0] if len(shape) > 1 else 1, -1)
    groups = layout.split(weight)
    assert groups.shape == (layout.num_groups, layout.group_size)
    assert layout.num_groups * layout.group_size == weight.numel()
    for i in range(layout.rows):
        for j in range(layout.cols):
            rows = slice(i * out_group, (i + 1) * out_group)
            columns = slice(j * in_group, (j + 1) * in_group)
            assert torch.equal(groups[i * layout.cols + j], matrix[rows, columns].flatten())
    assert torch.equal(layout.merge(groups), weight)


@pytest.mark.parametrize(
    ("out_group", "in_group", "words"),
    [
        (1, 4, [r"in_group=4", r"\[4, 6\]", r"\[1, 2, 3, 6\]"]),
        (3, 2, [r"out_group=3", r"\[4, 6\]", r"\[1, 2, 4\]"]),
        (1, 12, [r"in_group=12", r"\[1, 2, 3, 6\]"]),
    ],
)
def test_groups_that_do_not_fit_are_refused_with_sizes_that_do(out_group, in_group, words):
    for word in words:
        with pytest.raises(ValueError, match=word):
            GroupLayout((4, 6), out_group, in_group)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0)])
def test_empty_weights_are_refused(shape):
    with pytest.raises(ValueError, match="at least one element"):
        GroupLayout(shape, 1, 1)


def test_a_weight_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[4, 6\].*\[6, 4\]"):
        GroupLayout((4, 6), 1, 2).split(torch.ones(6, 4))
