"""The benchmark of starts against references: its quick variant, and the references themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the language-model extra is not installed")

from benchmarks.starts.__main__ import CASES, main
from benchmarks.starts.references import greedy_obs, reference_gptq, sparse_gpt
from pvopt import parse_scheme
from pvopt.starts import parse_start


def test_quick_run_compares_layers_of_a_tiny_model(tmp_path, capsys):
    file = tmp_path / "report.json"
    assert main(["--quick", "--only", "2:4", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert [row["reference"] for row in report["rows"]] == ["SparseGPT"] * 2 + [
        "SparseGPT, joint"
    ] * 2
    assert all(0 < row["ratio"] < 1.1 for row in report["rows"])
    assert len(report["checks"]) == 2
    assert "iterative-obs" in capsys.readouterr().out


def test_every_case_can_be_parsed():
    for scheme, start, *_ in CASES:
        assert parse_scheme(scheme).name == scheme
        assert parse_start(start).name == start


def problem():
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 8, generator=draws) @ torch.randn(8, 16, generator=draws)
    inputs = (inputs + 0.5 * torch.randn(60, 16, generator=draws)).double()
    return torch.randn(5, 16, generator=draws).double(), inputs.T @ inputs


@pytest.mark.parametrize("order", [False, True])
def test_reference_gptq_passes_errors_on(order):
    """Of many bits it changes nothing, of two it is better than rounding alone."""
    weight, hessian = problem()
    fine = reference_gptq(weight, hessian, bits=8, group=8, order=order, moving=order)
    assert float((fine - weight).abs().max()) < 0.1
    coarse = reference_gptq(weight, hessian, bits=2, group=8, order=order)
    alone = reference_gptq(weight, torch.eye(16), bits=2, group=8)
    errors = [float(((q - weight) @ hessian * (q - weight)).sum()) for q in (coarse, alone)]
    assert errors[0] < errors[1]
    groups = coarse.view(5, 2, 8)
    assert max(len(np.unique(group.round(decimals=6))) for row in groups for group in row) <= 4


def test_sparse_references_keep_what_they_should():
    weight, hessian = problem()
    half = sparse_gpt(weight, hessian, block=8)
    assert int((half != 0).sum()) == 40
    pairs = sparse_gpt(weight, hessian, pattern=(2, 4), bits=4, group=8)
    assert int((pairs.view(5, 4, 4) != 0).sum(2).max()) <= 2
    best = greedy_obs(weight, hessian)
    assert int((best != 0).sum()) == 40
    errors = [float(((q - weight) @ hessian * (q - weight)).sum()) for q in (best, half)]
    assert errors[0] < errors[1]
