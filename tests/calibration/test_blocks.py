"""Blocks that are called in unusual ways: what the walk gives them is what the model gives them."""

from __future__ import annotations

import copy

import pytest
import torch
from recording import Recording
from torch import nn

from pvopt import UniformGrid
from pvopt.calibration import FineTuning, calibrate_
from pvopt.llm import load_model
from pvopt.starts import GPTQ, Fit

GRID = UniformGrid(bits=2, group_size=4)
TOKENS = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(0))
WIDTH = 8


class Block(nn.Module):
    """Mixes tokens with the ones before, and takes whatever its model hands it besides."""

    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden, extra=None, *, ids=None, mask=None, states=None):
        past = hidden if mask is None else hidden * mask[..., None]
        mixed = self.mix(past.cumsum(1) / (1 + torch.arange(hidden.shape[1]))[:, None])
        if extra is not None:
            mixed = mixed + extra
        if ids is not None:
            mixed = mixed * (1 + ids[..., None] % 3)
        if states is not None:  # what the first block writes, the others read
            mixed = mixed + states.setdefault("first", mixed)
            states["first"] = states["first"] + 1
        return hidden + self.out(mixed.tanh()), None


class Toy(nn.Module):
    """A model whose blocks are called in the way that its kind says."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.embed, self.own = nn.Embedding(20, WIDTH), nn.Embedding(20, 3 * WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        if kind == "one block twice":
            self.layers[2] = self.layers[0]
        if kind == "one weight twice":
            self.layers[2].out.weight = self.layers[0].out.weight
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        hidden, states = self.embed(input_ids), {}
        layers = [*self.layers] * (2 if self.kind == "twice" else 1)
        layers = layers[::-1] if self.kind == "backwards" else layers
        for number, layer in enumerate(layers):
            more = {"mask": attention_mask}
            extra = []
            if self.kind == "inputs per layer":
                extra = [self.own(input_ids)[..., number * WIDTH : (number + 1) * WIDTH]]
            elif self.kind == "inputs of a late layer" and number == 2:
                extra = [self.own(input_ids)[..., :WIDTH]]
            elif self.kind == "ids":
                more["ids"] = input_ids
            elif self.kind == "shared states":
                more["states"] = states
            if self.kind == "keywords":
                more["hidden"] = hidden
                hidden = layer(**more)[0]
            else:
                hidden = layer(hidden, *extra, **more)[0]
            if self.kind == "between" and number == 1:
                hidden = 2 * hidden
        return hidden


def expected_hessians(original, result, tokens, masks=None):
    """X'X of each layer in whole passes of a model whose earlier blocks are quantized."""
    found = {}
    for block in range(3):
        model = copy.deepcopy(original)
        for name, rep in result.weights.items():
            if int(name.split(".")[1]) < block:
                model.get_parameter(name).data.copy_(rep.decode())
        for leaf in ("mix", "out"):
            name, rows = f"layers.{block}.{leaf}.weight", []
            model.layers[block].get_submodule(leaf).register_forward_pre_hook(
                lambda module, args, rows=rows: rows.append(args[0].detach().double())
            )
            found[name] = rows
        with torch.no_grad():
            for number, row in enumerate(tokens):
                model(row[None], None if masks is None else masks[number][None])
    real = torch.ones_like(tokens) if masks is None else masks
    rows = {name: torch.cat(given)[real.bool()] for name, given in found.items()}
    return {name: x.T @ x for name, x in rows.items()}


KINDS = ["plain", "keywords", "inputs per layer", "inputs of a late layer", "ids", "shared states"]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_calibrated_on_what_the_model_gives_them(kind, padded, tmp_path):
    model, method = Toy(kind), Recording()
    original = copy.deepcopy(model)
    masks = None
    if padded:
        masks = (torch.arange(6) < torch.tensor([6, 2, 5, 3])[:, None]).long()
    tune = FineTuning(lr=1e-2)
    result = calibrate_(model, TOKENS, GRID, method, masks=masks, fine_tuning=tune)
    wanted = expected_hessians(original, result, TOKENS, masks)
    for name, hessian in zip(result.weights, method.hessians, strict=True):
        torch.testing.assert_close(hessian, wanted[name], rtol=1e-5, atol=1e-5)


def test_blocks_that_are_finished_hand_on_the_same(tmp_path):
    models = [Toy("shared states") for _ in range(2)]
    first, again = (calibrate_(m, TOKENS, GRID, GPTQ(), work=tmp_path) for m in models)
    assert first.layer_errors == again.layer_errors
    (tmp_path / "again").mkdir()
    for name in ("settings", "layers.0", "layers.1"):
        (tmp_path / name).rename(tmp_path / "again" / name)
    model = Toy("shared states")
    resumed = calibrate_(model, TOKENS, GRID, GPTQ(), work=tmp_path / "again")
    assert resumed.layer_errors == first.layer_errors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("twice", r"once each and in order, it ran blocks \[0, 1, 2, 0, 1, 2\]"),
        ("backwards", r"it ran blocks \[2, 1, 0\]"),
        ("between", "block 2 is given something else"),
        ("one block twice", "blocks 0 and 2 of 'layers' share the weight 'mix.weight'"),
        ("one weight twice", "blocks 0 and 2 of 'layers' share the weight 'out.weight'"),
    ],
)
def test_models_whose_blocks_are_no_chain_are_refused(kind, message):
    model = Toy(kind)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        calibrate_(model, TOKENS, GRID, Fit())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)


def test_padding_changes_nothing():
    short, long = Toy("plain"), Toy("plain")
    padded = torch.cat([TOKENS, torch.full((4, 3), 19)], 1)
    masks = torch.cat([torch.ones(4, 6), torch.zeros(4, 3)], 1)
    tune = FineTuning(epochs=2, lr=1e-2)
    expected = calibrate_(short, TOKENS, GRID, GPTQ(), fine_tuning=tune)
    result = calibrate_(long, padded, GRID, GPTQ(), masks=masks, fine_tuning=tune)
    for name, rep in expected.weights.items():
        torch.testing.assert_close(result.weights[name].decode(), rep.decode())
        assert result.layer_errors[name] == pytest.approx(expected.layer_errors[name], rel=1e-4)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.ones(4, 5), r"must have the shape of tokens, \[4, 6\], got \[4, 5\]"),
        (torch.zeros(4, 6), "must leave a token in every sequence"),
    ],
)
def test_wrong_masks_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        calibrate_(Toy("plain"), TOKENS, GRID, Fit(), masks=masks)


def test_a_layer_without_tokens_gets_a_fit_and_is_named(tmp_path):
    unused = "layers.1.unused.weight"
    for _ in range(2):  # the second time from the folder
        model = Toy("plain")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.layers[1].unused = nn.Linear(WIDTH, 4)
        fitted = GRID.fit(model.layers[1].unused.weight)
        result = calibrate_(model, TOKENS, GRID, GPTQ(), work=tmp_path)
        assert result.without_tokens == (unused,)
        assert unused not in result.layer_errors
        assert torch.equal(result.weights[unused].decode(), fitted.decode())


def test_fine_tuning_puts_flags_and_gradients_back():
    model = load_model("tiny-llama").model
    frozen = {n for n, _ in model.named_parameters() if "layers.0" in n or "k_proj" in n}
    gradients = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
        if "layers.1.mlp" in name:
            parameter.grad = gradients[name] = torch.ones_like(parameter)
    grid = UniformGrid(bits=3, group_size=32)
    calibrate_(model, TOKENS, grid, Fit(), fine_tuning=FineTuning())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in frozen), name
        assert parameter.grad is gradients.get(name), name
