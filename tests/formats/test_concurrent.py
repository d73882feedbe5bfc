"""Writers and readers of one folder at the same time, and disks that refuse."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

import pvopt
from pvopt.formats import (
    CheckpointError,
    load,
    load_representations,
    load_training_state,
    read_metadata,
    save,
    storage_report,
)
from pvopt.formats.locks import locked
from pvopt.formats.native import manifest

CONTEXT = multiprocessing.get_context("fork")


def network(number: float) -> tuple[nn.Module, pvopt.QuantizedWeights]:
    model = nn.Linear(8, 4)
    nn.init.constant_(model.bias, number)
    nn.init.constant_(model.weight, number)
    return model, pvopt.quantize_(model, pvopt.SharedValues(num_values=2))


def write(folder: Path, number: int) -> None:
    model, weights = network(number)
    state = {"number": torch.full((10,), float(number))}
    save(folder, model, weights, metadata={"number": number}, training_state=state)


def read(folder: Path) -> int:
    """Return the number that a checkpoint is made of; all its parts must agree."""
    loaded = load(folder, nn.Linear(8, 4))
    number = loaded.metadata["number"]
    assert torch.equal(loaded.model.bias, torch.full((4,), float(number)))
    assert torch.equal(loaded.model.weight, torch.full((4, 8), float(number)))
    return number


READS = {
    "load": read,
    "load_training_state": lambda folder: int(load_training_state(folder)["number"][0]),
    "load_representations": lambda f: int(load_representations(f)["weight"].decode()[0, 0]),
    "read_metadata": lambda folder: read_metadata(folder)["number"],
    "storage_report": lambda folder: storage_report(folder).count,
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("moment", ["manifest", "first checksum"])
def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(
    name, moment, tmp_path, monkeypatch
):
    write(tmp_path / "x", 1)
    owner, method = {
        "manifest": (manifest, "read_json"),
        "first checksum": (manifest.Manifest, "verify"),
    }[moment]
    real = getattr(owner, method)
    numbers = iter([2, 3])

    def replacing(*args, **kwargs):
        found = real(*args, **kwargs)
        for number in numbers:  # twice: the first reading, and the second one
            monkeypatch.setattr(owner, method, real)
            write(tmp_path / "x", number)
            monkeypatch.setattr(owner, method, replacing)
            break
        return found

    monkeypatch.setattr(owner, method, replacing)
    found = READS[name](tmp_path / "x")
    assert found in ((32,) if name == "storage_report" else (1, 2, 3))


def test_the_gap_between_the_two_renames_is_not_seen(tmp_path, monkeypatch):
    write(tmp_path / "x", 1)
    real, found = os.rename, []

    def reading(source, target):
        real(source, target)
        found.append({name: one(tmp_path / "x") for name, one in READS.items()})

    monkeypatch.setattr(os, "rename", reading)
    write(tmp_path / "x", 2)
    expected = [dict.fromkeys(READS, 1) | {"storage_report": 32}, dict.fromkeys(READS, 2)]
    assert found == [expected[0], expected[1] | {"storage_report": 32}]


def _write_many(folder: Path, numbers: range, done) -> None:
    for number in numbers:
        write(folder, number)
    done.set()


def test_two_writers_and_a_reader(tmp_path):
    folder = tmp_path / "x"
    write(folder, 0)
    done = [CONTEXT.Event(), CONTEXT.Event()]
    writers = [
        CONTEXT.Process(target=_write_many, args=(folder, range(first, 12, 2), event), daemon=True)
        for first, event in enumerate(done)
    ]
    for writer in writers:
        writer.start()
    reads = 0
    while reads < 5 or not all(event.is_set() for event in done):
        assert 0 <= read(folder) < 12
        reads += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert read(folder) in (10, 11)
    assert {entry.name for entry in tmp_path.iterdir()} == {"x", ".x.lock"}


def _hold(lock: Path, held, release) -> None:
    with locked(lock, "a run"):
        held.set()
        release.wait()


def test_a_lock_keeps_other_processes_out_and_ends_with_its_own(tmp_path):
    held, release = CONTEXT.Event(), CONTEXT.Event()
    holder = CONTEXT.Process(target=_hold, args=(tmp_path / "l", held, release), daemon=True)
    holder.start()
    held.wait()
    with (
        pytest.raises(CheckpointError, match="l: a run is writing here"),
        locked(tmp_path / "l", "a run"),
    ):
        pass
    holder.kill()
    holder.join()
    with locked(tmp_path / "l", "a run"):
        pass


def test_a_lock_that_cannot_be_made_is_not_waited_for(tmp_path):
    with (
        pytest.raises(CheckpointError, match="l: cannot be locked"),
        locked(tmp_path / "missing" / "l", "a run", wait=600),
    ):
        pass


def test_a_second_writer_waits_for_the_first_one(tmp_path, monkeypatch):
    write(tmp_path / "x", 0)
    begun, order = threading.Event(), []
    real = manifest.Manifest.write

    def slow(self, folder):
        order.append("first")
        begun.set()
        while second.is_alive() and not order.count("waiting"):
            pass
        monkeypatch.setattr(manifest.Manifest, "write", real)
        real(self, folder)

    def follow():
        begun.wait()
        order.append("waiting")
        write(tmp_path / "x", 2)
        order.append("second")

    second = threading.Thread(target=follow)
    monkeypatch.setattr(manifest.Manifest, "write", slow)
    second.start()
    write(tmp_path / "x", 1)
    second.join()
    assert order == ["first", "waiting", "second"]
    assert read(tmp_path / "x") == 2


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["write_text", "mkdir", "touch", "fsync", "rename"])
def test_a_disk_that_refuses_leaves_the_old_checkpoint(call, error, tmp_path, monkeypatch):
    write(tmp_path / "x", 1)

    def refuse(*args, **kwargs):
        raise OSError(error, os.strerror(error))

    owner = os if call in ("fsync", "rename") else Path
    monkeypatch.setattr(owner, call, refuse)
    with pytest.raises(CheckpointError, match=f"x: cannot be written .*{os.strerror(error)}"):
        write(tmp_path / "x", 2)
    monkeypatch.undo()
    assert read(tmp_path / "x") == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {"x", ".x.lock"}


def test_a_disk_that_is_full_at_any_byte(tmp_path):
    resource = pytest.importorskip("resource")  # POSIX
    write(tmp_path / "x", 1)
    largest = max(file.stat().st_size for file in (tmp_path / "x").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1, 30, 60, 100, 500, largest - 1, largest):
        expected = pytest.raises(CheckpointError, match=r"cannot be written")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with expected if limit < largest else nullcontext():
                write(tmp_path / "x", 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        number = 1 if limit < largest else 2
        assert read(tmp_path / "x") == number
        assert load_training_state(tmp_path / "x")["number"][0] == number
        assert {entry.name for entry in tmp_path.iterdir()} == {"x", ".x.lock"}


def test_unreadable_files(tmp_path, monkeypatch):
    write(tmp_path / "x", 1)
    real = open

    def refuse(file, *args, **kwargs):
        if str(file).endswith((".json", ".safetensors")):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    for name in READS:
        with pytest.raises(CheckpointError, match=r"cannot be read .*Permission denied"):
            READS[name](tmp_path / "x")
