"""Compilation of the Triton kernels without a GPU, and the resources that they would use.

Every module in :mod:`pvopt_kernels.triton` has a function ``compile_specs()`` that lists the
variants of its kernels (dtypes, block sizes, warps). They are compiled for any target that Triton
knows; registers, spills and shared memory are read from what the assemblers report.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pvopt_kernels.triton._compile_spec import CompileSpec

__all__ = ["TARGETS", "Resources", "Target", "compile_spec", "discover"]


@dataclass(frozen=True)
class Target:
    """A GPU to compile for, and what one of its multiprocessors has.

    Args:
        name: architecture, as Triton calls it.
        backend: ``cuda`` or ``hip``.
        arch: 80, 90 or a name.
        warp_size: threads of a warp.
        shared_limit: bytes of shared memory that a block may use.
        shared_memory: bytes of shared memory of a multiprocessor.
        registers: 32-bit registers of a multiprocessor.
        register_step: registers of a thread are allocated in these units.
        max_warps: warps of a multiprocessor.
        max_blocks: blocks of a multiprocessor.
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_limit: int
    shared_memory: int
    registers: int
    register_step: int
    max_warps: int
    max_blocks: int


# CUDA C++ programming guide, table of technical specifications per compute capability (8.0, 9.0);
# CDNA 3 instruction set guide (512 vector registers and at most 8 waves per SIMD, four SIMDs).
TARGETS = {
    "sm_80": Target("sm_80", "cuda", 80, 32, 163 << 10, 164 << 10, 1 << 16, 8, 64, 32),
    "sm_90": Target("sm_90", "cuda", 90, 32, 227 << 10, 228 << 10, 1 << 16, 8, 64, 32),
    "gfx942": Target("gfx942", "hip", "gfx942", 64, 64 << 10, 64 << 10, 4 * 512 * 64, 8, 32, 16),
}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses.

    Args:
        registers: 32-bit registers of a thread.
        spills: what did not fit into them: registers on AMD, on NVIDIA bytes of the stack frame
            (no spill goes without one).
        shared: bytes of shared memory of a block.
        blocks: blocks that fit on a multiprocessor at once.
        occupancy: share of the multiprocessor's warps that they fill.
    """

    registers: int
    spills: int
    shared: int
    blocks: int
    occupancy: float


def discover() -> dict[str, list[CompileSpec]]:
    """Return the variants of every module in :mod:`pvopt_kernels.triton`.

    Raises:
        AttributeError: if a module has no ``compile_specs``.

    Example:
        >>> from pvopt_kernels.tools.ahead_of_time import discover
        >>> specs = discover()  # doctest: +SKIP
    """
    package = importlib.import_module("pvopt_kernels.triton")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):  # parts that several kernels share
            module = importlib.import_module(f"pvopt_kernels.triton.{info.name}")
            found[info.name] = list(module.compile_specs())
    return found


def compile_spec(spec: CompileSpec, target: Target) -> Resources:
    """Compile a variant, without a GPU, and return what it uses.

    Args:
        spec: the variant.
        target: what to compile for.

    Raises:
        RuntimeError: if kernels are interpreted in this process.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if knobs.runtime.interpret:
        raise RuntimeError("kernels cannot be compiled in a process that interprets them")
    names = spec.kernel.arg_names
    unknown = (set(spec.signature) | set(spec.constexprs)) ^ set(names)
    if unknown:
        raise ValueError(f"{spec}: signature and constexprs do not fit the kernel: {unknown}")
    signature = {name: spec.signature.get(name, "constexpr") for name in names}
    paths = _pointers(names, spec.signature)
    if spec.aligned is not None:
        paths = [(names.index(name),) for name in spec.aligned]
    attributes = {path: [["tt.divisibility", 16]] for path in paths}
    constants = {(names.index(name),): value for name, value in spec.constexprs.items()}
    source = ASTSource(spec.kernel, signature, constants, attributes)
    options = {
        "num_warps": spec.num_warps,
        "num_stages": spec.num_stages,
        "enable_fp_fusion": True,
    }
    gpu = GPUTarget(target.backend, target.arch, target.warp_size)
    kernel = triton.compile(source, target=gpu, options=options)
    if target.backend == "cuda":
        registers, spills = _cuda_usage(kernel.asm["cubin"])
    else:
        registers, spills = _amd_usage(kernel.asm["amdgcn"])
    shared = kernel.metadata.shared
    blocks = _blocks(target, spec.num_warps, registers, shared)
    occupancy = blocks * spec.num_warps / target.max_warps
    return Resources(registers, spills, shared, blocks, occupancy)


def _pointers(
    names: list[str], signature: Mapping[str, str | tuple[str, ...]]
) -> list[tuple[int, ...]]:
    """Return where the pointers are: numbers of arguments, and places in those that are tuples."""
    paths: list[tuple[int, ...]] = []
    for name, kind in signature.items():
        at = names.index(name)
        if isinstance(kind, str):
            paths += [(at,)] * kind.startswith("*")
        else:
            paths += [(at, place) for place, k in enumerate(kind) if k.startswith("*")]
    return paths


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    """Return registers of a thread, and bytes of its stack frame."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = knobs.nvidia.cuobjdump.path
        report = subprocess.run(
            [tool, "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cannot read the resource usage: {report}")
    return int(found[1]), int(found[2]) + int(found[3])


def _amd_usage(assembly: str) -> tuple[int, int]:
    """Return registers of a thread, and registers spilled (vector and scalar)."""
    values = {name: int(value) for name, value in re.findall(r"\.(\w+_count):\s+(\d+)", assembly)}
    spills = values["vgpr_spill_count"] + values["sgpr_spill_count"]
    return values["vgpr_count"] + values.get("agpr_count", 0), spills


def _blocks(target: Target, warps: int, registers: int, shared: int) -> int:
    """Return how many blocks fit on one multiprocessor at once."""
    per_thread = -(-registers // target.register_step) * target.register_step
    limits = [target.max_blocks, target.max_warps // warps]
    if per_thread:
        limits.append(target.registers // (per_thread * warps * target.warp_size))
    if shared:
        reserved = 1 << 10 if target.backend == "cuda" else 0  # by the driver, for each block
        limits.append(target.shared_memory // (shared + reserved))
    return min(limits)


def main(arguments: list[str] | None = None) -> int:
    """Compile the kernels of the modules named, or of all, and print what they use."""
    parser = argparse.ArgumentParser(prog="python -m pvopt_kernels.tools.ahead_of_time")
    parser.add_argument("modules", nargs="*", help="names in pvopt_kernels.triton; default all")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="default all")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args(arguments)
    failures = 0
    for module, specs in discover().items():
        if options.modules and module not in options.modules:
            continue
        for spec in specs:
            for name in options.target or TARGETS:
                target = TARGETS[name]
                used = compile_spec(spec, target)
                too_much = used.spills > 0 or used.shared > target.shared_limit
                failures += too_much
                if options.json:
                    row = {"module": module, "spec": str(spec), "target": name}
                    print(json.dumps(row | asdict(used) | {"fits": not too_much}), flush=True)
                else:
                    print(
                        f"{module:16} {name:7} {used.registers:4} registers "
                        f"{used.spills:4} spills {used.shared:7} B shared "
                        f"{used.occupancy:4.0%} {spec}{' TOO MUCH' if too_much else ''}",
                        flush=True,
                    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
