"""Codes that do not exist: every door refuses them, and nothing is changed."""

from __future__ import annotations

import pytest
import torch
from schemes import SCHEMES, SHAPE, representation
from torch import nn

import pvopt
from pvopt.layers import QuantizedLinear
from pvopt.layers.packed_weight import PackedWeight


def out_of_range(codes: dict[str, torch.Tensor], streams) -> list[tuple[str, torch.Tensor]]:
    """Return each stream with a code too large, and with a negative one, where there is room."""
    found = []
    for name, stream in streams.items():
        for wrong in (stream.num_codes, -1):
            if stream.dtype == torch.uint8 and not 0 <= wrong < 256:
                continue
            changed = codes[name].clone()
            changed.view(-1)[-1] = wrong
            found.append((name, changed))
    return found


@pytest.mark.parametrize("name", SCHEMES)
def test_a_representation_and_its_weights(name):
    rep = representation(name)
    model = nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    weights = pvopt.QuantizedWeights(model, {"weight": rep})
    weights.write_()
    before = model.weight.detach().clone()
    for stream, wrong in out_of_range(rep.codes, rep.streams):
        with pytest.raises(ValueError, match=f"codes of '{stream}' must be in 0"):
            pvopt.Representation(
                rep.parametrization, rep.codes | {stream: wrong}, rep.values, rep.shape, rep.space
            )
        right = rep.codes[stream].clone()
        rep.codes[stream].copy_(wrong)
        with pytest.raises(ValueError, match=f"cannot write 'weight': codes of '{stream}'"):
            weights.write_()
        rep.codes[stream].copy_(right)
    assert torch.equal(model.weight, before)


def output(layer: nn.Module) -> torch.Tensor:
    return layer() if isinstance(layer, PackedWeight) else layer(torch.ones(1, SHAPE[1]))


@pytest.mark.parametrize("kind", [QuantizedLinear.from_representation, PackedWeight])
@pytest.mark.parametrize("name", SCHEMES)
def test_the_state_dict_of_a_layer(name, kind):
    layer = kind(representation(name))
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    refused = 0
    for key, tensor in before.items():
        if tensor.is_floating_point():
            continue
        with pytest.raises(TypeError, match=f"{key} must be {tensor.dtype}"):
            layer.load_state_dict(before | {key: tensor.long()})
        filled = torch.full_like(tensor, 255 if tensor.dtype == torch.uint8 else -1)
        try:
            layer.load_state_dict(before | {key: filled})
        except ValueError:
            refused += 1
        else:  # all of these bits are codes
            assert output(layer).isfinite().all()
            layer.load_state_dict(before)
        assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert refused or not any(s in name for s in ("perm", "shared", "ternary"))


def test_the_message_names_the_layer():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    weights = pvopt.quantize_(model, pvopt.SharedValues(num_values=5))
    pvopt.layers.to_quantized(model, weights)
    saved = model.state_dict()
    saved["0.codes.entries"] = torch.full_like(saved["0.codes.entries"], 255)
    with pytest.raises(ValueError, match=r"state_dict of 0: codes of 'entries' must be in 0\.\.4"):
        model.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({"0.bias": saved["0.bias"]})
