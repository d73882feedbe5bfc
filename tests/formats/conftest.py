from __future__ import annotations

import pytest
import torch
from torch import nn

import pvopt

SPEC = {
    "0": pvopt.AdditiveCodebooks(num_codebooks=2, bits=3, in_group=2, out_group=2),
    "2": pvopt.Scheme(pvopt.UniformGrid(bits=3, group_size=4), pvopt.Permutation()),
    "3": pvopt.VectorCodebook(bits=2, group_size=4, scale_group=8),
    "4": pvopt.SharedValues(num_values=5),
    "6": pvopt.VectorCodebook(bits=9, group_size=1),  # codes wider than a byte
}


class Network(nn.Module):
    """Several parametrizations, a space, tied weights, views, buffers, several dtypes."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 8, dtype=dtype),
            nn.ReLU(),
            nn.Linear(8, 8, dtype=dtype),
            nn.Linear(8, 8, dtype=dtype),
            nn.Linear(8, 8, dtype=dtype),
            nn.BatchNorm1d(8),
            nn.Linear(8, 8, dtype=dtype),
            nn.Linear(8, 3, dtype=torch.float64),
        )
        self.tied_to_quantized = nn.Linear(8, 8, dtype=dtype)
        self.tied_to_quantized.weight = self.layers[2].weight
        self.tied_to_other = nn.Linear(8, 3, dtype=torch.float64)
        self.tied_to_other.weight = self.layers[7].weight
        whole = torch.randn(4, 4)
        self.register_buffer("view", whole[:2])
        self.register_buffer("other_view", whole[1:3])
        self.register_buffer("transposed", whole.t())
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def network(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Network(request.param)
    spec = {f"layers.{number}": parametrization for number, parametrization in SPEC.items()}
    return model, pvopt.quantize_(model, spec)


@pytest.fixture
def new_network():
    return Network
