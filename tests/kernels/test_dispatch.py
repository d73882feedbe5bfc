"""Which implementation runs, and what pvopt_kernels imports."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import pvopt_kernels
from pvopt_kernels import dispatch
from pvopt_kernels.ops import group_sq_norms

PACKAGE = Path(pvopt_kernels.__file__).parent
X = torch.zeros(2, 2)


def test_a_cpu_tensor_does_not_reach_triton_by_itself(monkeypatch):
    monkeypatch.delenv("PVOPT_KERNELS", raising=False)
    assert dispatch.choose("group_sq_norms", X) in ("cpu", "reference")


def test_a_gpu_tensor_reaches_triton(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("PVOPT_KERNELS", raising=False)
    on_gpu = torch.zeros(2, 2, device="meta")  # any device that is not a CPU
    assert dispatch.choose("group_sq_norms", on_gpu) == "triton"
    assert dispatch.choose("group_sq_norms", on_gpu.double()) == "reference"
    monkeypatch.setenv("PVOPT_KERNELS", "reference")
    assert dispatch.choose("group_sq_norms", on_gpu) == "reference"


def test_a_value_that_is_no_implementation_is_refused(monkeypatch):
    monkeypatch.setenv("PVOPT_KERNELS", "cuda")
    with pytest.raises(
        ValueError, match="PVOPT_KERNELS must be one of reference, triton, cpu or unset, got 'cuda'"
    ):
        group_sq_norms(X, X)


def test_the_variable_is_read_at_every_call(monkeypatch):
    monkeypatch.setenv("PVOPT_KERNELS", "")
    group_sq_norms(X, X)
    monkeypatch.setenv("PVOPT_KERNELS", "nothing")
    with pytest.raises(ValueError, match="nothing"):
        group_sq_norms(X, X)
    monkeypatch.setenv("PVOPT_KERNELS", "reference")
    group_sq_norms(X, X)


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("PVOPT_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    with pytest.raises(ValueError, match="only with TRITON_INTERPRET=1"):
        group_sq_norms(X, X)


def test_every_operation_has_a_reference_and_no_implementation_is_without_an_operation():
    names = {path.stem for path in (PACKAGE / "ops").glob("[!_]*.py")}
    for kind in dispatch.KINDS:
        found = {path.stem for path in (PACKAGE / kind).glob("[!_]*.py")}
        assert found <= names, f"pvopt_kernels/{kind} has modules without an operation"
        if kind == "reference":
            assert names <= found, "operations without a reference"
    assert names <= set(pvopt_kernels.ops.__all__)


def test_no_module_imports_pvopt():
    for path in PACKAGE.rglob("*.py"):
        imports = re.findall(r"^\s*(?:from|import)\s+(pvopt)\b(?!_)", path.read_text(), re.M)
        assert not imports, f"{path} imports pvopt"


def test_imports_without_triton_and_without_pvopt():
    """The operations work, and nothing has tried to import either."""
    program = """
import sys
sys.modules["triton"] = None
sys.modules["pvopt"] = None
import torch
from pvopt_kernels.ops import group_sq_norms
assert group_sq_norms(torch.ones(1, 4), torch.zeros(1, 4), in_group=4).tolist() == [4.0]
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE.parent)


class Watch(TorchDispatchMode):
    """Lists the operations that torch's dispatcher sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_the_dispatcher_is_passed_by_only_where_it_has_no_part(monkeypatch):
    ran: list[bool] = []
    op = torch.library.custom_op("pvopt_test::plus", plus, mutates_args=())
    op.register_fake(lambda x: torch.empty_like(x))
    monkeypatch.setattr(op, "_init_fn", lambda x: ran.append(True) or plus(x))
    x = torch.ones(2)
    assert dispatch.call(op, x).tolist() == [2.0, 2.0]
    assert not ran  # gradients are enabled
    with torch.no_grad():
        assert dispatch.call(op, x).tolist() == [2.0, 2.0]
        assert dispatch.call(op, torch.nn.Parameter(x)).tolist() == [2.0, 2.0]
        assert len(ran) == 2
        with Watch() as watch:
            dispatch.call(op, x)
        assert watch.seen == ["pvopt_test::plus"]
        fake = FakeTensorMode().from_tensor(x)
        assert isinstance(dispatch.call(op, fake), FakeTensor)
        compiled = torch.compile(
            lambda x: dispatch.call(op, x) + 1, fullgraph=True, backend="eager"
        )
        assert compiled(x).tolist() == [3.0, 3.0]
    assert len(ran) == 2


class Special(torch.Tensor):
    """A tensor of a class of its own."""


def test_a_list_is_looked_into_for_special_tensors(monkeypatch):
    ran: list[bool] = []
    op = torch.library.custom_op("pvopt_test::first", first, mutates_args=())
    monkeypatch.setattr(op, "_init_fn", lambda xs: ran.append(True) or first(xs))
    x = torch.ones(2)
    with torch.no_grad():
        assert dispatch.call(op, [x, x]).tolist() == [1.0, 1.0]
        assert len(ran) == 1
        dispatch.call(op, [x, x.as_subclass(Special)])
    assert len(ran) == 1


def first(xs: list[torch.Tensor]) -> torch.Tensor:
    return xs[0].clone()


def plus(x: torch.Tensor) -> torch.Tensor:
    return x + 1
