"""What layers are given: by a start that keeps it, and in plain runs of a model."""

from __future__ import annotations

import torch

from pvopt import Row
from pvopt.starts import Start


class Recording(Start):
    """The plain fit; keeps ``weights`` and X'X (``hessians``) of every layer that was started."""

    needs_metric = Row

    def __init__(self):
        self.weights, self.hessians = [], []

    def _start(self, weight, parametrization, metric, generator):
        self.weights.append(weight.detach().clone())
        self.hessians.append(metric.hessian)
        return parametrization.fit(weight, generator=generator)


def inputs_of(model, names, tokens):
    """Return the inputs of linear layers in a plain run of the model, in float64."""
    seen = {name: [] for name in names}

    def hook(name):
        return lambda module, args: seen[name].append(args[0].flatten(0, -2).double())

    handles = [
        model.get_submodule(n.removesuffix(".weight")).register_forward_pre_hook(hook(n))
        for n in names
    ]
    with torch.no_grad():
        for row in tokens:
            model(row[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}
