"""Every variant of every Triton kernel compiles for three GPUs, without spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pvopt_kernels

PACKAGE = Path(pvopt_kernels.__file__).parent
MODULES = sorted(path.stem for path in (PACKAGE / "triton").glob("[!_]*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_kernels_compile_without_spills_and_fit_into_shared_memory(module):
    """In a process of its own: this one interprets kernels."""
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "pvopt_kernels.ahead_of_time", module, "--json"],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    too_much = [row for row in rows if not row["fits"]]
    assert not too_much, "\n".join(map(str, too_much))
    assert run.returncode == 0, run.stderr[-3000:]
    assert {row["target"] for row in rows} == {"sm_80", "sm_90", "gfx942"}
    assert {row["module"] for row in rows} == {module}
