"""The examples of the documentation run, resume bit for bit, and export what they tuned."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from pvopt.formats import load

FOLDER = Path(__file__).parents[1] / "docs" / "examples"
# Packages that an example needs, and what the test asks of it.
EXAMPLES = {
    "accelerate_loop": (("transformers", "accelerate"), {}),
    "hf_trainer": (("transformers", "accelerate"), {}),
    "lightning_module": (("transformers", "lightning"), {}),
    "lora": (("transformers", "peft"), {}),
    "mlp": ((), {}),
    # Inductor would compile for half a minute.
    "plain_loop": (("transformers",), {"backend": "eager"}),
    "vit": (("transformers",), {}),
}


def test_all_examples_are_tested():
    assert {file.stem for file in FOLDER.glob("*.py")} == EXAMPLES.keys()


@pytest.fixture
def fresh_accelerator():
    yield
    try:
        from accelerate.state import AcceleratorState, PartialState
    except ImportError:
        return
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


@pytest.mark.filterwarnings("ignore")  # of the packages that are shown
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path, fresh_accelerator):
    packages, options = EXAMPLES[name]
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    example = runpy.run_path(str(FOLDER / f"{name}.py"))
    model, weights, losses = example["main"](tmp_path / "parts", **options)
    (tmp_path / "whole").mkdir()
    steps = 30 if name == "mlp" else 8
    other, others, all_losses = example["train"](tmp_path / "whole", steps, **options)
    assert losses[-1] < all_losses[0]
    assert losses == all_losses[-len(losses) :]
    assert_same(model, other)
    for weight, rep in weights.items():
        for (key, mine), (_, theirs) in zip(rep.tensors(), others[weight].tensors(), strict=True):
            assert torch.equal(mine, theirs), (weight, key)
    if name == "lora":
        from peft import PeftModel

        served = load(tmp_path / "parts" / "base").model
        assert_same(PeftModel.from_pretrained(served, tmp_path / "parts" / "adapter"), model)
        return
    weights.check()
    same = {"vit": lambda: type(model)(model.config), "mlp": lambda: example["make_model"]()}
    empty = same[name]() if name in same else None
    assert_same(load(tmp_path / "parts" / "export", empty).model, model)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert torch.equal(tensor, right[key]), key
