"""Whether the model still holds what codes and values decode to: noticed cheaply, told exactly."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.layout import matrix_shape
from pvopt.parametrizations.representation import Representation

from .placement import is_sharded
from .writing import write_decoded_

__all__ = ["Seen", "WeightsChangedError", "check_decoded", "differs", "record", "same_samples"]

# A sample takes every so-many-th entry: one in a row and one in a column at least, so that a row
# that was zeroed is noticed, and 0.2 % of a large weight. Small weights are kept whole.
_STRIDES = (1021, 509, 251, 127, 61, 31, 13, 7, 3)
_WHOLE = 4096


class WeightsChangedError(ValueError):
    """The model holds other weights than its codes and values decode to; nothing was changed."""

    @classmethod
    def of(cls, names: Sequence[str]) -> WeightsChangedError:
        """Return the error that names some weights and says what can be done."""
        listed = ", ".join(repr(name) for name in names[:8]) + (" ..." if len(names) > 8 else "")
        return cls(
            f"{listed}: the model no longer holds what codes and values decode to, something else "
            "wrote into it (a state dict, clamping, averaging, another process); nothing was "
            "changed. weights.refit_() takes the nearest codes to what the model holds, "
            "weights.restore(snapshot) goes back to codes and values that weights.snapshot() "
            "kept, weights.write_() goes back to the present ones, weights.broadcast_() takes "
            "those of the first process"
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """What a weight looked like when its decoded weight was last written.

    Args:
        parameter: the object, without keeping it alive.
        pointer: where its data were.
        version: counts what torch knows to have been written.
        data: ``[*shape]``, a view without history; each weight's takes a call of torch to make.
        sample: ``[n]``, a view of some entries.
        entries: ``[n]``, what they were: ``.data`` and other processes raise no version.
    """

    parameter: weakref.ref[Tensor]
    pointer: int
    version: int
    data: Tensor
    sample: Tensor
    entries: Tensor

    @classmethod
    def of(cls, parameter: Tensor, data: Tensor, sample: Tensor, entries: Tensor) -> Seen:
        """Note what a parameter looks like now."""
        own = weakref.ref(parameter), parameter.data_ptr(), parameter._version
        return cls(*own, data, sample, entries)

    def is_of(self, parameter: Tensor) -> bool:
        """Tell whether it is of this parameter, with these data."""
        same = self.parameter() is parameter and self.pointer == parameter.data_ptr()
        return same and self.data.stride() == parameter.stride()

    def untouched(self, parameter: Tensor) -> bool:
        """Tell whether nothing has been written, as far as torch knows."""
        return self.is_of(parameter) and self.version == parameter._version

    def same_entries(self, parameter: Tensor) -> bool:
        """Tell whether the sampled entries are what they were."""
        return torch.equal(_flat(_views(parameter)[1]), self.entries)


def record(seen: Sequence[Seen | None], parameters: Sequence[Tensor]) -> list[Seen]:
    """Note what weights look like that were just written.

    Args:
        seen: what was noted of each before.
        parameters: the weights.
    """
    views = [
        (known.data, known.sample) if known is not None and known.is_of(p) else _views(p)
        for known, p in zip(seen, parameters, strict=True)
    ]
    samples = [sample for _, sample in views]
    found: list[Seen | None] = [None] * len(samples)
    for places in _alike(samples):
        own = [samples[place] for place in places]
        entries = _joined(own).split([sample.numel() for sample in own])
        for place, part in zip(places, entries, strict=True):
            found[place] = Seen.of(parameters[place], *views[place], part)
    return [new for new in found if new is not None]


def same_samples(seen: Sequence[Seen]) -> list[Tensor]:
    """Tell whether the sampled entries of untouched weights are what they were.

    Returns:
        Scalars of bool, one for each device and dtype, which nobody has waited for.
    """
    flags = []
    for places in _alike([one.sample for one in seen]):
        now = _joined([seen[place].sample for place in places])
        flags.append((now == _joined([seen[place].entries for place in places])).all())
    return flags


@torch.no_grad()
def differs(parameter: Tensor, rep: Representation) -> bool:
    """Tell whether a weight differs from its decoded weight by more than rounding does.

    Two processors may round a sum differently; a unit in the last place is no other weight.
    """
    decoded = torch.empty_like(parameter)
    write_decoded_(rep, [decoded])
    if torch.equal(decoded, parameter):
        return False
    exact = torch.promote_types(parameter.dtype, torch.float32)
    size = decoded.abs()
    slack = size.to(exact) * torch.finfo(parameter.dtype).eps
    slack += 4 * torch.finfo(exact).eps * size.max()
    return not bool(((decoded.to(exact) - parameter).abs() <= slack).all())


def check_decoded(weights: Iterable[tuple[str, Tensor, Representation]]) -> None:
    """Raise unless every weight is its decoded weight.

    Args:
        weights: names, dense weights and representations.

    Raises:
        ValueError: for a sharded weight, of which this process holds some rows only.
        WeightsChangedError: naming those that are not.
    """
    wrong: list[str] = []
    for name, parameter, rep in weights:
        if is_sharded(parameter):
            raise ValueError(
                f"{name!r} is sharded: weights.gathered() returns representations of all rows, "
                "QuantizedWeights(model, found) binds them to a model that is not, and write_() "
                "decodes them into it"
            )
        if differs(parameter, rep):
            wrong.append(name)
    if wrong:
        raise WeightsChangedError.of(wrong)


def _views(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight without its history, and a sample of its entries.

    Of a weight with holes in its memory the sample is all of it.
    """
    data = parameter.data
    last = sum((size - 1) * step for size, step in zip(data.shape, data.stride(), strict=True))
    if last + 1 != data.numel():
        return data, data
    rows, columns = matrix_shape(data.shape)
    fits = (s for s in _STRIDES if s <= min(rows, columns) and columns % s)
    stride = 1 if data.numel() <= _WHOLE else next(fits, 1)
    count = -(-data.numel() // stride)
    return data, data.as_strided((count,), (stride,), data.storage_offset())


def _flat(sample: Tensor) -> Tensor:
    return sample if sample.dim() == 1 else sample.flatten()


def _joined(samples: Sequence[Tensor]) -> Tensor:
    return torch.cat([_flat(sample) for sample in samples])


def _alike(samples: Sequence[Tensor]) -> Iterable[list[int]]:
    """Return places of the samples that can be compared together."""
    found: dict[object, list[int]] = {}
    for place, sample in enumerate(samples):
        found.setdefault((sample.device, sample.dtype), []).append(place)
    return found.values()
