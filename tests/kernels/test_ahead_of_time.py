"""Every variant of every Triton kernel compiles for three GPUs, without spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

import pvopt_kernels

PACKAGE = Path(pvopt_kernels.__file__).parent
MODULES = sorted(path.stem for path in (PACKAGE / "triton").glob("[!_]*.py"))


# A process takes longer to start than to compile what is in a module.
@pytest.mark.parametrize("modules", [MODULES[start::4] for start in range(4)])
def test_kernels_compile_without_spills_and_fit_into_shared_memory(modules):
    """In a process of its own: this one interprets kernels."""
    triton = pytest.importorskip("triton")
    # Tiles were chosen with Triton 3.9. Some kernels spill with releases before 3.8, which take
    # products of at least 16 columns.
    tuned = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)
    run = subprocess.run(
        [sys.executable, "-m", "pvopt_kernels.tools.ahead_of_time", *modules, "--json"],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    too_much = [row for row in rows if not row["fits"]]
    assert not (too_much and tuned), "\n".join(map(str, too_much))
    assert run.returncode == (1 if too_much else 0), run.stderr[-3000:]
    assert "Traceback" not in run.stderr, run.stderr[-3000:]
    compiled = {(row["module"], row["target"]) for row in rows}
    assert compiled == set(product(modules, ("sm_80", "sm_90", "gfx942")))
