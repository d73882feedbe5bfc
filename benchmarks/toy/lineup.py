"""The methods compared, and the runs of one method as rows and curves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvopt.convex import (
    Exploration,
    Gain,
    Greedy,
    Method,
    Point,
    Problem,
    Proportional,
    Trajectory,
    Uniform,
    diagonal_metric,
    recipes,
)

__all__ = ["MONOTONE", "Outcome", "Scale", "lineup", "measure", "row"]

#: Methods whose half steps provably never raise the objective, by name.
MONOTONE = (
    "exact PV",
    "linearized PV",
    "linearized PV, T=8",
    "subspace PV, greedy",
    "subspace PV, greedy, T=8",
    "subspace PV, uniform",
    "subspace PV, proportional",
    "subspace PV, gain",
    "subspace PV, gain, T=8",
    "metric PV, diagonal",
    "continuous only",
    "gain and kicks",
)


@dataclass(frozen=True)
class Scale:
    """Objective values that make gaps comparable between problems.

    ``bottom`` is the global optimum where it is known, else the unconstrained one; ``top`` is the
    best constant vector. A relative gap is 0 at the bottom and 1 at the top.
    """

    bottom: float
    top: float

    def gap(self, objective: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the relative gap of objective values."""
        return (objective - self.bottom) / (self.top - self.bottom)


@dataclass(frozen=True)
class Outcome:
    """The runs of one method on one problem, from all starts at once."""

    name: str
    trajectory: Trajectory
    scale: Scale
    seconds: float

    def gaps(self, *, best: bool = False) -> NDArray[np.float64]:
        """Return the relative gap after every half step, ``(h, runs)``; or of the best so far."""
        objective = self.trajectory.objective
        return self.scale.gap(np.minimum.accumulate(objective) if best else objective)


def lineup(problem: Problem, *, size: int = 1) -> dict[str, Method | Exploration]:
    """Return every method by name; ``size`` is the number of coordinates of a subspace."""
    gain = recipes.subspace_pv(Gain(size), inner=8)
    return {
        "exact PV": recipes.exact_pv(),
        "linearized PV": recipes.linearized_pv(),
        "linearized PV, T=8": recipes.linearized_pv(8),
        "subspace PV, greedy": recipes.subspace_pv(Greedy(size)),
        "subspace PV, greedy, T=8": recipes.subspace_pv(Greedy(size), inner=8),
        "subspace PV, uniform": recipes.subspace_pv(Uniform(size)),
        "subspace PV, proportional": recipes.subspace_pv(Proportional(size)),
        "subspace PV, gain": recipes.subspace_pv(Gain(size)),
        "subspace PV, gain, T=8": gain,
        "metric PV, diagonal": recipes.metric_pv(diagonal_metric(problem.curvature)),
        "continuous only": recipes.continuous_only(),
        "straight-through": recipes.ste(),
        "penalised straight-through": recipes.penalised_ste(0.1),
        "stochastic rounding, power": recipes.stochastic_rounding("power"),
        "stochastic rounding, linear": recipes.stochastic_rounding("linear"),
        "subspace PV + STE": recipes.subspace_pv_ste(Greedy(size)),
        "gain and kicks": Exploration(method=gain, rounds=30),
    }


def measure(
    name: str,
    method: Method | Exploration,
    problem: Problem,
    start: Point,
    scale: Scale,
    *,
    iterations: int,
    seed: int,
) -> Outcome:
    """Run one method from all starts, with a generator of its own."""
    began = time.perf_counter()
    run = method.run(problem, start, iterations=iterations, generator=np.random.default_rng(seed))
    return Outcome(name, run, scale, time.perf_counter() - began)


def row(outcomes: list[Outcome], **keys: Any) -> dict[str, Any]:
    """Return one row for the runs of one method on several problems."""
    final = np.concatenate([o.gaps()[-1] for o in outcomes])
    best = np.concatenate([o.gaps(best=True)[-1] for o in outcomes])
    early = [o.gaps()[min(10, len(o.gaps()) - 1)] for o in outcomes]  # after 5 iterations
    objective = np.concatenate([o.trajectory.objective[-1] for o in outcomes])
    iterations = np.concatenate([o.trajectory.iterations for o in outcomes])
    monotone = np.concatenate([o.trajectory.is_monotone() for o in outcomes])
    # Decreases relative to the same scale: P steps are the odd half steps, V steps the even ones.
    falls = [o.trajectory.decreases / (o.scale.top - o.scale.bottom) for o in outcomes]
    still = np.concatenate(
        [(o.trajectory.codes == o.trajectory.codes[0]).all((0, -1)) for o in outcomes]
    )
    return {
        **keys,
        "method": outcomes[0].name,
        "runs": len(final),
        "final_objective_mean": float(objective.mean()),
        "final_objective_median": float(np.median(objective)),
        "final_gap_mean": float(final.mean()),
        "final_gap_median": float(np.median(final)),
        "final_gap_quartiles": [float(q) for q in np.quantile(final, [0.25, 0.75])],
        "best_gap_mean": float(best.mean()),
        "early_gap_mean": float(np.mean(early)),
        "reach_share": float((best < 1e-8).mean()),
        "iterations_median": float(np.median(iterations)),
        "iterations_max": int(iterations.max()),
        "p_decrease_total": float(np.mean([f[0::2].sum(0).mean() for f in falls])),
        "v_decrease_total": float(np.mean([f[1::2].sum(0).mean() for f in falls])),
        "monotone_share": float(monotone.mean()),
        "codes_never_moved_share": float(still.mean()),
        "seconds": float(sum(o.seconds for o in outcomes)),
    }
