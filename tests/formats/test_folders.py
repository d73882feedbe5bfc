from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch import nn

import pvopt
from pvopt.formats import CheckpointError, load, save

STEP = "step"


class Killed(BaseException):
    """Stands for the end of the process: nobody cleans up after it."""


def write(folder, number):
    model = nn.Linear(8, 4)
    nn.init.constant_(model.bias, number)
    save(folder, model, pvopt.quantize_(model, pvopt.UniformGrid(bits=2)), metadata={STEP: number})


def read(folder):
    loaded = load(folder, nn.Linear(8, 4))
    assert torch.equal(loaded.model.bias, torch.full((4,), float(loaded.metadata[STEP])))
    return loaded.metadata[STEP]


def left_in(folder):
    """Return what is in a folder beside locks, which stay."""
    return [name for name in os.listdir(folder) if not name.endswith(".lock")]


def points(folder, monkeypatch):
    """Count the calls a save makes that change the disk or wait for it."""
    calls = []
    for module, name in ((os, "rename"), (os, "fsync"), (shutil, "rmtree")):
        real = getattr(module, name)

        def counting(*args, _real=real, _name=name, **kwargs):
            calls.append(_name)
            return _real(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)
    write(folder, 0)
    monkeypatch.undo()
    return calls


def kill_at(number, monkeypatch):
    """Let the process die at a call: that one and all later ones do nothing any more."""
    count = 0
    for module, name in ((os, "rename"), (os, "fsync"), (shutil, "rmtree")):
        real = getattr(module, name)

        def dying(*args, _real=real, **kwargs):
            nonlocal count
            count += 1
            if count > number:
                raise Killed
            return _real(*args, **kwargs)

        monkeypatch.setattr(module, name, dying)


def test_killed_at_any_point_a_checkpoint_is_left_and_the_next_save_works(tmp_path, monkeypatch):
    folder = tmp_path / "x"
    write(folder, 0)
    calls = points(folder, monkeypatch)
    assert calls.count("rename") == 2
    assert calls[-1] == "rmtree"
    found = []
    for number in range(len(calls)):
        write(folder, 1)
        kill_at(number, monkeypatch)
        with pytest.raises(Killed):
            write(folder, 2)
        monkeypatch.undo()
        found.append(read(folder))
        write(folder, 3)
        assert read(folder) == 3
        assert left_in(tmp_path) == ["x"]
    # The old one until the new one has its name, the new one from then on.
    renames = [i for i, name in enumerate(calls) if name == "rename"]
    assert found == [1] * (renames[1] + 1) + [2] * (len(calls) - renames[1] - 1)


def test_the_new_files_are_on_the_disk_before_the_old_ones_move(tmp_path, monkeypatch):
    calls = points(tmp_path / "x", monkeypatch)  # nothing there before
    assert calls == ["fsync"] * (len(calls) - 2) + ["rename", "fsync"]
    # model.safetensors, pvopt.json, their folder, its parent; the parent again after the rename
    assert len(calls) == 6


def test_failing_rename_puts_the_old_one_back(tmp_path, monkeypatch):
    folder = tmp_path / "x"
    write(folder, 1)
    real, count = os.rename, 0

    def failing(source, target):
        nonlocal count
        count += 1
        if count == 2:
            raise OSError("no space")
        real(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(CheckpointError, match=r"x: cannot be written \(no space\)"):
        write(folder, 2)
    monkeypatch.undo()
    assert left_in(tmp_path) == ["x"]
    assert read(folder) == 1


def test_relative_paths_links_and_empty_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("x", 1)
    assert read("x") == read(tmp_path / "x") == 1
    os.symlink("x", "link")
    write("link", 2)
    assert os.path.islink("link")
    assert read("x") == 2
    os.mkdir("empty")
    write("empty", 3)
    assert read("empty") == 3


def test_what_is_no_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("thesis", "file"):
        with pytest.raises(CheckpointError, match="exists and holds something else"):
            write(tmp_path / name, 1)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "precious"
    for name in ("file", "nothing"):
        with pytest.raises(CheckpointError, match=f"{name}: must be a checkpoint folder"):
            read(tmp_path / name)
