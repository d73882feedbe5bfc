"""States that somebody has changed: refused before anything is, or good for a next step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pvopt
from pvopt import recipes

BASES = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


def setup(base: str) -> tuple[nn.Module, pvopt.PVOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
    weights = pvopt.quantize_(model, {"0": pvopt.UniformGrid(bits=2, group_size=4)})
    # One recipe keeps a latent weight, the other measures the lengths of its steps on codes.
    recipe = recipes.subspace_pv if base == "sgd" else recipes.subspace_pv_ste
    return model, recipe(BASES[base](model.parameters()), weights)


def step(model: nn.Module, optimizer: pvopt.PVOptimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 8)).square().sum().backward()
    optimizer.step()


def tensors_of(model: nn.Module, optimizer: pvopt.PVOptimizer) -> dict[str, torch.Tensor]:
    found = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, entries in optimizer.state_dict()["state"].items():
        found |= {f"{number}.{k}": torch.as_tensor(v) for k, v in entries.items() if v is not None}
    return {name: tensor.clone() for name, tensor in found.items()}


def changes(value: object) -> dict[str, object]:
    found: dict[str, object] = {"None": None, "a string": "x", "a list": [1.0]}
    if isinstance(value, torch.Tensor):
        found |= {
            "meta": value.to("meta"),
            "an extra dimension": value[None].repeat(2, *[1] * value.dim()),
            "empty": value.reshape(-1)[:0],
            "complex": value.to(torch.complex64),
            "bool": torch.ones_like(value, dtype=torch.bool),
        }
        if value.is_floating_point():
            found |= {"nan": value * torch.nan, "inf": torch.full_like(value, torch.inf)}
        else:
            found |= {"out of range": torch.full_like(value, 200), "negative": -value.long() - 1}
    else:
        found |= {"negative": -1, "nan": float("nan"), "meta": torch.zeros((), device="meta")}
    return found


@pytest.mark.parametrize("base", BASES)
def test_entries_that_were_changed_are_refused(base):
    model, optimizer = setup(base)
    step(model, optimizer)
    step(model, optimizer)
    good = copy.deepcopy(optimizer.state_dict())
    before = tensors_of(model, optimizer)
    refused = 0
    for number, entries in good["state"].items():
        for key, value in entries.items():
            if key == "pv.name":  # a label
                continue
            for what, wrong in changes(value).items():
                if wrong is None and key == "momentum_buffer":
                    continue
                saved = copy.deepcopy(good)
                saved["state"][number][key] = wrong
                with pytest.raises(ValueError, match=r"must hold|must be|integers") as caught:
                    optimizer.load_state_dict(saved)
                assert len(str(caught.value)) > 25, (number, key, what)
                refused += 1
    after = tensors_of(model, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert refused > 50
    optimizer.load_state_dict(good)
    step(model, optimizer)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("state"), "a mapping 'state', got None"),
        (lambda s: s.update(state=None), "a mapping 'state', got None"),
        (lambda s: s.pop("param_groups"), "a list 'param_groups', got None"),
        (lambda s: s.update(param_groups=[]), r"\S"),
        (lambda s: s.update(param_groups=s["param_groups"] * 2), "each parameter once"),
        (lambda s: s["state"].update({0: None}), "a mapping by names for 0"),
        (lambda s: s["state"][0].update({"pv.name": None}), "checksum of a name in 'name', got No"),
        (lambda s: s["state"].update({99: {}}), "must name its parameters in a group, got 99"),
        (lambda s: s["param_groups"][0].update(params=None), "a list 'params', got None"),
        (lambda s: s["param_groups"][0]["params"].pop(), r"\S"),
        (lambda s: s["param_groups"][0].update(lr=None), r"\['lr'\] must be a number like"),
        (lambda s: s["param_groups"][0].update(lr="x"), r"\['lr'\] must be a number like"),
        (lambda s: s["param_groups"][0].update(lr=float("nan")), r"\['lr'\] must be a number"),
        (lambda s: s["param_groups"][0].update(lr=-0.1), r"\['lr'\] must be a number"),
        (lambda s: s["param_groups"][0].update(lr=1e300), r"\['lr'\] must be a number"),
        (lambda s: s["param_groups"][0].pop("lr"), r"\['lr'\] must be a number .* got nothing"),
        (lambda s: s["param_groups"][0].update(betas=(0.9,)), r"\['betas'\] must be"),
        (lambda s: s["param_groups"][0].update(betas=None), r"\['betas'\] must be"),
        (lambda s: s["param_groups"][0].update(amsgrad=True), "must hold max_exp_avg_sq"),
        (lambda s: s["state"][1].pop("exp_avg"), "must hold exp_avg for parameter 1"),
        (lambda s: s["state"][1]["exp_avg_sq"].fill_(-1), "some are negative"),
    ],
)
def test_state_dicts_that_are_made_otherwise_are_refused(change, message):
    model, optimizer = setup("adam")
    step(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    before = tensors_of(model, optimizer)
    change(saved)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    after = tensors_of(model, optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_older_releases_of_torch_did_not_save_is_filled_in():
    model, optimizer = setup("adam")
    step(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for name in ("maximize", "foreach", "capturable", "differentiable", "fused"):
        saved["param_groups"][0].pop(name, None)
    optimizer.load_state_dict(saved)
    step(model, optimizer)
