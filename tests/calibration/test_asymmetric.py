"""Targets of asymmetric calibration, against least squares on inputs of plain runs of the model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from recording import Recording, inputs_of
from torch import nn

from pvopt import MatrixView, UniformGrid
from pvopt.calibration import AsymmetricCalibration, FineTuning, calibrate_
from pvopt.calibration.hessians import gather_hessians
from pvopt.llm import load_model
from pvopt.starts import Fit

GRID = UniformGrid(bits=2, group_size=32)
TOKENS = torch.randint(0, 256, (6, 16), generator=torch.Generator().manual_seed(0))


def least_squares(x, goal, weight, damping):
    """Return argmin_T ||X T' - G W'||^2 + lambda ||T - W||^2, in one regression of more rows."""
    x, goal, weight = (np.asarray(t, np.float64) for t in (x, goal, weight))
    root = np.sqrt(damping * (x * x).sum(0).mean()) * np.eye(x.shape[1])
    rows = np.concatenate([x, root]), np.concatenate([goal @ weight.T, root @ weight.T])
    return torch.from_numpy(np.linalg.lstsq(*rows, rcond=None)[0].T)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_targets_are_least_squares_solutions(share, transposed):
    generator = torch.Generator().manual_seed(1)
    x, dense = torch.randn(2, 20, 5, generator=generator, dtype=torch.float64)
    x[:, 3] = 0  # an input that is always zero
    weight = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    settings = AsymmetricCalibration(share=share, damping=0.1)
    given = weight.T.contiguous() if transposed else weight
    view = MatrixView(transposed=transposed)
    found = settings.target(given, view, x.T @ x, (dense - x).T @ x)
    wanted = least_squares(x, x + share * (dense - x), weight, 0.1)
    torch.testing.assert_close(found.T if transposed else found, wanted)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_walk_aims_at_the_original_behind_quantized_blocks(share):
    model = load_model("tiny-llama").model
    original = copy.deepcopy(model)
    start = Recording()
    asymmetric = AsymmetricCalibration(share=share)
    result = calibrate_(model, TOKENS, GRID, start, batch_size=3, asymmetric=asymmetric)
    names = list(result.weights)
    targets = dict(zip(names, start.weights, strict=True))
    second = [n for n in names if ".layers.1." in n]
    for name in set(names) - set(second):  # nothing is quantized before the first block
        assert torch.equal(targets[name], original.get_parameter(name))
    halfway = copy.deepcopy(original)
    for name in set(names) - set(second):
        halfway.get_parameter(name).data.copy_(result.weights[name].decode())
    inputs, dense = inputs_of(halfway, second, TOKENS), inputs_of(original, second, TOKENS)
    for name in second:
        weight, x = original.get_parameter(name).detach(), inputs[name]
        wanted = least_squares(x, x + share * (dense[name] - x), weight, asymmetric.damping)
        torch.testing.assert_close(targets[name].double(), wanted, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(targets[name], weight, rtol=1e-2)


def test_shifts_count_tokens_as_hessians_do():
    """With padding and weights; a layer that is not given all tokens in order has none."""
    layers = {name: nn.Linear(4, 3) for name in ("weighed", "plain", "alike", "some")}
    generator = torch.Generator().manual_seed(1)
    inputs, dense = torch.randn(2, 3, 2, 12, 4, generator=generator)
    weights = torch.rand(3, 2, 12, generator=generator)
    masks = (torch.rand(3, 2, 12, generator=generator) < 0.7).long()

    def run(batch):
        for layer in ("weighed", "plain", "alike"):
            layers[layer](batch)
        layers["some"](batch[:, :5])

    with gather_hessians(layers) as hessians:
        for batch, other, mask, own in zip(inputs, dense, masks, weights, strict=True):
            hessians.begin_batch(mask, {"weighed": own})
            with hessians.dense_pass(24):
                run(other)
            run(batch)
            hessians.end_batch()
    assert hessians["plain"] is hessians["alike"]
    rows, far = inputs.double().flatten(0, 2), dense.double().flatten(0, 2)
    for name, factors in (("weighed", weights * masks), ("plain", masks), ("alike", masks)):
        counted = factors.double().flatten()[:, None] * rows
        torch.testing.assert_close(hessians[name], rows.T @ counted, rtol=1e-5, atol=1e-5)
        wanted = (far - rows).T @ counted
        torch.testing.assert_close(hessians.shift(name), wanted, rtol=1e-5, atol=1e-5)
    assert hessians.shift("some") is None


def test_fine_tuning_aims_as_far_and_a_work_folder_goes_on(tmp_path, monkeypatch):
    goals = []
    tune = FineTuning.tune_
    monkeypatch.setattr(
        FineTuning, "tune_", lambda self, *a, **k: goals.append(a[3].clone()) or tune(self, *a, **k)
    )

    def walk(share, **other):
        model = load_model("tiny-llama").model
        asymmetric = None if share is None else AsymmetricCalibration(share=share)
        start = Fit(weighted=True)
        result = calibrate_(
            model, TOKENS, GRID, start, asymmetric=asymmetric, fine_tuning=FineTuning(), **other
        )
        return [rep.decode() for rep in result.weights.values()]

    def first_alone(names):
        yield names[0]
        raise KeyboardInterrupt

    whole = walk(1.0)
    with torch.no_grad():
        model = load_model("tiny-llama").model
        last = model.model.layers[1].register_forward_hook(lambda m, i, out: outputs.append(out))
        outputs = []
        for row in TOKENS:
            model(row[None], use_cache=False)
        last.remove()
    torch.testing.assert_close(goals[1].flatten(0, 1), torch.cat(outputs), rtol=1e-4, atol=1e-5)
    with pytest.raises(KeyboardInterrupt):
        walk(1.0, work=tmp_path, progress=first_alone)
    assert all(map(torch.equal, whole, walk(1.0, work=tmp_path)))
    for one, other in zip(walk(None), walk(0.0), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, "share must be at most 1, got 1.5"),
        ({"share": float("nan")}, "share must be at least 0 and finite, got nan"),
        ({"damping": 0}, "damping must be above 0 and finite, got 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        AsymmetricCalibration(**settings)
