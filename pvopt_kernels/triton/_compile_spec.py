"""One variant of a kernel, as ``pvopt_kernels.tools.ahead_of_time`` compiles it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CompileSpec"]


@dataclass(frozen=True)
class CompileSpec:
    """One variant of a kernel.

    Args:
        kernel: the function decorated by ``triton.jit`` (not the autotuner around it).
        signature: types of the arguments that are not constants, such as ``{"x": "*fp32",
            "n": "i32"}``; a tuple of types for an argument that is a tuple.
        constexprs: values of the arguments annotated ``tl.constexpr`` (and of pointers that are
            None).
        label: distinguishes the variants, such as ``"bf16 g=8 K=256"``.
        num_warps: warps of a block.
        num_stages: stages of software pipelining.
        aligned: arguments that are multiples of 16 (pointers: of 16 bytes); None stands for all
            pointers, which is what torch allocates.
    """

    kernel: Any
    signature: Mapping[str, str | tuple[str, ...]]
    constexprs: Mapping[str, Any]
    label: str
    num_warps: int = 4
    num_stages: int = 2
    aligned: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return f"{self.kernel.__name__}[{self.label}, {self.num_warps} warps]"
