"""Representations without a model: compact, checked, crash-safe."""

from __future__ import annotations

import json

import pytest
import torch

import pvopt
from pvopt.formats import (
    CheckpointError,
    load_representations,
    read_metadata,
    save_representations,
    storage_report,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(rep: pvopt.Representation, other: pvopt.Representation) -> None:
    assert other.scheme == rep.scheme
    assert other.shape == rep.shape
    for (name, mine), (key, theirs) in zip(rep.tensors(), other.tensors(), strict=True):
        assert name == key
        assert mine.dtype == theirs.dtype, name
        assert torch.equal(mine, theirs), name


def test_there_and_back_with_metadata(tmp_path):
    schemes = {
        "b": pvopt.Scheme(pvopt.Ternary(group_size=8), pvopt.Permutation()),
        "a": pvopt.UniformGrid(bits=3),
    }
    found = {
        name: pvopt.parametrizations.as_scheme(s).fit(draw(6, 16)) for name, s in schemes.items()
    }
    found["a"] = found["a"].to(dtype=torch.bfloat16)
    folder = save_representations(tmp_path / "x", found, metadata={"errors": {"a": 0.5}})
    loaded = load_representations(folder)
    assert list(loaded) == ["b", "a"]
    for name, rep in found.items():
        assert_same(rep, loaded[name])
    assert read_metadata(folder) == {"errors": {"a": 0.5}}
    report = storage_report(folder)
    assert (report.other_count, report.other_bytes) == (0, 0)
    assert report.weights[0].codes == {"levels": 20, "space.order": 8}


def test_members_of_a_stack_are_stored_without_the_stack(tmp_path):
    reps = [pvopt.UniformGrid(bits=4, group_size=64).fit(draw(64, 256, seed=i)) for i in range(8)]
    alone = save_representations(tmp_path / "alone", {"w": reps[3]})
    stack = pvopt.Representation.stack(reps)
    assert reps[3].values["scales"].untyped_storage().nbytes() == 8 * 64 * 4 * 4
    member = save_representations(tmp_path / "member", {"w": reps[3]})
    for file in ("model.safetensors", "pvopt.json"):
        assert (member / file).read_bytes() == (alone / file).read_bytes()
    size = (member / "model.safetensors").stat().st_size
    assert size < 64 * 256 // 2 + 2 * 64 * 4 * 4 + 1000
    loaded = load_representations(member)["w"]
    assert_same(reps[3], loaded)
    for _, tensor in loaded.tensors():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    with pytest.raises(
        CheckpointError, match="'w' must be the representation of one weight, got 8"
    ):
        save_representations(tmp_path / "stack", {"w": stack})


def test_codes_that_do_not_exist_are_not_stored(tmp_path):
    rep = pvopt.Ternary().fit(draw(2, 5))
    folder = save_representations(tmp_path / "x", {"w": rep})
    rep.codes["levels"][0, 0, 0] = 3
    with pytest.raises(CheckpointError, match=r"'w' cannot be stored: codes of 'levels'.*0\.\.2"):
        save_representations(folder, {"w": rep})
    assert int(load_representations(folder)["w"].codes["levels"].max()) == 2


def test_damage_is_noticed(tmp_path):
    folder = save_representations(tmp_path / "x", {"w": pvopt.Binary().fit(draw(4, 8))})
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="its checksum differs"):
        load_representations(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is missing"):
        load_representations(folder)
    (folder / "pvopt.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(CheckpointError, match="not a pvopt checkpoint"):
        load_representations(folder)
