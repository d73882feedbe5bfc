"""Checkpoints of released versions stay readable, bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file

import pvopt
from pvopt.formats import (
    load,
    load_representations,
    load_training_state,
    read_metadata,
    save,
)
from pvopt.spaces.contract import SPACES

NEWER = {"AffineGrid", "NestedGrid", "ZeroRow"}  # than the files
DATA = Path(__file__).parent.parent / "data"
FOLDER = DATA / "checkpoint-v3"


def golden_model():
    file = Path(__file__).parent / "make_golden.py"
    spec = importlib.util.spec_from_file_location("make_golden", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Golden(name.split(".")[1] for name in load_representations(FOLDER))


def test_version_3_is_readable():
    loaded = load(FOLDER, golden_model())
    dense = load_file(f"{FOLDER}-dense.safetensors")
    exact = (pvopt.UniformGrid, pvopt.Binary, pvopt.Ternary, pvopt.SharedValues, pvopt.SparseNM)
    for name, tensor in loaded.model.state_dict().items():
        rep = loaded.weights.get(name)
        if rep is None or (isinstance(rep.parametrization, exact) and rep.space.trivial):
            assert torch.equal(tensor, dense[name]), name
        else:
            # Sums may be rounded in another order some day.
            torch.testing.assert_close(tensor, dense[name])
    assert load_training_state(FOLDER)["step"] == 5


def test_settings_are_those_that_were_written():
    names = read_metadata(FOLDER)["schemes"]
    found = load_representations(FOLDER)
    assert {name: rep.scheme.name for name, rep in found.items()} == names
    assert {name: pvopt.parse_scheme(text) for name, text in names.items()} == {
        name: rep.scheme for name, rep in found.items()
    }


def test_version_3_is_still_what_is_written(tmp_path):
    loaded = load(FOLDER, golden_model())
    save(tmp_path / "x", loaded.model, loaded.weights, metadata=loaded.metadata)
    before = load_file(FOLDER / "model.safetensors")
    after = load_file(tmp_path / "x" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name


def test_the_golden_files_have_every_parametrization_and_space():
    found = load_representations(FOLDER).values()
    library = {name for name in pvopt.PARAMETRIZATIONS if hasattr(pvopt, name)}
    assert {type(rep.parametrization).__name__ for rep in found} == library - NEWER
    library = {name for name in SPACES if hasattr(pvopt, name)}
    assert {type(rep.space).__name__ for rep in found} == library - NEWER


def test_the_golden_files_are_small():
    assert sum(file.stat().st_size for file in DATA.rglob("checkpoint-v3*/*")) < 50_000
