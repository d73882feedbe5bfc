"""The theory needs NumPy and SciPy, nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pvopt.convex

ROOT = Path(pvopt.convex.__file__).parent


def test_no_module_imports_torch_or_the_rest_of_the_package():
    for file in sorted(ROOT.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
                assert roots <= {"numpy", "scipy"}, file
            elif isinstance(node, ast.ImportFrom):
                root = (node.module or "").split(".")[0]
                allowed = node.level == 1 or root in {
                    "__future__",
                    "abc",
                    "collections",
                    "dataclasses",
                    "functools",
                    "numpy",
                    "scipy",
                    "typing",
                }
                assert allowed, (file, ast.unparse(node))


def test_imports_without_torch():
    code = "import sys; sys.modules['torch'] = None; import pvopt.convex"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_documented():
    for name in pvopt.convex.__all__:
        assert getattr(pvopt.convex, name).__doc__, name
