from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from schemes import SCHEMES, SHAPE, representation
from torch import nn

import pvopt
from pvopt.formats import (
    CheckpointError,
    load,
    load_representations,
    load_tokenizer,
    load_training_state,
    save,
    storage_report,
)
from pvopt.formats.native.manifest import FileEntry, sealed
from pvopt.llm import load_model

STATE_FILES = ["training_state.safetensors", "training_state.json"]


def assert_same(model, weights, loaded):
    assert list(loaded.weights) == list(weights)
    for name, rep in weights.items():
        other = loaded.weights[name]
        assert other.scheme == rep.scheme
        for (key, mine), (_, theirs) in zip(rep.tensors(), other.tensors(), strict=True):
            assert mine.dtype == theirs.dtype, (name, key)
            assert torch.equal(mine, theirs), (name, key)
    state = loaded.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name


def edit(folder, change):
    file = folder / "pvopt.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(sealed(content)))


def scheme(content):
    return content["weights"]["0.weight"]["scheme"]


def parametrization(content):
    return scheme(content)["parametrization"]


@pytest.fixture
def saved(tmp_path):
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    weights = pvopt.quantize_(model, {"0": pvopt.UniformGrid(bits=2)})
    folder = tmp_path / "saved"
    state = {"step": 7, "moments": torch.arange(50.0)}
    save(folder, model, weights, training_state=state, metadata={"a": [1, None, "x"]})
    return folder


def fresh():
    return nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))


def test_everything_is_kept(network, new_network, tmp_path):
    model, weights = network
    folder = save(tmp_path / "a" / "b", model, weights)
    dtype = next(model.parameters()).dtype
    loaded = load(folder, new_network(dtype))
    assert_same(model, weights, loaded)
    assert loaded.model.tied_to_quantized.weight is loaded.model.layers[2].weight
    assert loaded.model.view.is_contiguous()


def test_no_dense_copy_and_packed_sizes(network, tmp_path):
    model, weights = network
    file = save(tmp_path / "x", model, weights) / "model.safetensors"
    with safe_open(str(file), "pt") as stored:
        names = set(stored.keys())
        for name, rep in weights.items():
            assert name not in names
            for key, stream in rep.streams.items():
                codes = stored.get_tensor(f"{name}.codes.{key}")
                assert codes.dtype == torch.uint8
                assert codes.numel() == math.ceil(stream.stored_bits / 8)
    assert "tied_to_quantized.weight" not in names
    assert "scratch" not in names
    assert file.stat().st_mode & 0o777 == (file.parent / "pvopt.json").stat().st_mode & 0o777


def test_values_do_not_hang_on_the_file(saved):
    first = load(saved, fresh())
    before = [value.clone() for value in first.weights["0.weight"].values.values()]
    (saved / "model.safetensors").write_bytes(b"\xff" * 10_000)
    for kept, value in zip(before, first.weights["0.weight"].values.values(), strict=True):
        assert torch.equal(kept, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_language_model_is_rebuilt_from_the_folder_alone(tmp_path, dtype):
    source = load_model("tiny-llama", dtype=dtype)
    weights = pvopt.quantize_(
        source.model,
        pvopt.AdditiveCodebooks(num_codebooks=2, bits=4, in_group=8),
        options=pvopt.FitOptions(iterations=0),
    )
    save(tmp_path / "x", source.model, weights, tokenizer=source.tokenizer)
    before = torch.get_rng_state()
    loaded = load(tmp_path / "x")
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(source.model, weights, loaded)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, source.model(ids).logits)
    assert not loaded.model.training
    assert load_tokenizer(tmp_path / "x").encode("Hi") == [72, 105]


def test_the_given_model_keeps_its_dtypes(network, new_network, tmp_path):
    model, weights = network
    target = new_network(torch.float64)
    loaded = load(save(tmp_path / "x", model, weights), target)
    assert loaded.model is target
    assert target.layers[0].weight.dtype == torch.float64
    assert torch.equal(target.layers[0].weight, weights["layers.0.weight"].decode().double())


def test_metadata_and_training_state(saved):
    assert load(saved, fresh()).metadata == {"a": [1, None, "x"]}
    state = load_training_state(saved)
    assert state["step"] == 7
    assert torch.equal(state["moments"], torch.arange(50.0))


@pytest.mark.parametrize("metadata", [{"x": torch.zeros(1)}, {"x": math.nan}])
def test_metadata_that_are_no_json_are_refused_and_nothing_changes(saved, metadata):
    loaded = load(saved, fresh())
    with pytest.raises(CheckpointError, match="metadata cannot be written"):
        save(saved, loaded.model, loaded.weights, metadata=metadata)
    assert load(saved, fresh()).metadata == {"a": [1, None, "x"]}
    assert {path.name for path in saved.parent.iterdir()} == {"saved", ".saved.lock"}


@pytest.mark.parametrize("position", [0, 4, 8, 20, 30, -40, -9, -2])
@pytest.mark.parametrize("name", ["model.safetensors", "pvopt.json", *STATE_FILES])
def test_truncation_is_noticed_and_the_model_unchanged(saved, name, position):
    file = saved / name
    content = file.read_bytes()
    file.write_bytes(content[: min(position, len(content) - 1)])
    target = fresh()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    read = load_training_state if name in STATE_FILES else lambda f: load(f, target)
    with pytest.raises(CheckpointError, match=f"{name}: is truncated"):
        read(saved)
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["model.safetensors", *STATE_FILES])
def test_a_changed_bit_and_a_longer_file_are_noticed(saved, name):
    content = bytearray((saved / name).read_bytes())
    content[-3] ^= 4
    (saved / name).write_bytes(content)
    read = load_training_state if name in STATE_FILES else lambda f: load(f, fresh())
    with pytest.raises(CheckpointError, match=f"{name}: is damaged, its checksum"):
        read(saved)
    (saved / name).write_bytes(content + b"x")
    with pytest.raises(CheckpointError, match=f"{name}: is too long"):
        read(saved)
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: is missing"):
        read(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a pvopt checkpoint"),
        ('{"format": "other", "version": 1}', "is not a pvopt checkpoint"),
        ('{"architectures": ["LlamaForCausalLM"]}', "is not a pvopt checkpoint"),
        ("\x00\x01", "is truncated or not JSON"),
        ('{"format": "pvopt checkpoint", "version": 3}', "is damaged .*model_class"),
    ],
)
def test_foreign_files(saved, content, message):
    (saved / "pvopt.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"pvopt.json: {message}"):
        load(saved, fresh())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), r"version 2; this pvopt reads version 3"),
        (lambda c: c.update(version="3"), r"version '3'"),
        (lambda c: c.update(weights=[1]), "is damaged"),
        (lambda c: c.update(files={"model.safetensors": {}}), "is damaged"),
        (lambda c: c["weights"]["0.weight"].update(dtype="os"), "unknown dtype 'os'"),
        (lambda c: c["weights"]["0.weight"].update(shape=[3, 3]), "does not fit pvopt.json"),
        (lambda c: parametrization(c).update(bits=99), r"in 1\.\.8"),
        (lambda c: parametrization(c).update(bits="2"), "bits must be an int"),
        (lambda c: parametrization(c).update(x=1), "unknown settings"),
        (lambda c: parametrization(c).pop("bits"), "missing settings"),
        (
            lambda c: parametrization(c).update({"class": "os.system"}),
            "'0.weight': unknown parametrization 'os.system'; known are .*UniformGrid",
        ),
        (
            lambda c: scheme(c)["space"].update({"class": "Popen"}),
            "'0.weight': unknown space 'Popen'; known are .*Rotation",
        ),
        (lambda c: scheme(c).pop("space"), "a scheme needs parametrization and space"),
        (
            lambda c: scheme(c).update(space={"class": "Padding", "columns": 3}),
            "does not fit pvopt.json",
        ),
        (
            lambda c: scheme(c).update(space={"class": "Permutation"}),
            "'0.weight.codes.space.order' is missing",
        ),
        (
            lambda c: c["weights"].update({"9.w": c["weights"]["0.weight"]}),
            "'9.w.codes.levels' is missing",
        ),
        (lambda c: c["tied"].update({"1.weight": "0.weight"}), "unknown to the model: 1.weight"),
    ],
)
def test_descriptions_that_do_not_fit(saved, change, message):
    edit(saved, change)
    with pytest.raises(CheckpointError, match=message):
        load(saved, fresh())


def test_a_changed_description_is_noticed(saved):
    content = json.loads((saved / "pvopt.json").read_text())
    parametrization(content)["symmetric"] = True
    (saved / "pvopt.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"pvopt\.json: is damaged, its checksum"):
        load(saved, fresh())


def test_defaults_fill_settings_that_an_old_file_lacks(saved):
    edit(saved, lambda c: parametrization(c).pop("symmetric"))
    rep = load(saved, fresh()).weights["0.weight"]
    assert rep.parametrization == pvopt.UniformGrid(bits=2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(8, 4)), "weights unknown to the model: 1.bias, 1.weight"),
        (nn.Sequential(*(nn.Linear(8, 4) for _ in range(3))), "holds no weights for 2.bias"),
        (nn.Sequential(nn.Linear(8, 5), nn.Linear(4, 4)), r"0.weight has shape \[4, 8\].*\[5, 8\]"),
    ],
)
def test_models_that_do_not_fit(saved, model, message):
    with pytest.raises(CheckpointError, match=message):
        load(saved, model)


def test_a_model_that_is_no_language_model_must_be_given(saved):
    with pytest.raises(CheckpointError, match=r"config\.json: is missing"):
        load(saved)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(saved)


def test_no_training_state(saved, tmp_path):
    loaded = load(saved, fresh())
    save(tmp_path / "bare", loaded.model, loaded.weights)
    with pytest.raises(CheckpointError, match="holds no training state"):
        load_training_state(tmp_path / "bare")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"x": {"y": [1, Path]}},
            r"training_state\['x'\]\['y'\]\[1\]: only tensors, .*Path",
        ),
        ({"x": {(1, 2): 3}}, r"keys must be strings or integers, got \(1, 2\)"),
        ({"x": torch.zeros(2, device="meta")}, r"training_state\['x'\]: .* on meta has no file"),
    ],
)
def test_training_state_is_data(saved, state, message):
    loaded = load(saved, fresh())
    with pytest.raises(CheckpointError, match=message):
        save(saved, loaded.model, loaded.weights, training_state=state)
    assert load_training_state(saved)["step"] == 7


def test_training_state_comes_back_as_it_was(saved):
    loaded = load(saved, fresh())
    stack = torch.arange(12.0).view(3, 4)
    state = {
        0: {"a": stack[0], "b": stack[1], "all": stack, "t": stack.t(), "empty": torch.zeros(0)},
        "kinds": [torch.zeros((), dtype=d) for d in (torch.bool, torch.int64, torch.bfloat16)],
        "numbers": (1, True, None, 0.1, math.inf, -math.inf, "x", 1 << 70),
        "same": [stack, stack],
        "nothing": [{}, [], ()],
    }
    save(saved, loaded.model, loaded.weights, training_state=state)
    found = load_training_state(saved)
    assert list(found) == list(state)
    assert found["numbers"] == state["numbers"]
    assert [type(x) for x in found["numbers"]] == [type(x) for x in state["numbers"]]
    assert found["nothing"] == state["nothing"]
    pairs = [*zip(found[0].values(), state[0].values(), strict=True)]
    pairs += [*zip(found["kinds"], state["kinds"], strict=True)]
    pairs += [*zip(found["same"], state["same"], strict=True)]
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


@dataclass(frozen=True, kw_only=True)
class Unregistered(pvopt.UniformGrid):
    note: str = ""


def test_what_is_not_registered_is_refused_and_nothing_changes(saved):
    loaded = load(saved, fresh())
    weights = pvopt.quantize_(loaded.model, {"0": Unregistered(bits=2)})
    with pytest.raises(
        CheckpointError, match=r"'native': '0\.weight': Unregistered is not registered"
    ):
        save(saved, loaded.model, weights)
    assert load(saved, fresh()).metadata == {"a": [1, None, "x"]}


@pytest.mark.parametrize("name", SCHEMES)
def test_every_parametrization_in_every_space_comes_back_bit_for_bit(name, tmp_path):
    rep = representation(name, torch.bfloat16 if "grid" in name else torch.float32)
    model = nn.Linear(SHAPE[1], SHAPE[0])
    weights = pvopt.QuantizedWeights(model, {"weight": rep})
    weights.write_()
    folder = save(tmp_path / "x", model, weights)
    loaded = load(folder, nn.Linear(SHAPE[1], SHAPE[0]))
    assert_same(model, weights, loaded)
    storage = storage_report(folder).weights[0]
    assert storage.codes == {key: stream.stored_bytes for key, stream in rep.streams.items()}
    assert storage.values == {key: value.nbytes for key, value in rep.values.items()}
    # Streams end with whole bytes.
    bits = rep.bits_per_weight()
    assert bits <= storage.bits_per_weight < bits + 8 * len(rep.streams) / rep.decode().numel()


def test_storage_is_counted_to_the_byte(network, tmp_path):
    model, weights = network
    folder = save(tmp_path / "x", model, weights)
    report = storage_report(folder)
    tensors = load_file(folder / "model.safetensors")
    total = sum(weight.code_bytes + weight.value_bytes for weight in report.weights)
    assert total + report.other_bytes == sum(tensor.nbytes for tensor in tensors.values())
    first = report.weights[0]  # 8 x 8, groups of 2 x 2, two codes of 3 bits
    assert first.code_bytes == 16 * 2 * 3 // 8
    assert first.value_bytes == 4 * (2 * 8 * 4 + 4)  # float32 codebooks, a scale per block row
    assert first.bits_per_weight == 8 * (first.code_bytes + first.value_bytes) / 64
    assert first.bits_per_weight_16 == (16 * 2 * 3 + 16 * 68) / 64
    assert report.file_bytes == (folder / "model.safetensors").stat().st_size
    others = [t.numel() for n, t in tensors.items() if ".codes." not in n and ".values." not in n]
    assert report.other_count == sum(others)
    bits = 8 * (total + report.other_bytes) / (5 * 64 + sum(others))
    assert report.total_bits_per_weight == pytest.approx(bits)


@pytest.fixture
def sharded(tmp_path):
    model = fresh()
    weights = pvopt.quantize_(model, {"0": pvopt.UniformGrid(bits=2)})
    return model, weights, save(tmp_path / "sharded", model, weights, format="native:20")


def test_large_models_are_in_several_files(sharded):
    model, weights, folder = sharded
    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-0000{n}-of-00006.safetensors" for n in range(1, 7)
    ]
    assert_same(model, weights, load(folder, fresh()))
    assert storage_report(folder).file_bytes == sum(file.stat().st_size for file in files)
    save(folder, model, weights)
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "by", "message"),
    [
        ("model-00002-of-00006.safetensors", None, "model-00002-of-00006.safetensors: is missing"),
        (
            "model-00002-of-00006.safetensors",
            "model-00003-of-00006.safetensors",
            "-00002-of.*: is ",
        ),
        ("model.safetensors.index.json", None, "index.json: is missing"),
        ("model.safetensors.index.json", "pvopt.json", "index.json: is too long"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(name, by, message, sharded):
    _, _, folder = sharded
    content = None if by is None else (folder / by).read_bytes()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    for read in (lambda: load(folder, fresh()), lambda: load_representations(folder)):
        with pytest.raises(CheckpointError, match=message):
            read()


@pytest.mark.parametrize("size", ["0", "-1GB", "much", ""])
def test_sizes_of_files_that_cannot_be(size, saved):
    with pytest.raises(ValueError, match="native"):
        save(saved, fresh(), pvopt.QuantizedWeights(fresh(), {}), format=f"native:{size}")


def test_a_file_with_a_right_checksum_but_wrong_content(saved):
    file = saved / "model.safetensors"
    tensors = load_file(file)
    tensors["0.weight.codes.levels"] = tensors["0.weight.codes.levels"][:-1].clone()
    shutil.copy(file, saved / "copy")
    save_file(tensors, file)
    edit(saved, lambda c: c["files"].update({file.name: vars(FileEntry.of(file))}))
    with pytest.raises(CheckpointError, match=r"'0.weight' does not fit .* shape \[8\]"):
        load(saved, fresh())
    file.write_bytes(b"not safetensors at all")
    edit(saved, lambda c: c["files"].update({file.name: vars(FileEntry.of(file))}))
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(saved, fresh())
