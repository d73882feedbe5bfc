"""What each kernel must read, write and compute on layers of Llama models: counted, not timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LAYERS", "Layer", "Work", "workloads"]


@dataclass(frozen=True)
class Layer:
    """A linear layer.

    Args:
        model: name of the model.
        name: name of the layer, or of several of one size.
        rows: outputs.
        columns: inputs.
    """

    model: str
    name: str
    rows: int
    columns: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.columns


LAYERS = [
    Layer("Llama-2-7B", "q k v o", 4096, 4096),
    Layer("Llama-2-7B", "gate up", 11008, 4096),
    Layer("Llama-2-7B", "down", 4096, 11008),
    Layer("Llama-3-8B", "k v", 1024, 4096),
    Layer("Llama-3-8B", "gate up", 14336, 4096),
    Layer("Llama-3-8B", "down", 4096, 14336),
    Layer("Llama-3-70B", "q o", 8192, 8192),
    Layer("Llama-3-70B", "k v", 1024, 8192),
    Layer("Llama-3-70B", "gate up", 28672, 8192),
    Layer("Llama-3-70B", "down", 8192, 28672),
]


@dataclass(frozen=True)
class Work:
    """One call of an operation.

    Args:
        operation: its name in ``pvopt_kernels.ops``.
        case: format and sizes.
        kernel: the function that does most of it, and
        variant: the label of the variant that is compiled for it.
        memory: bytes read from and written to the GPU's memory, each once.
        operations: multiplications and additions.
        tensor_cores: whether the operations run there, in 16 bits.
        on_chip: bytes that are read from codebooks in caches or shared memory.
        settings: what :mod:`benchmarks.kernels.calls` needs to make such a call.
    """

    operation: str
    case: str
    kernel: str
    variant: str
    memory: float
    operations: float
    tensor_cores: bool = False
    on_chip: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


GROUP = 8
TILE, TRELLIS_BITS, TRELLIS_STATE_BITS = 256, 2, 12
SELECTED = 0.01  # share of the groups that a V step searches
BEAMS = 8


def workloads(layer: Layer) -> Iterator[Work]:
    """Yield what the operations do for a layer: dense weights in float32 are tuned, codes serve.

    Args:
        layer: the layer.

    Example:
        >>> work = next(workloads(Layer("m", "l", 4, 8)))
        >>> work.operation, work.memory
        ('group_sq_norms', 272.0)
    """
    yield from _v_step(layer)
    yield from _p_step(layer)
    yield from _serving(layer)
    yield from _grids(layer)


def _v_step(layer: Layer) -> Iterator[Work]:
    groups = layer.weights / GROUP
    yield Work(
        "group_sq_norms",
        "1x8 float32",
        "group_sq_norms_kernel",
        "fp32 1x8",
        2 * 4 * layer.weights + 4 * groups,
        3 * layer.weights,
    )
    yield Work(
        "decoded_sq_norms",
        "2x8g8 float32",
        "decoded_sq_norms_kernel",
        "fp32 2x8g8",
        4 * layer.weights + 2 * groups + 4 * groups,
        5 * layer.weights,
        on_chip=4 * 2 * groups * GROUP,
    )
    n = SELECTED * groups
    yield Work(
        "gather_groups",
        f"1x8 float32 {SELECTED:.0%} of the groups",
        "groups_kernel",
        "fp32 1x8",
        n * (2 * 4 * GROUP + 8),
        0,
        settings={"share": SELECTED},
    )
    for entries, share in ((256, 1.0), (65536, SELECTED), (65536, 1.0)):
        n = share * groups
        yield Work(
            "assign",
            f"K={entries} g={GROUP} {share:.0%} of the groups",
            "assign_kernel",
            "fp32 g=8 k=1",
            n * (4 * GROUP + 12) + 4 * entries * GROUP,
            2 * GROUP * entries * n,
            settings={"entries": entries, "share": share},
        )
    n = SELECTED * groups
    # The first codebook is searched for one beam, the second for all of them.
    yield Work(
        "beam_search",
        f"2x8g8 {BEAMS} beams {SELECTED:.0%} of the groups",
        "beam_search_kernel",
        "fp32 g=8 M=2 beams=8",
        n * (4 * GROUP + 2 * 8 * (1 + BEAMS)),
        2 * GROUP * 256 * (1 + BEAMS) * n,
        settings={"share": SELECTED, "beams": BEAMS},
    )


def _p_step(layer: Layer) -> Iterator[Work]:
    groups = layer.weights / GROUP
    for name, books, code_bytes in (("2x8g8", 2, 1), ("1x16g8", 1, 2)):
        codes = books * code_bytes * groups
        lookups = books * groups * GROUP
        kind = "fp32 2x8g8" if books == 2 else "fp16 1x16g8"
        wide = 4 if books == 2 else 2  # bytes of an entry of the variant that is compiled
        yield Work(
            "decode",
            f"{name} to {8 * wide} bits",
            "decode_kernel",
            kind,
            codes + wide * layer.weights,
            (books + 1) * layer.weights,
            on_chip=wide * lookups,
            settings={"books": books, "bits": 8 * code_bytes, "dtype": kind[:4]},
        )
        # The gradient is read for the scales and, in the order of the codes, for each codebook.
        yield Work(
            "codebook_grad",
            f"{name} float32",
            "segment_kernel",
            "fp32 1x8",
            codes + 4 * layer.weights * (1 + books) + 8 * books * groups,
            (2 * books + books + 1) * layer.weights,
            on_chip=4 * lookups,
            settings={"books": books, "bits": 8 * code_bytes, "dtype": "fp32"},
        )


def _serving(layer: Layer) -> Iterator[Work]:
    groups = layer.weights / GROUP
    for name, books, code_bytes in (("2x8g8", 2, 1), ("1x16g8", 1, 2)):
        for tokens in (1, 16, 4096):
            kernel = "matvec_kernel" if tokens == 1 else "matmul_kernel"
            variant = "bf16 2x8g8" if books == 2 else "fp16 1x16g8"
            yield Work(
                "matmul",
                f"{name} 16 bits {tokens} token{'s' * (tokens > 1)}",
                kernel,
                variant if tokens == 1 else f"{variant}, {tokens} tokens",
                books * code_bytes * groups + 2 * tokens * (layer.rows + layer.columns),
                2 * tokens * layer.weights,
                tensor_cores=tokens > 1,
                on_chip=2 * books * groups * GROUP,
                settings={
                    "books": books,
                    "bits": 8 * code_bytes,
                    "dtype": variant[:4],
                    "tokens": tokens,
                },
            )


def _grids(layer: Layer) -> Iterator[Work]:
    for bits, tensors, variant in ((2, 2, "bf16 2 bits"), (4, 1, "fp16 4 bits, symmetric")):
        codes = bits / 8 * layer.weights
        values = tensors * 2 * layer.weights / 128  # scales, and zero points, of 128 weights
        yield Work(
            "uniform_matmul",
            f"{variant}, 1 token",
            "matvec_kernel",
            variant,
            codes + values + 2 * (layer.rows + layer.columns),
            4 * layer.weights,
            settings={"bits": bits, "dtype": variant[:4], "zeros": tensors == 2},
        )
    groups = layer.weights / GROUP
    yield Work(
        "e8p_decode",
        "to float32",
        "e8p_decode_kernel",
        "u8 fp32",
        groups * (2 + 4 * GROUP),
        groups * GROUP * 2,
        on_chip=groups * GROUP,
        settings={"dtype": "fp32"},
    )
    # Two shifts and 256 absolute vectors, each a product of 8 and a minimum for the parity.
    n = SELECTED * groups
    yield Work(
        "e8p_assign",
        f"{SELECTED:.0%} of the groups",
        "e8p_assign_kernel",
        "fp32",
        n * (4 * GROUP + 16),
        n * 2 * 256 * 3 * GROUP,
        settings={"share": SELECTED},
    )
    yield Work(
        "trellis_decode",
        "to float32",
        "trellis_decode_kernel",
        "u8 fp32",
        5 * layer.weights,
        layer.weights,
        on_chip=4 * layer.weights,
    )
    # Every weight meets every state twice: a difference, a square, a weight and a sum.
    n = SELECTED * layer.weights
    yield Work(
        "trellis_search",
        f"{SELECTED:.0%} of the tiles",
        "trellis_search_kernel",
        f"fp32 B={TRELLIS_BITS} L={TRELLIS_STATE_BITS} V=1 metric circular",
        n * 16,
        n * 2 * 4 * 2**TRELLIS_STATE_BITS,
        settings={"share": SELECTED},
    )
    columns = 1 << (layer.columns.bit_length() - 1)
    if columns == layer.columns:
        yield Work(
            "hadamard",
            "rows, float32",
            "hadamard_kernel",
            "fp32 1024",
            8 * layer.weights,
            layer.weights * (columns.bit_length() - 1),
        )
