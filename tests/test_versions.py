"""The files of versions in ``constraints`` fit the requirements in ``pyproject.toml``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"].values()
NEEDED = [Requirement(r) for group in (PROJECT["dependencies"], *EXTRAS) for r in group]


def versions(file: str) -> dict[str, Version]:
    lines = (ROOT / "constraints" / file).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    names = [name for name, _ in pins]  # one pin a line, no addresses, paths or local builds
    assert names == sorted({canonicalize_name(name) for name in names})
    assert all(re.fullmatch(r"[0-9][\w.]*", version) for _, version in pins)
    return {name: Version(version) for name, version in pins}


@pytest.mark.parametrize("needed", NEEDED, ids=lambda r: r.name)
def test_the_tested_version_is_allowed_and_the_oldest_one_is_the_minimum(needed):
    name = canonicalize_name(needed.name)
    assert versions("tested.txt")[name] in needed.specifier
    (least,) = [Version(s.version) for s in needed.specifier if s.operator == ">="]
    assert versions("oldest.txt")[name] == least
