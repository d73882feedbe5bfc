"""Folders that somebody made to harm: special files, links, code, sizes beyond all bounds."""

from __future__ import annotations

import json
import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pvopt
from pvopt.formats import (
    CheckpointError,
    load,
    load_representations,
    load_tokenizer,
    load_training_state,
    read_metadata,
    save,
    save_representations,
    storage_report,
)
from pvopt.formats.native.manifest import FileEntry, sealed
from pvopt.llm import load_model


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small language model with a tokenizer and a training state."""
    folder = tmp_path_factory.mktemp("original") / "x"
    source = load_model("tiny-llama")
    options = pvopt.FitOptions(iterations=0)
    weights = pvopt.quantize_(
        source.model, pvopt.VectorCodebook(bits=3, group_size=4), options=options
    )
    state = {"step": 3, "moment": torch.ones(3)}
    return save(folder, source.model, weights, tokenizer=source.tokenizer, training_state=state)


@pytest.fixture
def folder(original, tmp_path):
    """A copy that may be changed."""
    copy = tmp_path / "x"
    copy.mkdir()
    for file in original.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def reseal(folder: Path, change: Callable[[dict], None] = lambda content: None) -> None:
    """Give a changed folder the checksums of its content."""
    file = folder / "pvopt.json"
    content = json.loads(file.read_text())
    for name in content["files"]:
        if (folder / name).is_file():
            content["files"][name] = vars(FileEntry.of(folder / name))
    change(content)
    file.write_text(json.dumps(sealed(content)))


def edit(folder: Path, name: str, **changes: object) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **changes}))
    reseal(folder)


READS = {
    "model.safetensors": load,
    "pvopt.json": read_metadata,
    "config.json": load,
    "tokenizer_config.json": load_tokenizer,
    "tokenizer.json": load_tokenizer,
    "training_state.json": load_training_state,
    "training_state.safetensors": load_training_state,
}


def make_fifo(file: Path, elsewhere: Path) -> None:
    os.mkfifo(file)


def make_socket(file: Path, elsewhere: Path) -> None:
    here = Path.cwd()
    os.chdir(file.parent)  # the path of a socket is at most 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(file.name)
    finally:
        os.chdir(here)


def make_device(file: Path, elsewhere: Path) -> None:
    file.symlink_to("/dev/zero")


def make_folder(file: Path, elsewhere: Path) -> None:
    file.mkdir()


def make_link(file: Path, elsewhere: Path) -> None:
    elsewhere.rename(elsewhere.parent.parent / "secret")
    file.symlink_to("../secret")


KINDS = {
    make_fifo: "is a FIFO",
    make_socket: "is a socket",
    make_device: "is a device",
    make_folder: "is a folder",
    make_link: "is a link out of the folder",
}


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", READS)
def test_special_files_are_refused_without_being_opened(make, name, folder):
    aside = folder / "aside"
    (folder / name).rename(aside)
    make(folder / name, aside)
    with pytest.raises(CheckpointError, match=f"{name}: {KINDS[make]}"):
        READS[name](folder)


def test_links_within_the_folder_are_followed(folder):
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    assert len(load(folder).weights) == 14


def test_other_files_are_never_looked_at(folder):
    os.mkfifo(folder / "chat_template.jinja")
    (folder / "adapter_config.json").write_text("{")
    (folder / "added_tokens.json").symlink_to("/dev/zero")
    assert len(load(folder).weights) == 14
    assert load_tokenizer(folder).encode("Hi") == [72, 105]


@pytest.mark.parametrize("name", sorted(READS.keys() - {"pvopt.json"}))
def test_every_file_has_a_checksum(name, folder):
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: is damaged, its checksum"):
        READS[name](folder)


@pytest.mark.parametrize("name", ["../x.json", "/etc/passwd", "a/../../x", "C:\\x", "x\0y", ""])
def test_files_outside_of_the_folder_cannot_be_named(name, folder):
    reseal(folder, lambda c: c["files"].update({name: c["files"]["config.json"]}))
    with pytest.raises(CheckpointError, match=r"pvopt\.json: .*names a file outside"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "owner/repo--evil.Model"}}),
        ("config.json", {"_attn_implementation": "owner/kernel"}),
        ("config.json", {"attn_implementation": {"": "owner/kernel@main:run"}}),
        ("config.json", {"text_config": {"experts_implementation": "owner/kernel"}}),
        ("config.json", {"transformers_weights": "../other.safetensors"}),
        ("config.json", {"use_kernels": True}),
        ("generation_config.json", {"nested": [{"auto_map": "x"}]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
        ("tokenizer_config.json", {"tokenizer_file": "/etc/passwd"}),
        ("tokenizer_config.json", {"vocab_file": "../../vocab.json"}),
    ],
)
def test_nothing_names_code_kernels_or_other_files(name, changes, folder):
    edit(folder, name, **changes)
    read = load_tokenizer if name.startswith("tokenizer") else load
    with pytest.raises(CheckpointError, match=f"{name}: .* names (code|a kernel|a file)"):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 1 << 30}, r"lm_head.weight has shape \[256, 64\]|embed_tokens"),
        ({"hidden_size": 1 << 24, "num_attention_heads": 1 << 18}, "has shape"),
        ({"intermediate_size": 1 << 34}, "mlp.gate_proj.weight has shape"),
        ({"num_hidden_layers": 900}, "far more layers than there are weights"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, far more"),
        ({"num_hidden_layers": 3}, "holds no weights for model.layers.2"),
        ({"num_attention_heads": 0}, "describes no causal language model"),
        ({"hidden_size": "64"}, "describes no causal language model"),
        ({"hidden_size": -64}, "describes no causal language model"),
        ({"model_type": "unheard of"}, "describes no causal language model"),
        ({"model_type": None}, "describes no causal language model"),
    ],
)
def test_sizes_are_compared_before_anything_is_allocated(changes, message, folder):
    edit(folder, "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(shape=[1 << 62, 64]), "beyond all models"),
        (lambda e: e.update(shape=[1 << 20, 1 << 20]), r"codes.entries must have shape|cannot be"),
        (lambda e: e.update(shape=[64, -64]), "positive sizes"),
        (lambda e: e.update(shape=[64.0, 64]), "positive sizes"),
        (lambda e: e.update(shape=[True, 64]), "positive sizes"),
        (lambda e: e.update(shape=[]), "positive sizes"),
        (lambda e: e.update(dtype="int64"), "unknown dtype"),
        (lambda e: e["scheme"]["parametrization"].update(bits=16), "must have shape"),
        (lambda e: e["scheme"]["parametrization"].update(group_size=1 << 40), "group"),
        (lambda e: e["scheme"].update(space={"class": "Rotation", "block": 1 << 40}), "block"),
        (lambda e: e["scheme"].update(space={"class": "Padding", "rows": 1 << 50}), "rows|shape"),
    ],
)
def test_declared_sizes_are_bounded(change, message, folder):
    reseal(folder, lambda c: change(next(iter(c["weights"].values()))))
    tracemalloc.start()
    try:
        for read in (load, load_representations, storage_report):
            with pytest.raises(CheckpointError, match=message):
                read(folder)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_small_file_cannot_stand_for_a_huge_weight(tmp_path, monkeypatch):
    parametrization = pvopt.VectorCodebook(bits=1, group_size=1024)
    shape = (1 << 10, 1 << 14)
    rep = pvopt.Representation(
        parametrization,
        {name: stream.zeros() for name, stream in parametrization.streams(shape).items()},
        {name: torch.zeros(size) for name, size in parametrization.value_shapes(shape).items()},
        shape,
    )
    message = r"'w' of shape \[1024, 16384\] cannot be stored in \d+ bytes"
    with pytest.raises(CheckpointError, match=message):
        save_representations(tmp_path / "x", {"w": rep})
    with monkeypatch.context() as patched:
        patched.setattr("pvopt.formats.native.tensors._MAX_WEIGHTS_PER_BYTE", 1 << 20)
        save_representations(tmp_path / "x", {"w": rep})
    with pytest.raises(CheckpointError, match=message):
        load_representations(tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**6, "nested more than|truncated or not JSON"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested more than 100 levels"),
        ('{"a": 1e999}', "is too large"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": 1, "a": 2}', "occurs twice"),
        ('{"a": ' + "9" * 10_000 + "}", "truncated or not JSON"),
        ("\ud800", "truncated or not JSON"),
    ],
)
@pytest.mark.parametrize("name", ["pvopt.json", "training_state.json", "config.json"])
def test_json_is_bounded(name, text, message, folder):
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    if name == "config.json":  # others write infinite numbers
        message = f"{message}|describes no causal language model"
    if name != "pvopt.json":
        reseal(folder)
    with pytest.raises(CheckpointError, match=f"{name}: .*({message})"):
        READS[name](folder)


@pytest.mark.parametrize(
    ("stream", "value"), [("codes.entries", 255), ("codes.entries", 0b11011011)]
)
def test_codes_that_do_not_exist(stream, value, tmp_path):
    model = nn.Linear(64, 64, bias=False)
    folder = save(tmp_path / "x", model, pvopt.quantize_(model, pvopt.SharedValues(num_values=5)))
    tensors = load_file(folder / "model.safetensors")
    tensors[f"weight.{stream}"].fill_(value)
    save_file(tensors, folder / "model.safetensors")
    reseal(folder)
    for read in (lambda f: load(f, nn.Linear(64, 64, bias=False)), load_representations):
        with pytest.raises(CheckpointError, match=r"'weight' does not fit .* codes beyond 4"):
            read(folder)
