"""One layer in a file of AQLM."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pvopt.core.validation import check_integer
from pvopt.parametrizations.additive_codebooks import AdditiveCodebooks
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.vector_codebook import VectorCodebook

__all__ = ["PARTS", "codebooks_of", "codebooks_of_settings", "read_layer", "write_layer"]

#: What the name of a layer is followed by.
CODES = ".codes"
PARTS = (CODES, ".codebooks", ".scales")


def codebooks_of(parametrization: Parametrization) -> AdditiveCodebooks:
    """Return the additive codebooks that a format is.

    Raises:
        ValueError: if it is none with one scale per row; the message says why.
    """
    found = parametrization
    if isinstance(found, VectorCodebook):
        found = AdditiveCodebooks(
            num_codebooks=1,
            bits=found.bits,
            in_group=found.group_size,
            scale_group=found.scale_group,
        )
    if not isinstance(found, AdditiveCodebooks):
        raise ValueError("only additive codebooks can be stored (2x8g8, vq:8g4)")
    if found.scale_group is not None:
        raise ValueError("only one scale per row can be stored, it has several")
    return found


def codebooks_of_settings(config: Mapping[str, object]) -> AdditiveCodebooks:
    """Return the codebooks of ``quantization_config``, whoever wrote it.

    Raises:
        TypeError: if a number is none.
        ValueError: if one is out of range.
    """
    numbers = {
        "num_codebooks": (config.get("num_codebooks", 1), 16),
        "nbits_per_codebook": (config.get("nbits_per_codebook", 16), 16),
        "in_group_size": (config.get("in_group_size", 8), 1024),
        "out_group_size": (config.get("out_group_size", 1), 1024),
    }
    for name, (number, most) in numbers.items():
        check_integer(name, number, 1, most)  # type: ignore[arg-type]
    number, bits, columns, rows = (int(n) for n, _ in numbers.values())  # type: ignore[call-overload]
    return AdditiveCodebooks(num_codebooks=number, bits=bits, in_group=columns, out_group=rows)


def write_layer(layer: str, rep: Representation) -> dict[str, Tensor]:
    """Return the tensors of a layer by name: codes are signed, of one or two bytes."""
    books = codebooks_of(rep.parametrization)
    signed = torch.int8 if books.bits <= 8 else torch.int16
    half = 1 << (books.bits - 1)
    codes = rep.codes["entries"].int()
    entries = rep.values["codebooks"]
    size = (books.num_codebooks, 1 << books.bits, books.out_group, books.in_group)
    return {
        f"{layer}{CODES}": torch.where(codes < half, codes, codes - 2 * half).to(signed).cpu(),
        f"{layer}.codebooks": entries.detach().cpu().reshape(size).contiguous(),
        f"{layer}.scales": rep.values["scales"].detach().cpu()[:, :, None, None].contiguous(),
    }


def read_layer(
    layer: str, books: AdditiveCodebooks, tensors: Mapping[str, Tensor]
) -> Representation:
    """Return codes and values of a layer.

    Raises:
        KeyError: if a tensor is missing.
        ValueError: if one does not fit.
    """
    codes, entries, scales = (tensors[layer + part] for part in PARTS)
    size = (books.num_codebooks, 1 << books.bits, books.out_group, books.in_group)
    signed = torch.int8 if books.bits <= 8 else torch.int16
    if codes.dim() != 3 or codes.shape[2] != books.num_codebooks or codes.dtype != signed:
        raise ValueError(
            f"{layer}{CODES} must be {signed} of shape [rows, columns, {books.num_codebooks}], "
            f"got {codes.dtype} of shape {list(codes.shape)}"
        )
    for name, tensor, shape in (
        ("codebooks", entries, size),
        ("scales", scales, (len(codes), 1, 1, 1)),
    ):
        if tuple(tensor.shape) != shape or tensor.dtype != entries.dtype:
            raise ValueError(
                f"{layer}.{name} must be {entries.dtype} of shape {list(shape)}, "
                f"got {tensor.dtype} of shape {list(tensor.shape)}"
            )
    shape = (len(codes) * books.out_group, codes.shape[1] * books.in_group)
    dtype = books.streams(shape)["entries"].dtype
    values = {
        "codebooks": entries.reshape(*size[:2], -1).clone(),
        "scales": scales[:, :, 0, 0].clone(),
    }
    unsigned = codes.int().remainder(1 << books.bits).to(dtype)
    return Representation(books, {"entries": unsigned}, values, shape)
