"""How tests/data/checkpoint-v3 was made; only for the day the format gets a new version.

``python tests/formats/make_golden.py``
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import pvopt
from pvopt.formats import save

FOLDER = Path(__file__).parent.parent / "data" / "checkpoint-v3"
SHAPE = (6, 16)


class Golden(nn.Module):
    """A linear layer for each scheme, one of them in bfloat16, one tied, and other weights."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        rows, columns = SHAPE
        self.layers = nn.ModuleDict({n: nn.Linear(columns, rows, bias=False) for n in names})
        self.layers["binary"].to(torch.bfloat16)
        self.norm = nn.BatchNorm1d(4)
        self.tied = nn.Linear(columns, rows)
        self.tied.weight = self.layers["grid"].weight


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from schemes import PARAMETRIZATIONS, SPACES

    torch.manual_seed(20)
    # Every parametrization and every space, not every pair of them.
    schemes = {
        name: pvopt.Scheme(parametrization, space)
        for (name, parametrization), space in zip(
            PARAMETRIZATIONS.items(), itertools.cycle(SPACES.values())
        )
    }
    model = Golden(schemes)
    weights = pvopt.quantize_(model, {f"layers.{name}": s for name, s in schemes.items()})
    narrow = {n: r.to(dtype=model.get_parameter(n).dtype) for n, r in weights.items()}
    weights = pvopt.QuantizedWeights(model, narrow)
    weights.write_()
    metadata = {"schemes": {name: rep.scheme.name for name, rep in weights.items()}}
    state = {"step": 5, "moment": torch.arange(3.0)}
    save(FOLDER, model, weights, metadata=metadata, training_state=state)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(dense, str(FOLDER.parent / f"{FOLDER.name}-dense.safetensors"))


if __name__ == "__main__":
    main()
