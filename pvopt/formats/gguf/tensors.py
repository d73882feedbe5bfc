"""The tensors of a file: blocks that are tuned as they are, and everything else dense."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pvopt.formats.errors import CheckpointError
from pvopt.parametrizations.representation import Representation

from .blocks import BLOCKS
from .container import Container
from .names import separated
from .representations import representation_of

__all__ = ["DENSE", "read_tensor"]

_NUMBERS = {block.number: block for block in BLOCKS.values()}
#: Types without blocks.
DENSE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
_DENSE_BACK = {number: dtype for dtype, number in DENSE.items()}


def read_tensor(container: Container, name: str, heads: int | None) -> Tensor | Representation:
    """Read a tensor, with rows in the order of the model.

    Args:
        container: the file.
        name: of the tensor there.
        heads: that its rows belong to, or None if they keep their order.

    Returns:
        Codes and values of a matrix of blocks that are tuned, float32 otherwise.

    Raises:
        CheckpointError: if the type is unknown, or there are too few bytes.
        ValueError: if the content or the shape does not fit the type.
    """
    stored = container.tensors[name]
    if stored.number in _DENSE_BACK:
        dtype = _DENSE_BACK[stored.number]
        content = container.bytes_of(name, math.prod(stored.shape) * dtype.itemsize)
        tensor = torch.from_numpy(content.copy()).view(dtype).reshape(stored.shape)
        return separated(tensor, heads).float()
    block = _NUMBERS.get(stored.number)
    if block is None or len(stored.shape) != 2:
        return separated(_decoded(container, name), heads)
    rows, columns = stored.shape
    if columns % block.size:
        raise ValueError(f"{name!r} has rows of {columns}, no multiple of {block.size}")
    width = columns // block.size * block.bytes
    content = container.bytes_of(name, rows * width)
    packed = torch.from_numpy(content.copy()).view(rows, width)
    return representation_of(block, block.unpack(separated(packed, heads)))


def _decoded(container: Container, name: str) -> Tensor:
    """Decode blocks that are not tuned."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    stored = container.tensors[name]
    *rows, columns = stored.shape
    try:
        kind = GGMLQuantizationType(stored.number)
        size, width = GGML_QUANT_SIZES[kind]
        content = container.bytes_of(name, math.prod(rows) * (columns // size) * width)
        if columns % size:
            raise ValueError(f"rows of {columns} are no multiple of {size}")
        decoded = dequantize(content.reshape(*rows, -1), kind)
    except CheckpointError:
        raise
    except Exception as error:  # of types that it does not know, whatever it raises
        raise CheckpointError(
            f"{container.file}: {name!r} has the type {stored.number}, which is not read ({error})"
        ) from error
    return torch.from_numpy(decoded).reshape(stored.shape)
