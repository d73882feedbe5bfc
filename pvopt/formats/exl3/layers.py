"""One layer in a file of EXL3."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import SPACE
from pvopt.parametrizations.trellis import Trellis
from pvopt.spaces.rotation import random_signs

from .canonical import BLOCK, CODES, canonical, canonical_space, canonical_trellis
from .tiles import TILE, pack_tiles, unpack_tiles

__all__ = ["PARTS", "misfit", "read_layer", "write_layer"]

#: What the name of a layer is followed by; of the last three a layer has some or none.
TRELLIS = ".trellis"
PARTS = (TRELLIS, ".suh", ".svh", ".mcg", ".mul1")
_HALVES = (".svh", ".suh")


def misfit(rep: Representation) -> str | None:
    """Return why the values of a layer cannot be stored, or None."""
    if not bool((rep.values["scales"] == 1).all()):
        return (
            "its scale of the tensor is not 1, which is to be one of the outputs' scales: pvopt "
            "export sees to it"
        )
    for name, scales in zip(_HALVES, _stored_scales(rep), strict=True):
        half = scales.half()
        wrong = (half.to(scales.dtype) != scales) | ~half.isfinite()
        if bool(wrong.any()):
            side = "outputs" if name == ".svh" else "inputs"
            return (
                f"its scales of {side} are no float16 numbers (such as {float(scales[wrong][0])!r})"
                ": round them (pvopt export --dtype float16)"
            )
    return None


def _stored_scales(rep: Representation) -> list[Tensor]:
    """Return the scales of outputs and inputs with the signs of the rotation."""
    found = canonical(rep).values
    parts = []
    for axis, name in enumerate(("output_scales", "input_scales")):
        scales = found[f"{SPACE}1.{name}"].detach().cpu()
        parts.append(scales * random_signs(0, axis, len(scales)).to(scales))
    return parts


def write_layer(layer: str, rep: Representation) -> dict[str, Tensor]:
    """Return the tensors of a layer by name; the tiles of an input lie in a row."""
    trellis = rep.parametrization
    assert isinstance(trellis, Trellis)
    symbols = rep.codes["symbols"].transpose(0, 1)
    found = {f"{layer}{TRELLIS}": pack_tiles(symbols, trellis.bits)}
    halves = zip(_HALVES, _stored_scales(rep), strict=True)
    found |= {f"{layer}{name}": scales.half() for name, scales in halves}
    constant = CODES[trellis.code]
    if constant is not None:
        found[f"{layer}.{trellis.code}"] = torch.tensor(constant - (1 << 32), dtype=torch.int32)
    return found


def read_layer(layer: str, tensors: Mapping[str, Tensor]) -> Representation:
    """Return codes and values of a layer, of the size that it is filled up to.

    Raises:
        KeyError: if a tensor is missing.
        ValueError: if one does not fit.
    """
    words, columns, rows = (tensors[layer + part] for part in PARTS[:3])
    if words.dim() != 3 or words.dtype != torch.int16:
        raise ValueError(
            f"{layer}{TRELLIS} must be torch.int16 of shape [inputs / {TILE}, outputs / {TILE}, "
            f"{TILE} * bits], got {words.dtype} of shape {list(words.shape)}"
        )
    inputs, outputs, width = words.shape[0] * TILE, words.shape[1] * TILE, words.shape[2]
    bits = width // TILE
    if width % TILE or not 1 <= bits <= 8:
        raise ValueError(
            f"{layer}{TRELLIS} has {width} words in a tile, {width / TILE:g} bits of a weight; 1, "
            "2 ... 8 are read"
        )
    for name, size, scales in ((".suh", inputs, columns), (".svh", outputs, rows)):
        if size % BLOCK or not size:
            raise ValueError(f"{layer}{TRELLIS} has {size} channels, no multiple of {BLOCK}")
        if tuple(scales.shape) != (size,) or scales.dtype != torch.float16:
            raise ValueError(
                f"{layer}{name} must be torch.float16 of shape [{size}], got {scales.dtype} of "
                f"shape {list(scales.shape)}"
            )
    trellis = canonical_trellis(bits, _code(layer, tensors))
    values = {"scales": torch.ones(1, 1)}
    for axis, name, scales in ((1, "input_scales", columns), (0, "output_scales", rows)):
        signs = random_signs(0, axis, len(scales))
        values[f"{SPACE}1.{name}"] = scales.float() * signs
    symbols = unpack_tiles(words, bits).transpose(0, 1).contiguous()
    return Representation(
        trellis, {"symbols": symbols}, values, (outputs, inputs), canonical_space()
    )


def _code(layer: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the code that a layer names; the first one where it names none."""
    named = {code: tensors[f"{layer}.{code}"] for code in CODES if f"{layer}.{code}" in tensors}
    if len(named) > 1:
        raise ValueError(f"{layer} must name one code, got {', '.join(named)}")
    for code, constant in named.items():
        if constant.numel() != 1 or constant.dtype != torch.int32:
            raise ValueError(
                f"{layer}.{code} must be one torch.int32, got {constant.dtype} of shape "
                f"{list(constant.shape)}"
            )
        if int(constant) & 0xFFFFFFFF != CODES[code]:
            raise ValueError(
                f"{layer}.{code} must be {CODES[code]:#x}, got {int(constant) & 0xFFFFFFFF:#x}"
            )
        return code
    return next(iter(CODES))
