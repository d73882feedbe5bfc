"""The table of supported models says what is the case (PVOPT_ALL_MODELS=1: for all of them)."""

from __future__ import annotations

import json
import os

import pytest

pytest.importorskip("transformers", reason="the extra llm is not installed")

from supported.architectures import ARCHITECTURES
from supported.examine import PAGE, TABLE, examine, page

ALL = os.environ.get("PVOPT_ALL_MODELS") == "1"
SOME = sorted(ARCHITECTURES) if ALL else ["gpt2", "mixtral"]


@pytest.mark.parametrize("kind", SOME)
def test_the_row_of_a_model_is_what_happens(kind):
    assert examine(kind) == json.loads(TABLE.read_text())[kind]


def test_the_page_shows_the_table():
    table = json.loads(TABLE.read_text())
    assert sorted(table) == sorted(ARCHITECTURES)
    assert len(table) >= 30
    assert PAGE.read_text() == page(table)
