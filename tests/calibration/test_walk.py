"""The walk over the blocks: what each layer is given, sharing, resuming, other architectures."""

from __future__ import annotations

import copy

import pytest
import torch
from recording import Recording, inputs_of
from torch import nn

from pvopt import Permutation, Scaling, Scheme, SharedValues, UniformGrid
from pvopt.calibration import FineTuning, calibrate_
from pvopt.calibration.hessians import gather_hessians
from pvopt.formats import CheckpointError
from pvopt.llm import load_model
from pvopt.starts import Fit

GRID = UniformGrid(bits=3, group_size=32)
TOKENS = torch.randint(0, 256, (6, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return load_model("tiny-llama").model


@pytest.mark.parametrize("batch_size", [1, 3])
def test_hessians_and_errors_are_those_of_the_quantized_prefix(model, batch_size):
    original = copy.deepcopy(model)
    method = Recording()
    result = calibrate_(model, TOKENS, GRID, method, batch_size=batch_size)
    names = list(result.weights)
    assert len(names) == 14 == len(method.hessians)
    given = dict(zip(names, method.hessians, strict=True))
    # Block 0 as it was, then block 1 behind the quantized block 0.
    for block, prefix in ((0, []), (1, [n for n in names if ".layers.0." in n])):
        halfway = copy.deepcopy(original)
        for name in prefix:
            halfway.get_parameter(name).data.copy_(result.weights[name].decode())
        inside = [n for n in names if f".layers.{block}." in n]
        for name, x in inputs_of(halfway, inside, TOKENS).items():
            torch.testing.assert_close(given[name], x.T @ x, rtol=1e-5, atol=1e-5)
            weight = original.get_parameter(name).detach().double()
            quantized = result.weights[name].decode().double()
            expected = (x @ (weight - quantized).T).norm() / (x @ weight.T).norm()
            assert result.layer_errors[name] == pytest.approx(float(expected), rel=1e-4)
    for name, rep in result.weights.items():
        assert torch.equal(model.get_parameter(name), rep.decode())


def test_layers_that_are_given_the_same_tensor_share_a_hessian(model):
    block = model.model.layers[0]
    layers = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    with torch.no_grad(), gather_hessians(layers) as hessians:
        for row in TOKENS:
            model(row[None])
            hessians.end_batch()
    distinct = {id(h) for h in hessians.values()}
    assert len(distinct) == 4  # q k v, o, gate up, down
    assert hessians["self_attn.q_proj"] is hessians["self_attn.v_proj"]
    assert hessians["mlp.gate_proj"] is hessians["mlp.up_proj"]
    assert not block.self_attn.q_proj._forward_pre_hooks


def test_a_layer_that_never_runs_has_a_zero_hessian_of_its_own():
    layers = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)}
    with gather_hessians(layers) as hessians:
        layers["a"](torch.ones(1, 3))
        hessians.end_batch()
        layers["b"](torch.ones(2, 3))
        hessians.end_batch()
    assert [float(h.sum()) for h in hessians.values()] == [9.0, 18.0, 0.0]


def test_an_interrupted_walk_goes_on_and_ends_with_the_same_bits(model, tmp_path):
    whole, resumed = copy.deepcopy(model), copy.deepcopy(model)
    tune = FineTuning(lr=1e-2)
    expected = calibrate_(whole, TOKENS, GRID, Fit(weighted=True), fine_tuning=tune)

    def stop_after_first(names):
        yield names[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_(
            model, TOKENS, GRID, Fit(weighted=True), fine_tuning=tune, work=tmp_path,
            progress=stop_after_first,
        )  # fmt: skip
    saved = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("."))
    assert saved == ["model.layers.0", "settings"]
    before = (tmp_path / "model.layers.0").stat().st_mtime_ns
    result = calibrate_(resumed, TOKENS, GRID, Fit(weighted=True), fine_tuning=tune, work=tmp_path)
    assert (tmp_path / "model.layers.0").stat().st_mtime_ns == before
    assert result.layer_errors == expected.layer_errors
    for name, rep in expected.weights.items():
        for (_, mine), (_, theirs) in zip(
            rep.tensors(), result.weights[name].tensors(), strict=True
        ):
            assert torch.equal(mine, theirs)
        assert torch.equal(whole.get_parameter(name), resumed.get_parameter(name))


@pytest.mark.parametrize("space", [Permutation(), Scaling(inputs=True)], ids=str)
def test_what_a_space_owns_is_kept_and_tuned(model, tmp_path, space):
    """Permutations and scales of channels are in the blocks' folders; scales are tuned too."""
    scheme, tune = Scheme(GRID, space), FineTuning(lr=1e-2)
    plain, again = copy.deepcopy(model), copy.deepcopy(model)
    without = calibrate_(plain, TOKENS, scheme, Fit(weighted=True))
    first = calibrate_(model, TOKENS, scheme, Fit(weighted=True), fine_tuning=tune, work=tmp_path)
    read = calibrate_(again, TOKENS, scheme, Fit(weighted=True), fine_tuning=tune, work=tmp_path)
    assert read.layer_errors == first.layer_errors
    for name, rep in first.weights.items():
        for (_, mine), (_, theirs) in zip(rep.tensors(), read.weights[name].tensors(), strict=True):
            assert torch.equal(mine, theirs)
        assert torch.equal(again.get_parameter(name), rep.decode())
        if ".layers.0." in name:  # its inputs are the same with and without tuning
            untuned = without.weights[name]
            assert all(torch.equal(codes, untuned.codes[n]) for n, codes in rep.codes.items())
            assert not any(torch.equal(v, untuned.values[n]) for n, v in rep.values.items())


def test_a_work_folder_is_refused_if_it_is_of_something_else(model, tmp_path):
    fresh = copy.deepcopy(model)
    calibrate_(model, TOKENS, GRID, Fit(), work=tmp_path / "work")
    with pytest.raises(CheckpointError, match=r"other settings \(weights\)"):
        calibrate_(model, TOKENS, GRID, Fit(), work=tmp_path / "work")
    model = fresh
    with pytest.raises(CheckpointError, match=r"other settings \(start\)"):
        calibrate_(model, TOKENS, GRID, Fit(weighted=True), work=tmp_path / "work")
    with pytest.raises(CheckpointError, match=r"other settings \(tokens\)"):
        calibrate_(model, TOKENS[:2], GRID, Fit(), work=tmp_path / "work")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="must be empty or the work of a calibration"):
        calibrate_(model, TOKENS, GRID, Fit(), work=tmp_path / "foreign")
    file = tmp_path / "work" / "model.layers.1" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"layers\.1.*is damaged.*; delete .*layers\.1 to"):
        calibrate_(model, TOKENS, GRID, Fit(), work=tmp_path / "work")


def test_what_cannot_be_calibrated_is_refused_and_nothing_changes(model):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="embed_tokens"):
        calibrate_(model, TOKENS, {"*embed_tokens.weight": SharedValues(num_values=4)}, Fit())
    with pytest.raises(ValueError, match="start has no pattern for"):
        calibrate_(model, TOKENS, GRID, {"*.mlp.*": Fit()})
    with pytest.raises(TypeError, match=r"start\['\*'\] must be a Start, got 'gptq'"):
        calibrate_(model, TOKENS, GRID, "gptq")
    with pytest.raises(ValueError, match=r"tokens must be integers of shape \[sequences, length\]"):
        calibrate_(model, TOKENS[0], GRID, Fit())
    with pytest.raises(ValueError, match="batch_size must divide the 6 sequences"):
        calibrate_(model, TOKENS, GRID, Fit(), batch_size=4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_starts_are_chosen_by_pattern(model):
    attention = Recording()
    calibrate_(model, TOKENS, GRID, {"*.self_attn.*": attention, "*": Fit()})
    assert len(attention.hessians) == 8


@pytest.mark.parametrize("architecture", ["opt", "qwen3", "gemma2"])
def test_other_architectures(architecture):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "ffn_dim": 48,
        "word_embed_proj_dim": 32, "max_position_embeddings": 64, "sliding_window": 4,
        "pad_token_id": 0,
    }  # fmt: skip
    known = AutoConfig.for_model(architecture)
    config = AutoConfig.for_model(
        architecture, **{k: v for k, v in small.items() if hasattr(known, k)}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    original = copy.deepcopy(model)
    tokens = TOKENS % 64
    method = Recording()
    result = calibrate_(model, tokens, UniformGrid(bits=2, group_size=16), method)
    names = list(result.weights)
    last = [n for n in names if ".layers.2." in n]
    for name in names:
        if name not in last:
            original.get_parameter(name).data.copy_(result.weights[name].decode())
    given = dict(zip(names, method.hessians, strict=True))
    for name, x in inputs_of(original, last, tokens).items():
        torch.testing.assert_close(given[name], x.T @ x, rtol=1e-4, atol=1e-5)


def test_fine_tuning_lowers_the_blocks_error_and_leaves_codes(model):
    plain, tuned = copy.deepcopy(model), copy.deepcopy(model)
    spec = UniformGrid(bits=2, group_size=32)
    without = calibrate_(plain, TOKENS, spec, Fit())
    with_it = calibrate_(tuned, TOKENS, spec, Fit(), fine_tuning=FineTuning(epochs=3, lr=3e-2))
    first = [n for n in without.weights if ".layers.0." in n]
    assert all(
        torch.equal(without.weights[n].codes["levels"], with_it.weights[n].codes["levels"])
        for n in first
    )
    assert tuned.training == model.training
    assert all(p.requires_grad and p.grad is None for p in tuned.parameters())

    def block_error(candidate):
        with torch.no_grad():
            return sum(
                float(
                    (
                        candidate(row[None], output_hidden_states=True).hidden_states[1]
                        - model(row[None], output_hidden_states=True).hidden_states[1]
                    )
                    .square()
                    .mean()
                )
                for row in TOKENS
            )

    assert block_error(tuned) < 0.9 * block_error(plain)


def test_fine_tuning_that_fails_is_taken_back(model):
    plain, tuned = copy.deepcopy(model), copy.deepcopy(model)
    without = calibrate_(plain, TOKENS, GRID, Fit())
    wild = calibrate_(tuned, TOKENS, GRID, Fit(), fine_tuning=FineTuning(lr=10.0))
    for name, rep in without.weights.items():
        assert torch.equal(rep.decode(), wild.weights[name].decode())
        assert torch.equal(tuned.get_parameter(name), rep.decode())
