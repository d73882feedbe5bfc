"""What the theory promises of linearized PV, and what straight-through does instead."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pvopt import (
    AdditiveCodebooks,
    AllGroups,
    Alternate,
    Greedy,
    Identity,
    Proportional,
    PVOptimizer,
    Representation,
    Rotation,
    Scheme,
    SGDValues,
    SharedValues,
    Simultaneous,
    Uniform,
    UniformGrid,
    VectorCodebook,
    naive_pv,
    ste,
)

SEEDS = st.integers(0, 2**32 - 1)
# The step of the theory: no latent weight, and on codes as long as on dense weights.
PLAIN: dict[str, Any] = {"latent_decay": 1.0, "code_lr_ratio": 1.0}
DOUBLE = torch.float64


def draw_quadratic(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """A positive definite matrix with condition number up to 1e3, and the minimiser."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=DOUBLE))[0]
    eigenvalues = 10 ** (3 * torch.rand(size, generator=generator, dtype=DOUBLE) - 1.5)
    goal = torch.randn(size, generator=generator, dtype=DOUBLE)
    return basis @ torch.diag(eigenvalues) @ basis.T, goal


def loss_of(matrix: Tensor, goal: Tensor, weight: Tensor) -> float:
    difference = weight.detach().flatten() - goal
    return float(difference @ matrix @ difference) / 2


def descend(
    matrix: Tensor, goal: Tensor, parameter: nn.Parameter, optimizer: PVOptimizer, steps: int
) -> list[float]:
    losses = [loss_of(matrix, goal, parameter)]
    for _ in range(steps):
        gradient = matrix @ (parameter.detach().flatten() - goal)
        parameter.grad = gradient.view_as(parameter)
        optimizer.step()
        losses.append(loss_of(matrix, goal, parameter))
    return losses


def check_monotone(losses: list[float], matrix: Tensor) -> None:
    slack = 1e-12 * (1 + float(torch.linalg.matrix_norm(matrix, 2)) + losses[0])
    assert all(after <= before + slack for before, after in itertools.pairwise(losses))


SUBSPACES = [AllGroups(), Greedy(0.2), Uniform(0.4), Proportional(0.4)]


@pytest.mark.parametrize("subspace", SUBSPACES, ids=str)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=SEEDS,
    count=st.integers(1, 6),
    trust_ratio=st.sampled_from([None, 0.1]),
    phases=st.sampled_from([Simultaneous(), Alternate(p=1, v=1), Alternate(p=2, v=3)]),
)
def test_pv_with_steps_of_1_over_l_never_goes_up(subspace, seed, count, trust_ratio, phases):
    """The linearized V step, on any subspace and in any trust region, with the P step or without.

    A P step of 1 / (L d) on the values is a step of at most 1 / L on the weights' own bound, at
    which the V step starts: both lower the same upper bound of the loss.
    """
    matrix, goal = draw_quadratic(seed, 6)
    generator = torch.Generator().manual_seed(seed)
    rep = SharedValues(num_values=count).fit(torch.randn(6, generator=generator, dtype=DOUBLE))
    parameter = nn.Parameter(rep.decode())
    smoothness = float(torch.linalg.eigvalsh(matrix)[-1])
    optimizer = PVOptimizer(
        torch.optim.SGD([parameter], lr=1 / smoothness),
        {parameter: rep},
        subspace=subspace,
        trust_ratio=trust_ratio,
        **PLAIN,
        values=SGDValues(lr_ratio=1 / 6),
        phases=phases,
        seed=seed,
    )
    losses = descend(matrix, goal, parameter, optimizer, 25)
    check_monotone(losses, matrix)
    assert len(parameter.detach().unique()) <= count


@pytest.mark.parametrize(
    "parametrization",
    [
        SharedValues(num_values=3),
        UniformGrid(bits=2, group_size=2),
        UniformGrid(bits=2, symmetric=True),
        VectorCodebook(bits=2, group_size=2),
        AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2),
        AdditiveCodebooks(num_codebooks=2, bits=1, in_group=2, out_group=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("subspace", [AllGroups(), Greedy(0.3)], ids=str)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_v_steps_of_every_parametrization_never_go_up(parametrization, subspace, seed):
    """Values frozen: a search that is never worse than the current code is enough."""
    matrix, goal = draw_quadratic(seed, 16)
    rep = parametrization.fit(torch.randn(4, 4, dtype=DOUBLE).mul_(0.5))
    parameter = nn.Parameter(rep.decode())
    smoothness = float(torch.linalg.eigvalsh(matrix)[-1])
    base = torch.optim.SGD([{"params": [parameter], "freeze_values": True}], lr=1 / smoothness)
    optimizer = PVOptimizer(base, {parameter: rep}, subspace=subspace, **PLAIN)
    check_monotone(descend(matrix, goal, parameter, optimizer, 15), matrix)


def test_a_subspace_step_crosses_where_the_full_step_is_too_short():
    """The catch of the full step and its cure: L_S of one coordinate is far below L.

    phi = 1/2 (1000 (x0 - x0*)^2 + (x1 - 1)^2) on {0, 1}^2 from (0, 0), x0* = 0: the step 1/L moves
    x1 by 1/1000 and rounds back for ever; on S = {x1}, L_S = 1, it arrives at once.
    """
    results = []
    for lr in (1 / 1000, 1.0):
        rep = table_rep()
        parameter = nn.Parameter(rep.decode())
        base = torch.optim.SGD([{"params": [parameter], "freeze_values": True}], lr=lr)
        optimizer = PVOptimizer(base, {parameter: rep}, subspace=Greedy(0.5), **PLAIN)
        matrix, goal = (
            torch.diag(torch.tensor([1000.0, 1.0], dtype=DOUBLE)),
            torch.eye(2)[1].double(),
        )
        results.append(descend(matrix, goal, parameter, optimizer, 50)[-1])
    assert results == [0.5, 0.0]


@pytest.mark.parametrize(
    ("subspace", "trust_ratio", "lr_ratio", "space"),
    [
        (Greedy(0.1), None, 0.01, Identity()),
        (Greedy(0.1), None, 1.0, Identity()),
        (Uniform(0.2), 0.3, 0.1, Identity()),
        (Greedy(0.3), 0.1, 0.01, Identity()),
        (Greedy(0.3), 0.1, 1.0, Identity()),
        # Weights that are searched by themselves.
        (Greedy(0.1), None, 0.01, Rotation()),
        (Greedy(0.3), 0.1, 1.0, Rotation()),
    ],
)
def test_measured_steps_on_codes_lower_the_loss_and_come_to_rest(
    subspace, trust_ratio, lr_ratio, space
):
    """From learning rates at which plain steps are too short, on random quadratics.

    A single step may raise the loss: that is how the length of steps is found. In the end codes
    rest, near the best loss that was passed, and below that at which plain steps stop.
    """
    for seed in range(2):
        matrix, goal = draw_quadratic(seed, 40)
        lr = lr_ratio / float(torch.linalg.eigvalsh(matrix)[-1])
        found = {}
        for ratio in (1.0, None):
            source = torch.Generator().manual_seed(seed)
            start = torch.randn(4, 10, dtype=DOUBLE, generator=source)
            rep = Scheme(UniformGrid(bits=2), space).fit(start)
            parameter = nn.Parameter(rep.decode())
            base = torch.optim.SGD([{"params": [parameter], "freeze_values": True}], lr=lr)
            optimizer = PVOptimizer(
                base,
                {parameter: rep},
                subspace=subspace,
                trust_ratio=trust_ratio,
                latent_decay=1.0,
                code_lr_ratio=ratio,
            )
            found[ratio] = descend(matrix, goal, parameter, optimizer, 150)
        plain, measured = found[1.0], found[None]
        assert measured[-1] < 0.3 * plain[-1]
        assert measured[-1] < 1.3 * min(measured)
        assert len(set(measured[-20:])) == 1


def table_rep() -> Representation:
    """{0, 1}^2, at the origin."""
    codes = torch.zeros(1, 2, 1, dtype=torch.uint8)
    table = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    return Representation(SharedValues(num_values=2), {"entries": codes}, {"values": table}, (2,))


@pytest.mark.parametrize("lr", [0.1, 1 / 3])
def test_straight_through_cycles_for_ever_where_pv_stands_still(lr):
    """phi = 1/2 (x - x*)'A(x - x*), A = [[2, 1], [1, 2]] (L = 3), x* = (0.3, 0.3), x in {0, 1}^2.

    The best point is (0, 0): phi = 0.27, against 0.67 at (0, 1) and (1, 0), 1.47 at (1, 1). At
    (0, 0) the gradient is (-0.9, -0.9), at (1, 1) it is (2.1, 2.1), at (1, 0) it is (1.1, 0.1): at
    each of the four points some coordinate of the latent drifts towards the other value at a
    constant rate, so straight-through leaves every point after finitely many steps, the best one
    included, and cycles for ever. The linearized step from (0, 0) is 0.9 lr <= 0.3 < 1/2: PV stays.
    """
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=DOUBLE)
    goal = torch.tensor([0.3, 0.3], dtype=DOUBLE)

    def run(recipe: Any, steps: int) -> list[float]:
        rep = table_rep()
        parameter = nn.Parameter(rep.decode())
        base = torch.optim.SGD([{"params": [parameter], "freeze_values": True}], lr=lr)
        return descend(matrix, goal, parameter, recipe(base, {parameter: rep}), steps)

    window = int(10 / lr)
    losses = run(ste, 4 * window)
    for start in range(0, 4 * window, window):  # in every window it is at the best and elsewhere
        part = losses[start : start + window]
        assert min(part) == pytest.approx(0.27)
        assert max(part) > 0.6
    assert run(naive_pv, 100) == pytest.approx([0.27] * 101)


def test_latent_decay_of_one_half_ends_the_cycle():
    """Penalised straight-through: the pull towards w outweighs the drift at the best point."""
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=DOUBLE)
    goal = torch.tensor([0.3, 0.3], dtype=DOUBLE)
    rep = table_rep()
    parameter = nn.Parameter(rep.decode())
    base = torch.optim.SGD([{"params": [parameter], "freeze_values": True}], lr=0.1)
    optimizer = ste(base, {parameter: rep}, latent_decay=0.5)
    # the latent converges to the drift 0.09 / rho - 0.09 = 0.09: it never reaches 1/2
    assert descend(matrix, goal, parameter, optimizer, 200) == pytest.approx([0.27] * 201)
    assert optimizer.state[parameter]["pv.latent"].tolist() == pytest.approx([0.09, 0.09])


def test_as_many_values_as_weights_reach_the_unconstrained_minimum():
    """c = d from a start with d distinct values: the P step alone is plain gradient descent."""
    matrix, goal = draw_quadratic(3, 6)
    rep = SharedValues(num_values=6).fit(torch.arange(6, dtype=DOUBLE))
    parameter = nn.Parameter(rep.decode())
    smoothness = float(torch.linalg.eigvalsh(matrix)[-1])
    base = torch.optim.SGD([{"params": [parameter], "freeze_codes": True}], lr=1 / smoothness)
    optimizer = PVOptimizer(base, {parameter: rep}, values=SGDValues())
    condition = smoothness / float(torch.linalg.eigvalsh(matrix)[0])
    losses = descend(matrix, goal, parameter, optimizer, int(12 * condition))
    assert losses[-1] < 1e-8 * losses[0]
