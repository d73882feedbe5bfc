"""Traps: partitions that a method cannot leave, counted over all partitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.toy.settings import Sizes, paper_setting, scale_of
from pvopt.convex import (
    ExactP,
    ExactV,
    Gain,
    Greedy,
    LinearizedV,
    Point,
    Problem,
    Proposal,
    VStep,
    diagonal_metric,
    recipes,
    set_partitions,
)

__all__ = ["GreedyStall", "greedy_stall", "trap_rows"]


def _fitted_partitions(problem: Problem, num_values: int) -> Point:
    """Return every partition into exactly ``num_values`` blocks after its exact P step."""
    codes = set_partitions(problem.dimension, num_values)
    codes = codes[codes.max(1) == num_values - 1]
    return ExactP().step(problem, Point(codes, np.zeros((len(codes), num_values))))


def trap_rows(sizes: Sizes) -> list[dict[str, Any]]:
    """Return, per method and c, which share of the partitions it cannot leave, and their gap.

    With exact P steps the state of a method without a buffer is its partition, so these are all
    its possible limit points.
    """
    rows = []
    for c in range(2, 6):
        found: dict[str, list[tuple[float, float]]] = {}
        for number in range(sizes.problems):
            problem, _ = paper_setting(number, c, 1)
            scale = scale_of(problem, c, enumerate_optimum=True)
            fitted = _fitted_partitions(problem, c)
            steps: dict[str, VStep] = {
                "exact PV": ExactV(),
                "linearized PV": LinearizedV(),
                "metric PV, diagonal": LinearizedV(metric=diagonal_metric(problem.curvature)),
                "subspace PV, greedy": LinearizedV(subspace=Greedy(1)),
                "subspace PV, gain": LinearizedV(subspace=Gain(1)),
            }
            gaps = scale.gap(problem.value(fitted.weights))
            for name, step in steps.items():
                stuck = _unmoved(step.step(problem, fitted).point, fitted)
                found.setdefault(name, []).append((float(stuck.mean()), float(gaps[stuck].mean())))
        for name, pairs in found.items():
            share, gap = np.mean(pairs, axis=0)
            rows.append(
                {
                    "experiment": "traps",
                    "d": 6,
                    "c": c,
                    "method": name,
                    "trapped_share": float(share),
                    "trap_gap_mean": float(gap),
                }
            )
    return rows


def _unmoved(after: Point, before: Point) -> NDArray[np.bool_]:
    return (after.weights == before.weights).all(-1)


@dataclass(frozen=True, eq=False)
class GreedyStall:
    """Where the greedy rule stops.

    ``improvable_share`` is the share of its limit points at which another coordinate can still
    lower the objective. One of them in detail, per coordinate: the gradient, the step that the
    coordinate's own curvature allows, the half gap to the next value on that side (infinite if
    there is none) and the predicted gain; and the coordinate that the greedy rule chooses.
    """

    improvable_share: float
    gradient: NDArray[np.float64]
    allowed_step: NDArray[np.float64]
    needed_step: NDArray[np.float64]
    gain: NDArray[np.float64]
    chosen: int

    @property
    def row(self) -> dict[str, Any]:
        """The numbers as plain data."""
        return {
            "improvable_share": self.improvable_share,
            "chosen": self.chosen,
            "gradient": self.gradient.tolist(),
            "gain": self.gain.tolist(),
            "allowed_over_needed": (self.allowed_step / self.needed_step).tolist(),
        }


def greedy_stall(sizes: Sizes, num_values: int = 3) -> GreedyStall:
    """Run the greedy rule to its limit points and look whether another coordinate could move."""
    improvable, found = [], []
    for number in range(sizes.problems):
        problem, start = paper_setting(number, num_values, sizes.starts)
        last = recipes.subspace_pv(Greedy(1)).run(problem, start).final
        gradient = problem.gradient(last.weights)
        proposal = Proposal(problem, last, gradient, -gradient / problem.smoothness)
        gains = Gain(1).scores(proposal)
        improvable.append(gains.max(-1) > 1e-9)
        run = int(gains.max(-1).argmax())  # the stall with most to gain shows best what is missed
        slope = gradient[run]
        offset = last.values[run] - last.weights[run][:, None]
        downhill = -slope[:, None] * offset > 0  # a step can only cross to values on its own side
        needed = np.where(downhill, np.abs(offset), np.inf).min(1) / 2
        allowed = np.abs(slope) / np.diag(problem.curvature)
        chosen = int(Greedy(1).select(proposal)[run, 0])
        found.append((np.abs(slope), allowed, needed, gains[run], chosen))
    return GreedyStall(float(np.concatenate(improvable).mean()), *found[0])
