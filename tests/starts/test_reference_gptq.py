"""GPTQ as published, in NumPy, against ours: on average no worse in any of its variants."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pvopt import Permutation, Row, Scheme, UniformGrid
from pvopt.starts import GPTQ

BITS, GROUP, TOP = 2, 8, 3


def grid(rows: np.ndarray, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scale and integer zero point: the range is shrunk for the least sum of |error|^2.4."""
    low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    if symmetric:
        high = np.maximum(high, -low)
        low = np.where(low < 0, -high, low)
    best = np.full(len(rows), np.inf)
    scale, zero = np.zeros(len(rows)), np.zeros(len(rows))
    for share in 1 - np.arange(80) / 100:
        own = share * (high - low) / TOP
        middle = np.full(len(rows), (TOP + 1) / 2) if symmetric else np.round(-share * low / own)
        error = (np.abs(rounded(rows, own, middle) - rows) ** 2.4).sum(1)
        better = error < best
        best[better], scale[better], zero[better] = error[better], own[better], middle[better]
    return scale, zero


def rounded(rows, scale, zero):
    codes = np.clip(np.round(rows / scale[:, None] + zero[:, None]), 0, TOP)
    return scale[:, None] * (codes - zero[:, None])


def reference(weight, hessian, *, symmetric, order=False, moving=False):
    """Column by column, with what is left of the inverse Hessian, without any factor."""
    columns = len(hessian)
    hessian = hessian + 0.01 * np.diag(hessian).mean() * np.eye(columns)
    visits = np.argsort(-np.diag(hessian), kind="stable") if order else np.arange(columns)
    work, inverse = weight[:, visits].copy(), np.linalg.inv(hessian[np.ix_(visits, visits)])
    still = [grid(weight[:, i : i + GROUP], symmetric) for i in range(0, columns, GROUP)]
    result = np.zeros_like(weight)
    for place, column in enumerate(visits):
        if order and not moving:
            scale, zero = still[column // GROUP]
        elif place % GROUP == 0:
            scale, zero = grid(work[:, place : place + GROUP], symmetric)
        own = rounded(work[:, [place]], scale, zero)
        result[:, column] = own[:, 0]
        error = (work[:, place] - own[:, 0]) / inverse[place, place]
        work -= np.outer(error, inverse[place])
        inverse -= np.outer(inverse[:, place], inverse[place]) / inverse[place, place]
    return result


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("variant", ["left to right", "activation order", "moving groups"])
def test_on_average_no_worse_than_the_reference(variant, symmetric):
    order, moving = variant != "left to right", variant == "moving groups"
    form = UniformGrid(
        bits=BITS, group_size=GROUP, symmetric=symmetric, integer_zeros=not symmetric
    )
    scheme = Scheme(form, Permutation()) if moving else Scheme(form)
    logs = []
    for seed in range(8):
        draws = np.random.default_rng(seed)
        inputs = draws.normal(size=(64, 12)) @ draws.normal(size=(12, 32))
        inputs = (inputs + draws.normal(size=(64, 32))) * np.exp(draws.normal(size=32))
        weight = draws.normal(size=(16, 32))
        theirs = reference(
            weight, inputs.T @ inputs, symmetric=symmetric, order=order, moving=moving
        )
        rep = GPTQ(activation_order=order).start(
            torch.from_numpy(weight), scheme, metric=Row(torch.from_numpy(inputs.T @ inputs))
        )
        errors = [np.square(inputs @ (weight - q).T).sum() for q in (rep.decode().numpy(), theirs)]
        logs.append(np.log(errors[0] / errors[1]))
    assert np.mean(logs) < 0
