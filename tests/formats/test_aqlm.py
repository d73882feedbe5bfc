"""Files of AQLM: transformers and its kernels compute what we do, we read what they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra llm is not installed")

from exports import in_dtype, logits, tiny

import pvopt
from pvopt.formats import CheckpointError, load, save

_THEIRS = """
import sys, torch
from transformers import AutoModelForCausalLM
with torch.no_grad():
    for folder in sys.argv[1:]:
        model = AutoModelForCausalLM.from_pretrained(folder)
        torch.save(model(torch.arange(40)[None]).logits, f"{folder}/theirs.pt")
"""


@pytest.mark.parametrize("text", ["2x8g8", "1x4g2x4", "3x5g16", "vq:9g4"])
def test_what_is_written_is_read_back(tmp_path, text):
    model, weights = tiny(text)
    folder = save(tmp_path / "x", model, weights, format="aqlm")
    back = load(folder)
    assert back.weights.keys() == weights.keys()
    for name, rep in weights.items():
        assert torch.equal(back.weights[name].decode(), rep.decode())
    assert torch.equal(logits(back.model), logits(model))
    again = load(save(tmp_path / "y", back.model, back.weights, format="aqlm"))
    assert torch.equal(logits(again.model), logits(model))


def test_transformers_computes_the_same_logits(tmp_path):
    """In a process of its own: their kernel for 256 entries is wrong on several threads."""
    pytest.importorskip("aqlm", reason="the package aqlm is missing")
    ours = {}
    for text in ("2x8g8", "1x4g2x4"):
        # One layer, as their kernel is compiled for each.
        model, weights = tiny({"*.1.*down_proj": pvopt.parse_scheme(text)})
        folder = save(tmp_path / text, model, weights, format="aqlm")
        ours[str(folder)] = logits(model)
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _THEIRS, *ours]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for folder, expected in ours.items():
        # Their tables of 256 entries are summed in another order.
        theirs = torch.load(f"{folder}/theirs.pt")
        torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=3e-5)


def of_two_kinds() -> Any:
    one, other = map(pvopt.parse_scheme, ("2x4g8", "1x4g8"))
    return tiny({"*q_proj": one, "*k_proj": other})


def of_two_dtypes() -> Any:
    model, weights = tiny("2x4g8")
    return model, in_dtype(weights, torch.float16)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tiny("grid:2s"), "only additive codebooks can be stored"),
        (lambda: tiny("2x4g8/16"), "only one scale per row can be stored"),
        (lambda: tiny("had+2x4g8"), "its space Rotation"),
        (of_two_kinds, "all layers must have the same codebooks"),
        (of_two_dtypes, "its values are torch.float16 and the layer's weight torch.float32"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, make, reason):
    model, weights = make()
    with pytest.raises(CheckpointError, match=reason):
        save(tmp_path / "x", model, weights, format="aqlm")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_codebooks": 3}, r"codes must be torch.int8 of shape \[rows, columns, 3\]"),
        ({"nbits_per_codebook": 9}, "codes must be torch.int16"),
        ({"nbits_per_codebook": 5}, "codebooks must be torch.float32 of shape"),
        ({"in_group_size": 0}, "in_group_size must be"),
        ({"out_group_size": "1"}, "out_group_size must be"),
        ({"in_group_size": 16}, "codebooks must be torch.float32 of shape"),
        ({"quant_method": "x"}, "has none of the formats that can be read"),
    ],
)
def test_damaged_and_foreign_folders_are_refused(tmp_path, settings, reason):
    model, weights = tiny("2x4g8")
    folder = save(tmp_path / "x", model, weights, format="aqlm")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=reason):
        load(folder)
