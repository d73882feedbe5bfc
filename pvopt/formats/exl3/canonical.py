"""Which representations are layers of EXL3, and the one form that all of these have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import SPACE, Scheme
from pvopt.parametrizations.trellis import Trellis
from pvopt.parametrizations.trellis_orders import MMA
from pvopt.spaces import Chain, Padding, Rotation, Scaling
from pvopt.spaces.contract import Space
from pvopt.spaces.rotation import random_signs

from .tiles import TILE

__all__ = ["BLOCK", "CODES", "canonical", "canonical_space", "canonical_trellis", "check_scheme"]

#: Rows and columns that a rotation mixes; sizes of layers are filled up to multiples of it.
BLOCK = 128
#: The codes that it has, and the constant by which a file says so.
CODES = {"3inst": None, "mcg": 0xCBAC1FED, "mul1": 0x83DCD12D}
_STATE_BITS = 16
_SPACES = (Padding, Scaling, Rotation)
# Its signs are part of the scales in a file: any will do.
_ROTATION = Rotation(block=BLOCK)


def canonical_trellis(bits: int, code: str) -> Trellis:
    """Return the trellis that every layer of some bits is."""
    return Trellis(
        bits=bits,
        state_bits=_STATE_BITS,
        code=code,
        out_group=TILE,
        in_group=TILE,
        order=MMA,
        per_tensor=True,
    )


def canonical_space() -> Chain:
    """Return the space that every layer is in."""
    padding = Padding(rows=BLOCK, columns=BLOCK, free=False)
    return Chain((padding, Scaling(inputs=True, outputs=True, weighted=False), _ROTATION))


def check_scheme(scheme: Scheme) -> None:
    """Raise unless weights of a scheme can be stored.

    Raises:
        ValueError: the message says why not, and what can be.
    """
    found = scheme.parametrization
    example = Scheme(canonical_trellis(2, "mul1"), canonical_space()).name
    if not isinstance(found, Trellis):
        raise ValueError(f"only trellises can be stored ({example})")
    reasons = (
        (found.state_bits != _STATE_BITS, f"its states have {found.state_bits} bits"),
        (found.code not in CODES, f"its code is {found.code}"),
        (found.order != MMA, "its tiles are not those of matrix units"),
        (not found.per_tensor, "it has scales for its rows inside of the rotation"),
        (not _storable(scheme.space.parts), f"its space is {scheme.space.name or 'the weight'}"),
    )
    for wrong, reason in reasons:
        if wrong:
            raise ValueError(f"{reason}, {example} can be stored")


def _storable(parts: Sequence[Space]) -> bool:
    """Tell whether spaces are padding and scales, if any, around a rotation in blocks."""
    places = [_SPACES.index(type(part)) for part in parts if type(part) in _SPACES]
    if len(places) < len(parts) or sorted({*places}) != places or not parts:
        return False
    rotation = parts[-1]
    sizes = {(p.rows, p.columns) for p in parts if isinstance(p, Padding)}
    return isinstance(rotation, Rotation) and rotation.block == BLOCK and sizes <= {(BLOCK, BLOCK)}


def canonical(rep: Representation) -> Representation:
    """Return the same weight in the one form that layers of EXL3 have.

    The scale of the tensor becomes one of the outputs', so that weights may change in their last
    bit.

    Args:
        rep: of a scheme that can be stored.
    """
    scale = rep.values["scales"]
    values: dict[str, Tensor] = {"scales": torch.ones_like(scale)}
    for axis, name in ((1, "input_scales"), (0, "output_scales")):
        size = rep.inner_shape[axis]
        own = [value for key, value in rep.values.items() if key.endswith(f".{name}")]
        scales = own[0] if own else torch.ones(size, dtype=rep.dtype, device=rep.device)
        rotation = rep.space.parts[-1]
        assert isinstance(rotation, Rotation)
        if rotation != _ROTATION:
            signs = random_signs(rotation.seed, axis, size) * random_signs(0, axis, size)
            scales = scales * signs.to(scales)
        values[f"{SPACE}1.{name}"] = scales
    values[f"{SPACE}1.output_scales"] = values[f"{SPACE}1.output_scales"] * scale[0]
    trellis = rep.parametrization
    space = canonical_space()
    return Representation(trellis, rep.codes, values, rep.shape, space, check=False)
