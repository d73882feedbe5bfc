"""How tests/data/checkpoint-v1 was made; only for the day the format gets a new version."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import pvopt
from pvopt.formats.native import save

FOLDER = Path(__file__).parent.parent / "data" / "checkpoint-v1"


class Golden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.additive = nn.Linear(16, 8)
        self.vector = nn.Linear(16, 4, bias=False, dtype=torch.bfloat16)
        self.grid = nn.Linear(16, 4)
        self.shared = nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(4)
        self.tied = nn.Linear(16, 4, bias=False)
        self.tied.weight = self.grid.weight


def main() -> None:
    torch.manual_seed(20)
    model = Golden()
    spec = {
        "additive": pvopt.AdditiveCodebooks(
            num_codebooks=2, bits=3, in_group=4, out_group=2, scale_group=8, refine_iterations=8
        ),
        "vector": pvopt.VectorCodebook(bits=5, group_size=2),
        "grid": pvopt.UniformGrid(bits=3, group_size=8),
        "shared": pvopt.SharedValues(num_values=3),
    }
    weights = pvopt.quantize_(model, spec)
    state = {"step": 5, "moment": torch.arange(3.0)}
    save(FOLDER, model, weights, metadata={"made": "once"}, training_state=state)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(dense, str(FOLDER.parent / "checkpoint-v1-dense.safetensors"))


if __name__ == "__main__":
    main()
