"""The README's own code, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def results() -> dict[str, float]:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2, "the README has one block for the baseline and one for the tuning"
    names: dict = {"__name__": "readme"}
    exec(compile("\n".join(blocks), str(README), "exec"), names)
    measured = ("full_precision", "rounded", "tuned")
    return {n: names[n] for n in measured} | {"bits": names["weights"].bits_per_weight()}


def test_tuned_is_within_a_point_of_full_precision(results):
    assert results["tuned"] >= results["full_precision"] - 1


def test_the_baseline_is_sound_and_rounding_alone_is_worse(results):
    assert results["full_precision"] > 94
    assert results["rounded"] < results["tuned"] - 2


def test_the_bits_are_what_the_readme_says(results):
    stated = re.search(r"at ([\d.]+) bits per weight`", README.read_text(encoding="utf-8"))
    assert stated is not None
    assert f"{results['bits']:.2f}" == stated[1]


def test_the_loop_stays_short():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    loop = [line for line in blocks[1].splitlines() if line.strip()]
    assert len(loop) <= 19  # 15 of the loop, an import, the bits and the report
