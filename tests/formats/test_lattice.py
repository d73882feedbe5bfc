"""Lattice codes and rotated weights on the disk: their size to the byte, nested settings."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import pvopt
from pvopt.formats import CheckpointError, load, save, storage_report
from pvopt.parametrizations import as_scheme

FORMATS = {
    "0": (pvopt.E8P(bits=2), 2),
    "1": (pvopt.E8P(bits=3, scale_group=16), 3),
    "2": (pvopt.Scheme(pvopt.E8P(bits=4, per_tensor=True), pvopt.Rotation(seed=11)), 4),
    "3": (pvopt.Scheme(pvopt.UniformGrid(bits=3, group_size=8), pvopt.Rotation()), 3),
    "4": (
        pvopt.Scheme(
            pvopt.QuantizedScales(inner=pvopt.E8P(bits=2, scale_group=16), bits=5),
            pvopt.Rotation(),
        ),
        None,
    ),
    "5": (
        pvopt.QuantizedScales(
            inner=pvopt.AdditiveCodebooks(
                num_codebooks=1, bits=9, in_group=8, out_group=2, scale_group=24
            ),
            bits=3,
        ),
        None,
    ),
}


def network() -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(48, 48, bias=False) for _ in FORMATS])


@pytest.fixture
def folder(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network()
    weights = pvopt.quantize_(model, {name: p for name, (p, _) in FORMATS.items()})
    return save(tmp_path / "saved", model, weights), model


def test_files_have_the_stated_size(folder):
    report = storage_report(folder[0])
    with safe_open(str(folder[0] / "model.safetensors"), "pt") as stored:
        for weight, (p, bits) in zip(report.weights, FORMATS.values(), strict=True):
            # exactly `bits` per weight in codes: signs and points of the lattice are not stored
            if bits is not None:
                assert weight.code_bytes == 48 * 48 * bits // 8
            for stream, size in weight.codes.items():
                assert stored.get_tensor(f"{weight.name}.codes.{stream}").numel() == size
            assert weight.bits_per_weight == p.bits_per_weight((48, 48), value_bits=32)
            assert weight.scheme == as_scheme(p)


def test_a_code_of_a_scale_is_stored_once(folder):
    """288 groups of two bytes and 144 scales of 5 bits; 144 codes of 9 bits, 48 scales of 3."""
    sizes = {weight.name: weight.codes for weight in storage_report(folder[0]).weights}
    assert sizes["4.weight"] == {"points": 288 * 2, "scales": 144 * 5 // 8}
    assert sizes["5.weight"] == {"entries": 144 * 9 // 8, "scales": 48 * 3 // 8}


def test_a_loaded_model_is_the_same(folder):
    loaded = load(folder[0], network())
    for name, tensor in folder[1].state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    seeds = [getattr(rep.space, "seed", None) for rep in loaded.weights.values()]
    assert seeds == [None, None, 11, 0, 0, None]


def test_a_nested_class_that_is_unknown_is_refused(folder):
    file = folder[0] / "pvopt.json"
    text = file.read_text()
    assert text.count('"class": "E8P"') == 4
    content = json.loads(text.replace('"class": "E8P"', '"class": "os.system"'))
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"unknown parametrization 'os\.system'"):
        load(folder[0], network())
