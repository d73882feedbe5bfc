"""Whatever is done to the files of a folder: it is read as it was, or refused in one way.

A few hundred mutations by default; ``PVOPT_MUTATIONS=10000`` for a night. Each works on a folder of
its own, in a process of its own with bounds on memory and time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
MEMORY = 1 << 30  # beyond what the process has when it begins
SECONDS = 20


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


# What is done to the bytes of a file.


@st.composite
def edits(draw) -> Callable[[bytes], bytes]:
    place, length = draw(st.floats(0, 1)), draw(st.integers(0, 40))
    junk = draw(st.binary(max_size=20))

    def edit(content: bytes) -> bytes:
        first = int(place * len(content))
        return {
            "cut": content[:first],
            "flip": content[:first]
            + bytes(b ^ (1 << length % 8) for b in content[first : first + 1])
            + content[first + 1 :],
            "drop": content[:first] + content[first + length :],
            "put": content[:first] + junk + content[first:],
            "overwrite": content[:first] + junk + content[first + len(junk) :],
            "repeat": content[:first] + content[first : first + length] * 3 + content[first:],
            "grow": content + junk * 1000,
        }[kind]

    kind = draw(st.sampled_from(["cut", "flip", "drop", "put", "overwrite", "repeat", "grow"]))
    return edit


# What is done to JSON that has the right checksum afterwards.

ODD = [None, True, -1, 0, 3, 2**70, 1e300, "x", "../x", "os.system", [], [[]], {}, {"class": "x"}]


@st.composite
def replacements(draw) -> Callable[[object], object]:
    odd = draw(st.sampled_from(ODD))
    choices = draw(st.lists(st.integers(0, 1 << 30), min_size=12, max_size=12))
    delete = draw(st.integers(0, 5)) == 0

    def replace(content: object, depth: int = 0) -> object:
        if isinstance(content, list):
            items: list = list(enumerate(content))
        elif isinstance(content, dict):
            items = list(content.items())
        else:
            return odd
        if not items or (depth > 1 and choices[depth] % 7 == 0) or depth == len(choices) - 1:
            return odd
        key = items[choices[depth] % len(items)][0]
        if delete and choices[depth] % 3 == 0:
            kept = [(k, v) for k, v in items if k != key]
        else:
            kept = [(k, replace(v, depth + 1) if k == key else v) for k, v in items]
        return dict(kept) if isinstance(content, dict) else [v for _, v in kept]

    return replace


@contextmanager
def bounded() -> Iterator[None]:
    """Bound the memory and the time of this process."""

    def late(*_: object) -> None:
        raise TimeoutError("the reader hangs")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


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
        max_examples=count // 2,
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
