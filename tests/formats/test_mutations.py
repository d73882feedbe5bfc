"""Whatever is done to the files of a folder: it is read as it was, or refused in one way.

A few hundred mutations by default; ``PVOPT_MUTATIONS=10000`` for a night. Each works on a folder of
its own, in a process of its own with bounds on memory and time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutating import bounded, edits, replacements
from torch import nn

import pvopt
from pvopt.calibration.finished_blocks import FinishedBlocks
from pvopt.formats import (
    CheckpointError,
    load,
    load_representations,
    load_training_state,
    read_metadata,
    save,
    storage_report,
)
from pvopt.formats.native.manifest import FileEntry, sealed

MUTATIONS = int(os.environ.get("PVOPT_MUTATIONS", "300"))
SHAPE = (6, 16)
SCHEMES = {
    "0": "grid:3g8",
    "1": "perm+vq:3g4",
    "2": "had+2x3g4",
    "3": "ternary",
}


def network() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(SHAPE[1], SHAPE[0]) for _ in range(5)))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = network()
    spec = {name: pvopt.parse_scheme(text) for name, text in SCHEMES.items()}
    weights = pvopt.quantize_(model, spec, options=pvopt.FitOptions(iterations=1))
    state = {
        "step": 3,
        "optimizer": {"state": {0: {"step": torch.ones(()), "x": [1, (2.5, None)]}}},
    }
    folder = tmp_path_factory.mktemp("original") / "x"
    metadata = {"text": "a", "numbers": [1, 2.5, None]}
    return save(folder, model, weights, metadata=metadata, training_state=state)


def everything(folder: Path) -> dict[str, object]:
    """Read all that can be read."""
    loaded = load(folder, network())
    with torch.no_grad():
        outputs = loaded.model[0](torch.ones(2, SHAPE[1]))
    return {
        "model": {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()},
        "outputs": outputs,
        "representations": {n: r.decode() for n, r in load_representations(folder).items()},
        "state": load_training_state(folder),
        "metadata": read_metadata(folder),
        "bits": storage_report(folder).bits_per_weight,
    }


def equal(mine: object, theirs: object) -> bool:
    if isinstance(mine, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and torch.equal(mine, theirs)
    if isinstance(mine, dict):
        same = isinstance(theirs, dict) and list(mine) == list(theirs)
        return same and all(equal(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list | tuple):
        same = type(mine) is type(theirs) and len(mine) == len(theirs)
        return same and all(map(equal, mine, theirs))
    return mine == theirs and type(mine) is type(theirs)


def try_all(original: Path, scratch: Path, count: int) -> None:
    """Mutate and read in many ways; runs in a process of its own, which may be killed."""
    expected = everything(original)
    names = sorted(file.name for file in original.iterdir())
    contents = {name: (original / name).read_bytes() for name in names}

    def check() -> None:
        try:
            with bounded():
                found = everything(scratch)
        except CheckpointError as error:
            message = str(error)
        else:
            message = str(scratch)
            assert equal(found, expected) or resealed
        assert str(scratch) in message, f"it names no file: {message}"

    resealed = False

    def write(changed: dict[str, bytes]) -> None:
        for name in names:
            (scratch / name).write_bytes(changed.get(name, contents[name]))

    options = settings(
        max_examples=count // 3,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )

    @options
    @given(st.sampled_from(names), edits())
    def damaged(name: str, edit: Callable[[bytes], bytes]) -> None:
        write({name: edit(contents[name])})
        check()

    @options
    @given(st.sampled_from([n for n in names if n.endswith(".json")]), replacements(), edits())
    def tampered(name: str, replace: Callable[[object], object], edit) -> None:
        content = json.loads(contents[name])
        if name != "pvopt.json" or not isinstance(replaced := replace(content), dict):
            # Another file, under the right checksum.
            if name == "pvopt.json":
                name = "model.safetensors"
                changed = edit(contents[name])
            else:
                changed = json.dumps(replace(content)).encode()
            write({name: changed})
            replaced = json.loads(contents["pvopt.json"])
            replaced["files"][name] = vars(FileEntry.of(scratch / name))
        else:
            write({})
        (scratch / "pvopt.json").write_text(json.dumps(sealed(replaced)))
        check()

    damaged()
    resealed = True  # what was written on purpose may be read, but never crash
    tampered()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="bounds memory as Linux does")
def test_any_mutation_is_read_as_it_was_or_refused(original, tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=_reporting, args=(original, tmp_path, MUTATIONS)
    )
    process.start()
    process.join()
    report = tmp_path.parent / f"{tmp_path.name}.report"
    assert process.exitcode == 0, report.read_text() if report.exists() else "it was killed"


def _reporting(original: Path, scratch: Path, count: int) -> None:
    import traceback

    torch.set_num_threads(1)
    try:
        try_all(original, scratch, count)
    except BaseException:
        (scratch.parent / f"{scratch.name}.report").write_text(traceback.format_exc()[-6000:])
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("change", ["scheme", "shape", "missing", "errors", "codes"])
def test_a_work_folder_that_was_tampered_with(change, tmp_path):
    blocks = FinishedBlocks(tmp_path, {"seed": 0})
    scheme = pvopt.parse_scheme("vq:3g4")
    rep = scheme.fit(torch.randn(8, 16))
    blocks.save("b", {"w": rep}, {"w": 0.0})
    wanted = {"w": (scheme, (8, 16))}
    assert torch.equal(blocks.load("b", wanted)[0]["w"].decode(), rep.decode())
    if change == "scheme":
        wanted = {"w": (pvopt.parse_scheme("vq:2g4"), (8, 16))}
    elif change == "shape":
        wanted = {"w": (scheme, (16, 8))}
    elif change == "missing":
        wanted["v"] = wanted["w"]
    elif change == "errors":
        content = json.loads((tmp_path / "b" / "pvopt.json").read_text())
        content["metadata"] = {"errors": {"w": None}}
        (tmp_path / "b" / "pvopt.json").write_text(json.dumps(sealed(content)))
    else:
        (tmp_path / "b" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"delete .*b to calibrate the block again"):
        blocks.load("b", wanted)
