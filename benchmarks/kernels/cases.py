"""The operations with their competitors, inputs and floors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from benchmarks.kernels.machine import Machine
from pvopt_kernels import ops, pack_rows
from pvopt_kernels.dispatch import available

__all__ = ["CASES", "SEED", "Case"]

SEED = 0
# Layers of a block of SmolLM2-135M, out by in.
SMOLLM2 = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]


@dataclass
class Case:
    """One operation on one input.

    Args:
        name: of the operation and its sizes.
        competitors: what computes it, ours first under the name "pvopt_kernels".
        error: how far a competitor's result is from the expected one; at most ``tolerance``.
        floor_s: seconds that the machine needs at least.
        floor: what the floor counts.
        targets: competitor to the factor by which ours should be faster.
    """

    name: str
    competitors: dict[str, Callable[[], object]]
    error: Callable[[object], float]
    floor_s: float
    floor: str
    targets: dict[str, float] = field(default_factory=dict)
    tolerance: float = 1e-4


def _weight(rows: int, columns: int, books: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, codebooks and scales of an additive weight with groups of 8."""
    source = torch.Generator().manual_seed(SEED)
    dtype = torch.uint8 if bits <= 8 else torch.int16
    codes = torch.randint(1 << bits, (rows, columns // 8, books), generator=source).to(dtype)
    codebooks = torch.randn(books, 1 << bits, 8, generator=source)
    return codes, codebooks, torch.rand(rows, 1, generator=source) + 0.5


def _relative(expected: Tensor) -> Callable[[object], float]:
    """Return the largest difference, in units of the largest entry."""
    size = float(expected.abs().max())

    def error(found: object) -> float:
        assert isinstance(found, Tensor)
        return float((found.double() - expected).abs().max()) / size

    return error


def _aqlm(weight: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Return the kernel for CPUs of the package ``aqlm``.

    Raises:
        ImportError: if the package is missing or does not fit the installed numba.
    """
    kernel = importlib.import_module("aqlm.inference_kernels.numba_kernel").numba_gemm_lut
    codes, books, scales = weight
    # The package keeps codes by input group, as int8, and a shape for each scale.
    by_input = codes.transpose(0, 1).contiguous().view(torch.int8)
    arguments = by_input, books[:, :, None], scales[:, :, None, None], None
    return lambda: kernel(x[None], *arguments)[0]


def matvec(machine: Machine, books: int, bits: int, *, quick: bool) -> Case:
    """Return the product of one token with a layer of Llama-2-7B."""
    rows, columns = (1024, 2048) if quick else (4096, 11008)
    codes, codebooks, scales = _weight(rows, columns, books, bits)
    x = torch.randn(columns, generator=torch.Generator().manual_seed(1))
    dense = ops.decode(codes, codebooks.double(), scales.double())
    error = _relative(dense @ x.double())
    single, half = dense.float(), dense.bfloat16()
    competitors: dict[str, Callable[[], object]] = {
        "pvopt_kernels": lambda: ops.matmul(x, codes, codebooks, scales),
        "dense float32": lambda: single @ x,
        "dense bfloat16": lambda: half @ x.bfloat16(),
    }
    if bits <= 8:
        try:
            competitors["aqlm"] = _aqlm((codes, codebooks, scales), x)
        except ImportError as problem:
            print(f"without the package aqlm: {problem}")
    targets = {"dense float32": 1.0} if bits > 8 else {"dense bfloat16": 1.5, "aqlm": 4.0}
    return Case(
        f"matvec {books}x{bits}g8 {rows}x{columns}",
        competitors,
        error,
        codes.nbytes / machine.read_bytes_per_s,
        "reading the codes",
        targets,
        tolerance=2e-2,  # the bfloat16 product's; ours is checked by the tests
    )


def assign(machine: Machine, entries: int, *, quick: bool) -> Case:
    """Return the search for the nearest entries of as many groups as a layer of SmolLM2 has."""
    n = 4096 if quick else 110592
    source = torch.Generator().manual_seed(SEED)
    points = torch.randn(n, 8, generator=source)
    book = torch.randn(entries, 8, generator=source)

    def chunked() -> Tensor:
        squares = book.square().sum(1)
        chunk = max(1, (1 << 24) // entries)
        parts = [torch.addmm(squares, p, book.T, alpha=-2).argmin(1) for p in points.split(chunk)]
        return torch.cat(parts)

    tree = KDTree(book.numpy())
    threads = torch.get_num_threads()
    competitors: dict[str, Callable[[], object]] = {
        "pvopt_kernels": lambda: ops.assign(points, book)[0][:, 0],
        "torch addmm + argmin": chunked,
        "SciPy KDTree": lambda: tree.query(points.numpy(), workers=threads)[1],
    }
    exact = (points.double() - book.double()[ops.assign(points, book)[0][:, 0]]).square().sum(1)

    def error(found: object) -> float:
        codes = torch.as_tensor(np.asarray(found))
        errors = (points.double() - book.double()[codes]).square().sum(1)
        return float((errors - exact).max() / exact.mean())

    return Case(
        f"assign K={entries} n={n}",
        competitors,
        error,
        2.0 * n * entries * 8 / machine.flops_per_s,
        "all distances as a product",
        {"torch addmm + argmin": 10.0 if entries > 256 else 2.0},
    )


def decode(machine: Machine, *, quick: bool) -> Case:
    """Return the decoding of all layers of SmolLM2-135M."""
    weights = [_weight(*shape, 2, 8) for shape in SMOLLM2]
    blocks = 2 if quick else 30
    outputs = [ops.decode(*weight) for weight in weights]
    copies = [torch.empty_like(output) for output in outputs for _ in range(blocks)]
    sources = [output.clone() for output in outputs for _ in range(blocks)]
    expected = [ops.decode(c, b.double(), s.double()) for c, b, s in weights]

    def ours() -> list[Tensor]:
        return [ops.decode(*weight) for weight in weights for _ in range(blocks)]

    def copy() -> list[Tensor]:
        return [target.copy_(source) for target, source in zip(copies, sources, strict=True)]

    def clone() -> list[Tensor]:
        return [source.clone() for source in sources]

    def error(found: object) -> float:
        assert isinstance(found, list)
        pairs = zip(found[::blocks], expected, strict=True)
        return max(float((a.double() - b).abs().max()) for a, b in pairs)

    written = sum(source.nbytes for source in sources)
    return Case(
        f"decode SmolLM2-135M, {blocks} blocks",
        {"pvopt_kernels": ours, "copy to new memory": clone, "copy to memory at hand": copy},
        error,
        2.0 * written / machine.copy_bytes_per_s,
        "copying the output",
        # Like for like: decoding returns new memory too, and most of the time may be its pages.
        {"copy to new memory": 0.5},
    )


def value_gradient(machine: Machine) -> Case:
    """Return the P step's sums for the largest layer of SmolLM2."""
    weight = _weight(1536, 576, 2, 8)
    gradient = torch.randn(1536, 576, generator=torch.Generator().manual_seed(1))
    codes, books, scales = weight
    expected = ops.codebook_grad(gradient.double(), codes, books.double(), scales.double())[0]
    reference = available("codebook_grad")["reference"]
    return Case(
        "codebook_grad 2x8g8 1536x576",
        {
            "pvopt_kernels": lambda: ops.codebook_grad(gradient, *weight)[0],
            "torch": lambda: reference(gradient, *weight, 1)[0],
        },
        _relative(expected),
        (gradient.nbytes + codes.nbytes) / machine.read_bytes_per_s,
        "reading gradient and codes",
    )


def beam(machine: Machine) -> Case:
    """Return the V step's search for 1 % of the groups of that layer."""
    source = torch.Generator().manual_seed(SEED)
    n, books, entries, width = 1106, 2, 256, 5
    target = torch.randn(n, 8, generator=source)
    codebooks = torch.randn(books, entries, 8, generator=source)
    codes = torch.randint(entries, (n, books), generator=source)
    reference = available("beam_search")["reference"]

    def run(search: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: search(target, codebooks, codes, 1, beam_size=width, order=[1, 0])[:, 0]

    def total(found: object) -> float:
        assert isinstance(found, Tensor)
        sums = codebooks[0, found[:, 0]] + codebooks[1, found[:, 1]]
        return float((target - sums).double().square().sum())

    expected = total(run(reference)())
    return Case(
        f"beam_search 2x8g8 n={n} beam {width}",
        {"pvopt_kernels": run(ops.beam_search), "torch": run(reference)},
        lambda found: abs(total(found) / expected - 1),
        2.0 * n * (1 + width) * entries * 8 / machine.flops_per_s,
        "all distances as a product",
    )


def e8p_assign(machine: Machine, k: int, *, quick: bool) -> Case:
    """Return the search for the nearest points of E8P, for the largest layer of SmolLM2."""
    n = 4096 if quick else 110592
    target = torch.randn(n, 8, generator=torch.Generator().manual_seed(SEED))
    reference = available("e8p_assign")["reference"]
    codes = reference(target.double(), k, metric=None)
    exact = (ops.e8p_decode(codes, torch.float64) - target[:, None]).square().sum(2)

    def error(found: object) -> float:
        """Compare errors: of points at equal distance any one may come first."""
        assert isinstance(found, Tensor)
        gaps = ops.e8p_decode(found, torch.float64) - target[:, None]
        return float((gaps.square().sum(2) - exact).abs().max())

    return Case(
        f"e8p_assign k={k} n={n}",
        {
            "pvopt_kernels": lambda: ops.e8p_assign(target, k),
            "torch": lambda: reference(target, k, metric=None),
        },
        error,
        2.0 * n * 512 * 8 / machine.flops_per_s,
        "errors of 512 vectors as a product",
        {"torch": 4.0},
    )


def grid_matvec(machine: Machine, bits: int, *, quick: bool) -> Case:
    """Return the product of one token with a packed uniform grid."""
    rows, columns = (1024, 2048) if quick else (4096, 11008)
    source = torch.Generator().manual_seed(SEED)
    packed = pack_rows(torch.randint(1 << bits, (rows, columns), generator=source), bits)
    steps, zeros = torch.rand(2, rows, columns // 128, generator=source)
    x = torch.randn(columns, generator=source)
    single = ops.uniform_decode(packed, steps, zeros, bits=bits, columns=columns)
    expected = single.double() @ x.double()
    reference = available("uniform_matmul")["reference"]
    return Case(
        f"matvec {bits} bits g128 {rows}x{columns}",
        {
            "pvopt_kernels": lambda: ops.uniform_matmul(
                x, packed, steps, zeros, bits=bits, columns=columns
            ),
            "torch": lambda: reference(x[None], packed, steps, zeros, bits, columns, False)[0],
            "dense float32": lambda: single @ x,
        },
        _relative(expected),
        packed.nbytes / machine.read_bytes_per_s,
        "reading the codes",
        {"torch": 10.0},
    )


CASES: dict[str, Callable[[Machine, bool], Case]] = {
    "2x8g8": lambda machine, quick: matvec(machine, 2, 8, quick=quick),
    "1x16g8": lambda machine, quick: matvec(machine, 1, 16, quick=quick),
    "grid": lambda machine, quick: grid_matvec(machine, 4, quick=quick),
    "assign-256": lambda machine, quick: assign(machine, 256, quick=quick),
    "assign-65536": lambda machine, quick: assign(machine, 65536, quick=quick),
    "decode": lambda machine, quick: decode(machine, quick=quick),
    "codebook_grad": lambda machine, quick: value_gradient(machine),
    "beam_search": lambda machine, quick: beam(machine),
    "e8p_assign-1": lambda machine, quick: e8p_assign(machine, 1, quick=quick),
    "e8p_assign-8": lambda machine, quick: e8p_assign(machine, 8, quick=quick),
}
