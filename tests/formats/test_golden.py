"""Checkpoints of released versions stay readable, bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file

import pvopt
from pvopt.formats.native import load, load_training_state, save

DATA = Path(__file__).parent.parent / "data"


def golden_model():
    file = Path(__file__).parent / "make_golden.py"
    spec = importlib.util.spec_from_file_location("make_golden", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Golden()


def test_version_1_is_readable():
    loaded = load(DATA / "checkpoint-v1", golden_model())
    dense = load_file(DATA / "checkpoint-v1-dense.safetensors")
    for name, tensor in loaded.model.state_dict().items():
        if name.split(".")[0] in ("additive", "vector") and name.endswith("weight"):
            # Sums of codebook entries may be rounded in another order some day.
            torch.testing.assert_close(tensor, dense[name])
        else:
            assert torch.equal(tensor, dense[name]), name
    assert loaded.metadata == {"made": "once"}
    assert loaded.weights["additive.weight"].parametrization == pvopt.AdditiveCodebooks(
        num_codebooks=2,
        bits=3,
        in_group=4,
        out_group=2,
        scale_group=8,
        beam_size=5,
        refine_iterations=8,
    )
    assert [rep.codes.dtype for rep in loaded.weights.values()] == [torch.uint8] * 4
    assert load_training_state(DATA / "checkpoint-v1")["step"] == 5


def test_version_1_is_still_what_is_written(tmp_path):
    loaded = load(DATA / "checkpoint-v1", golden_model())
    save(tmp_path / "x", loaded.model, loaded.weights, metadata=loaded.metadata)
    before = load_file(DATA / "checkpoint-v1" / "model.safetensors")
    after = load_file(tmp_path / "x" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name


def test_the_golden_files_are_small():
    assert sum(file.stat().st_size for file in DATA.rglob("checkpoint-v1*/*")) < 20_000
