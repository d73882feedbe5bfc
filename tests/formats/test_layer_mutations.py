"""Whatever is done to folders of other programs: they are refused in one way, or are models.

``PVOPT_MUTATIONS=10000`` for a night, as in ``test_mutations``.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the extra llm is not installed")

from exports import IDS, drawn, logits, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutating import bounded, edits, replacements
from safetensors.torch import load_file, save_file

from pvopt.formats import CheckpointError, load, save

MUTATIONS = int(os.environ.get("PVOPT_MUTATIONS", "300"))
MODELS = {
    "compressed-tensors": lambda: tiny("grid:2g16z"),
    "gptq": lambda: tiny("perm+grid:2g16z"),
    "aqlm": lambda: tiny("1x4g8"),
    "exl3": lambda: drawn({"0.self_attn": (2, "mul1"), "1.self_attn": (1, "3inst")}),
}


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory) -> Path:
    model, weights = MODELS[request.param]()
    folder = tmp_path_factory.mktemp("exported") / "x"
    return save(folder, model, weights, format=request.param)


@settings(
    max_examples=MUTATIONS // 16,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    part=st.sampled_from(["settings", "config", "tensors"]), replace=replacements(), edit=edits()
)
def test_any_mutation_is_refused_or_a_model_of_the_same_shape(exported, part, replace, edit):
    """Nothing says what was written: other numbers of the same shape are another model."""
    config, tensors = (exported / name for name in ("config.json", "model.safetensors"))
    before = {file: file.read_bytes() for file in (config, tensors)}
    content = json.loads(before[config])
    if part == "settings":
        changed = content | {"quantization_config": replace(content["quantization_config"])}
    else:
        changed = replace(content) if part == "config" else content
    try:
        config.write_text(json.dumps(changed))
        if part == "tensors":
            tensors.write_bytes(edit(before[tensors]))
        message = str(exported)
        try:
            with bounded():
                found = load(exported)
        except CheckpointError as error:
            message = str(error)
        else:
            assert logits(found.model).shape == (1, IDS.shape[1], 259)
        assert str(exported) in message
    finally:
        for file, kept in before.items():
            file.write_bytes(kept)


def test_dense_weights_that_are_not_finite_are_refused(exported):
    file = exported / "model.safetensors"
    before = file.read_bytes()
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"x: model.norm.weight has NaN or infinite entries"):
        load(exported)
    file.write_bytes(before)
