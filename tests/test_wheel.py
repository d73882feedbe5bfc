"""The wheel in environments that hold what it and one extra require, and nothing else.

No index is asked: an environment is a folder of links to the installed distributions that the
requirements of the wheel lead to.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

_PACKAGES = """
from importlib.util import find_spec
names = ("transformers", "numba", "triton", "sphinx", "altair", "tensorboard")
print([name for name in names if find_spec(name)])
"""
# What a user tries first, in one process: their own loop, the help, a command.
_TRIED = """
import torch, pvopt, pvopt.convex
layer = torch.nn.Linear(8, 8)
weights = pvopt.quantize_(layer, pvopt.UniformGrid(bits=2))
optimizer = pvopt.PVOptimizer(torch.optim.Adam(layer.parameters()), weights)
layer(torch.ones(1, 8)).sum().backward()
optimizer.step()
from pvopt.cli import main
try:
    main(["--help"])
except SystemExit as end:
    print("help ends with", end.code)
print("ends with", main(["eval", "--model", "tiny-llama", "--context", "16", "--windows", "1"]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy, as building leaves folders behind; return it unpacked."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "pvopt", "pvopt_kernels"):
        (source / name).symlink_to(ROOT / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (file,) = folder.glob("pvopt-*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def closure(requirements: Iterable[str], extras: Iterable[str]) -> dict[str, Distribution]:
    """Return the installed distributions that requirements lead to, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(text, tuple(extras)) for text in requirements]
    seen = set()
    while waiting:
        text, wanted = waiting.pop()
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": e}) for e in wanted or ("",)):
            continue
        key = requirement.name.lower(), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            dist = distribution(requirement.name)
        except PackageNotFoundError:  # the tests run without it
            continue
        found[key[0]] = dist
        waiting += [(text, (*requirement.extras, "")) for text in dist.requires or ()]
    return found


def environment(folder: Path, wheel: Path, extra: str | None) -> Path:
    """Make a folder of links to the wheel's packages and to what they require."""
    folder.mkdir()
    for path in wheel.iterdir():
        (folder / path.name).symlink_to(path)
    (info,) = wheel.glob("*.dist-info")
    required = PathDistribution(info).requires or ()
    for dist in closure(required, [extra or "", ""]).values():
        for top in {file.parts[0] for file in dist.files or () if file.parts[0] != ".."}:
            link, target = folder / top, Path(str(dist.locate_file(top)))
            if not link.exists() and target.exists() and not top.endswith(".pth"):
                link.symlink_to(target)
    return folder


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python where that folder is all there is beside the standard library."""
    path = f"import sys; sys.path.append({str(folder)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", path + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)


@pytest.mark.parametrize("extra", [None, "llm", "cpu", "kernels", "docs", "report", "tensorboard"])
def test_each_extra_brings_what_it_is_for(wheel, tmp_path, extra):
    folder = environment(tmp_path / "environment", wheel, extra)
    brought = {"llm": ["transformers"], "cpu": ["numba"], "kernels": ["triton"], "docs": ["sphinx"]}
    brought |= {"report": ["altair"], "tensorboard": ["tensorboard"]}
    assert python(folder, _PACKAGES).stdout.strip() == str(brought.get(extra, []))


def test_without_an_extra_only_the_command_line_is_refused(wheel, tmp_path):
    tried = python(environment(tmp_path / "environment", wheel, None), _TRIED)
    assert tried.stdout.splitlines()[-2:] == ["help ends with 0", "ends with 2"]
    sentence = r"this needs the package \w+, which is not installed: pip install 'pvopt\[llm\]'"
    assert re.fullmatch(rf"pvopt: error: {sentence}\n", tried.stderr)


def test_the_extra_llm_brings_the_command_line(wheel, tmp_path):
    tried = python(environment(tmp_path / "environment", wheel, "llm"), _TRIED)
    assert tried.stdout.splitlines()[-1] == "ends with 0"
    assert "\nperplexity " in tried.stdout
    assert "pip install" not in tried.stdout + tried.stderr


def test_the_wheel_holds_everything(wheel):
    for package in ("pvopt", "pvopt_kernels"):
        own, there = (
            {
                p.relative_to(base)
                for p in (base / package).rglob("*")
                if p.suffix in (".py", ".pyi", ".jinja")
            }
            for base in (ROOT, wheel)
        )
        assert own == there
        assert (wheel / package / "py.typed").exists()
