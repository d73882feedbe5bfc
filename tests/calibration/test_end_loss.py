"""Weights of tokens by the end loss, against gradients of every output one by one."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from pvopt import UniformGrid
from pvopt.calibration import EndLoss, calibrate_
from pvopt.calibration.hessians import gather_hessians
from pvopt.llm import load_model
from pvopt.starts import Fit

NAMES = ("0.self_attn.q_proj", "0.self_attn.k_proj", "1.mlp.down_proj")


@pytest.fixture
def model():
    return load_model("tiny-llama").model


@pytest.fixture
def tokens():
    return torch.randint(256, (3, 2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("padded", [False, True])
def test_weights_are_powers_of_squared_gradients(model, tokens, padded):
    layers = {name: model.model.layers.get_submodule(name) for name in NAMES}
    masks = torch.ones_like(tokens)
    if padded:
        masks[1, 0, 7:] = 0
    found = EndLoss(power=0.5).token_weights(model, tokens, layers, masks if padded else None)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    wanted = {name: [] for name in NAMES}
    for ids, mask in zip(tokens.flatten(0, 1), masks.flatten(0, 1), strict=True):
        kept = {}
        handles = [
            layer.register_forward_hook(lambda m, i, out, n=name, k=kept: k.update({n: out}))
            for name, layer in layers.items()
        ]
        length = int(mask.sum())
        logits = model(ids[None]).logits[0]
        loss = cross_entropy(logits[: length - 1], ids[1:length], reduction="sum")
        gradients = torch.autograd.grad(loss, list(kept.values()))
        for name, gradient in zip(kept, gradients, strict=True):
            wanted[name].append(gradient[0].square().mean(1))
        for handle in handles:
            handle.remove()
    for name in NAMES:
        power = torch.stack(wanted[name]).sqrt() * masks.flatten(0, 1)
        expected = (power * (masks.sum() / power.sum())).view(tokens.shape)
        # Roots of squares near 0, of gradients in float32 that were summed in another order.
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)


def test_hessians_weigh_their_tokens(tokens):
    """Also where a batch has padding; a layer without weights shares no Hessian with one."""
    first, second = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 2, 12, 4, generator=generator)
    weights = torch.rand(3, 2, 12, generator=generator)
    masks = (torch.rand(3, 2, 12, generator=generator) < 0.7).long()
    with gather_hessians({"first": first, "second": second}) as hessians:
        for batch, mask, own in zip(inputs, masks, weights, strict=True):
            hessians.begin_batch(mask, {"first": own})
            first(batch), second(batch)
            hessians.end_batch()
    rows = inputs.double().flatten(0, 2)
    for name, factors in (("first", weights * masks), ("second", masks)):
        wanted = rows.T @ (factors.double().flatten()[:, None] * rows)
        torch.testing.assert_close(hessians[name], wanted, rtol=1e-5, atol=1e-5)


def test_calibration_by_the_end_loss(model, tokens, tmp_path):
    """It differs, goes on from a work folder with the same bits, and power 0 is plain."""
    grid, start = {"*.q_proj": UniformGrid(bits=2, group_size=32)}, Fit(weighted=True)
    flat = tokens.flatten(0, 1)

    def codes(end_loss, **other):
        fresh = load_model("tiny-llama").model
        found = calibrate_(fresh, flat, grid, start, end_loss=end_loss, **other)
        return [rep.values["scales"] for rep in found.weights.values()]

    plain, weighed = codes(None), codes(EndLoss(), work=tmp_path)
    assert all(not torch.equal(a, b) for a, b in zip(plain, weighed, strict=True))
    assert all(map(torch.equal, weighed, codes(EndLoss(), work=tmp_path)))
    for one, other in zip(plain, codes(EndLoss(power=0)), strict=True):
        torch.testing.assert_close(one, other)


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"power must be at most 1, got 2"):
        EndLoss(power=2)
