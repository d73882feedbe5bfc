"""What the optimizer keeps for each quantized weight: the one place that names it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from pvopt.parametrizations.representation import Representation
from pvopt.rules.value_optimizers import ValueOptimizer

from .code_memory import CodeMemory, Share
from .dense_start import DenseStart

__all__ = ["WeightState"]

_STEP, _VALUES_STEP, _LATENT, _NAME = "step", "values_step", "latent", "name"
_LARGEST_LR, _CODE_STEP = "largest_lr", "code_step."
_MEMORY_PARTS = [f.name for f in fields(CodeMemory)]


class WeightState(dict[str, Any]):
    """The state of one weight, tensors and integers by name; ``pv.NAME`` in the optimizer's.

    ======================  ==================================================================
    ``step``                number of steps that the weight has taken
    ``values_step``         number of P steps among them
    ``codes.NAME``          the representation's own tensor of a stream
    ``values.NAME``         the representation's own tensor of a value
    ``moments.KIND.NAME``   what the values' optimizer keeps beside a value
    ``latent``              ``[*shape]``, the weight that collects all updates, if there is one
    ``name``                a checksum of the weight's name, by which a load notices another order
    ``largest_lr``          the largest learning rate so far
    ``code_step.PART``      the parts of :class:`CodeMemory`, where lengths are measured
    ======================  ==================================================================

    It is complete from the beginning, so that all ranks have equal keys.

    Args:
        rep: the weight's representation.
        rule: of the values, says which moments there are.
        name: of the weight.

    Example:
        >>> import torch
        >>> from pvopt import SGDValues, SharedValues
        >>> from pvopt.engine.state import WeightState
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
        >>> sorted(WeightState(rep, SGDValues()))
        ['codes.entries', 'largest_lr', 'name', 'step', 'values.values', 'values_step']
    """

    def __init__(self, rep: Representation, rule: ValueOptimizer, name: str = "") -> None:
        checksum = zlib.crc32(name.encode())
        super().__init__({_STEP: 0, _VALUES_STEP: 0, _LARGEST_LR: 0.0, _NAME: checksum})
        self.rep, self.rule = rep, rule
        self._staged: Share | None = None
        self._share: Share | None = None
        self._start: DenseStart | None = None  # of the latent weight, before the first step
        self.complete()

    def __reduce__(self) -> tuple[Any, ...]:
        shared = dict(self.rep.tensors())  # a copy has those of its own representation
        own = {k: v for k, v in self.items() if k not in shared}
        return _restored, (self.rep, self.rule, own, self._start)

    def complete(self) -> None:
        """Add what is missing, and point at the representation's present tensors."""
        for key, value in self._moving().items():
            if key not in self:
                self[key] = torch.zeros_like(value)
        self.update(self.rep.tensors())

    def _moving(self) -> dict[str, Tensor]:
        """Return the value that each moment belongs to, by the moment's key."""
        values = self.rep.values
        return {_moment(kind, n): v for n, v in values.items() for kind in self.rule.moments}

    @property
    def step(self) -> int:
        """Number of steps that the weight has taken."""
        return self[_STEP]

    @property
    def values_step(self) -> int:
        """Number of P steps among them."""
        return self[_VALUES_STEP]

    @property
    def largest_lr(self) -> float:
        """The largest learning rate so far."""
        return self[_LARGEST_LR]

    def count_step(self, lr: float) -> None:
        """Count a step of the weight, of a learning rate."""
        self[_STEP] += 1
        self[_LARGEST_LR] = max(lr, self[_LARGEST_LR])
        self._start = None
        if self._staged is not None:
            parts = self._staged.own.tensors()
            self.update({_CODE_STEP + name: part for name, part in parts.items()})
            self._share, self._staged = self._staged, None

    def count_values_step(self) -> int:
        """Count a P step; return its number, from 1."""
        self[_VALUES_STEP] += 1
        return self[_VALUES_STEP]

    def counters(self) -> tuple[int, int, bool]:
        """Return the numbers of steps and of P steps, and whether there is a latent weight."""
        return self.step, self.values_step, _LATENT in self

    def restore_counters(self, counters: tuple[int, int, bool]) -> None:
        """Set what :meth:`counters` returned."""
        self[_STEP], self[_VALUES_STEP], had_latent = counters
        self._staged = None
        if not had_latent:
            self.drop_latent()

    def moments(self) -> list[Tensor]:
        """Return what is kept beside all values."""
        return [self[key] for key in self._moving()]

    @torch.no_grad()
    def start_again(self) -> None:
        """Begin at the present codes and values, which others have set."""
        self[_VALUES_STEP] = 0
        for moment in self.moments():
            moment.zero_()
        if _LATENT in self and not self._at_dense:
            self[_LATENT].copy_(self.rep.decode())
        if _CODE_STEP + "changes" in self:  # lengths stay; there is no last move to learn from
            self[_CODE_STEP + "changes"].zero_()
            self[_CODE_STEP + "slopes"][:, 0].zero_()

    def moment(self, kind: str, name: str) -> Tensor:
        """Return what is kept beside a value."""
        return self[_moment(kind, name)]

    @property
    def _at_dense(self) -> bool:
        """Whether the latent weight is the dense one of the present codes and values."""
        return self._start is not None and self._start.is_of(self.rep, self[_LATENT])

    def begin_latent(self, start: DenseStart | None) -> None:
        """Let there be a latent weight.

        Args:
            start: where it begins; None for the decoded weight.
        """
        dense = None if start is None or _LATENT in self else start.take(self.rep)
        if dense is not None:
            self[_LATENT], self._start = dense, start
        self.latent()

    def latent(self) -> Tensor:
        """Return the latent weight ``[*shape]``, at first the decoded weight."""
        if _LATENT not in self:
            self[_LATENT] = self.rep.decode()
        return self[_LATENT]

    def drop_latent(self) -> None:
        """Forget the latent weight, if there is one."""
        self._start = None
        self.pop(_LATENT, None)

    def code_memory(self, selected: int = 0) -> CodeMemory:
        """Return what the length of steps on codes is measured by, at first nothing.

        Args:
            selected: number of groups that a step selects, to begin with.
        """
        names = _MEMORY_PARTS
        if _CODE_STEP + names[0] not in self:
            matrices = self.rep.matrices
            like, count = next(iter(matrices.values.values())), matrices.count
            self |= {
                _CODE_STEP + "length": like.new_ones(count, dtype=torch.float32),
                _CODE_STEP + "slopes": like.new_zeros(count, 3, dtype=torch.float32),
                _CODE_STEP + "groups": like.new_zeros(count, selected, dtype=torch.int64),
                _CODE_STEP + "changes": like.new_zeros(count, selected, matrices.layout.group_size),
            }
        return CodeMemory(**{name: self[_CODE_STEP + name] for name in names})

    def code_share(self) -> Share | None:
        """Return the part of :meth:`code_memory` in that of several weights; None: nobody knows."""
        share = self._share
        if share is None:
            return None
        parts = share.own.tensors().items()
        same = all(self.get(_CODE_STEP + name) is part for name, part in parts)
        return share if same else None

    def stage_code_memory(self, share: Share) -> None:
        """Keep for the next step what counts once this one is counted."""
        self._staged = share

    def by_row(self, key: str) -> bool:
        """Tell whether an entry has a part for each row of the weight."""
        kind, _, rest = key.partition(".")
        if kind in ("codes", _LATENT):
            return True
        name = rest.partition(".")[2] if kind == "moments" else rest
        common = self.rep.parametrization.common_values or ()
        return kind in ("values", "moments") and name not in common

    def assign(self, key: str, value: Any) -> None:
        """Set an entry; codes and values keep their tensors."""
        own = dict(self.rep.tensors()).get(key)
        if own is None:
            self[key] = value
        elif own is not value:
            own.copy_(value)

    def check(self, name: str, saved: Mapping[str, Any], num_groups: int) -> None:
        """Raise a ValueError unless a saved state fits the representation.

        Args:
            name: of the weight, for the message.
            saved: by the same names.
            num_groups: of the weight, with all of its rows.
        """
        rep, matrices = self.rep, self.rep.matrices
        shapes = {key: tuple(tensor.shape) for key, tensor in rep.tensors()}
        optional = {key: tuple(value.shape) for key, value in self._moving().items()}
        optional[_LATENT] = rep.shape
        groups = saved.get(_CODE_STEP + "groups")
        count = matrices.count
        selected = groups.numel() // count if isinstance(groups, Tensor) else 0
        optional |= {
            _CODE_STEP + "length": (count,),
            _CODE_STEP + "slopes": (count, 3),
            _CODE_STEP + "groups": (count, selected),
            _CODE_STEP + "changes": (count, selected, matrices.layout.group_size),
        }
        shapes |= {key: shape for key, shape in optional.items() if key in saved}
        for key, shape in shapes.items():
            found = saved.get(key)
            if not isinstance(found, Tensor) or tuple(found.shape) != shape:
                got = list(found.shape) if isinstance(found, Tensor) else found
                raise ValueError(
                    f"state_dict must hold {key} of shape {list(shape)} for {name!r} "
                    f"({rep.scheme}), got {got}"
                )
        if isinstance(groups, Tensor) and not groups.is_meta:
            last = num_groups // count - 1
            wrong = groups.dtype != torch.int64
            beyond = groups[:0] if wrong else groups[(groups < 0) | (groups > last)]
            if wrong or len(beyond):
                raise ValueError(
                    f"state_dict must hold int64 in 0..{last} in {_CODE_STEP}groups of {name!r}, "
                    f"got {groups.dtype if wrong else int(beyond[0])}"
                )
        try:
            rep.check_codes({stream: saved[f"codes.{stream}"] for stream in rep.codes})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"state_dict must hold codes for {name!r} of {rep.scheme}: {error}"
            ) from error

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Overwrite the state losslessly; the representation's tensors keep their identity.

        Moments of another rule for the values are left out, missing ones begin at 0.
        """
        for key, tensor in self.rep.tensors():
            tensor.copy_(saved[key])
        name = self[_NAME]
        self.clear()
        self.update({key: int(saved.get(key, 0)) for key in (_STEP, _VALUES_STEP)})
        self[_NAME] = name
        self[_LARGEST_LR] = float(saved.get(_LARGEST_LR, 0.0))
        self._staged = self._start = None
        kept = [_CODE_STEP + name for name in _MEMORY_PARTS]
        for key in (*self._moving(), _LATENT, *(kept if kept[0] in saved else ())):
            if key in saved:
                self[key] = saved[key].to(device=self.rep.device, copy=True)
        self.complete()


def _moment(kind: str, name: str) -> str:
    return f"moments.{kind}.{name}"


def _restored(
    rep: Representation, rule: ValueOptimizer, items: dict[str, Any], start: DenseStart | None
) -> WeightState:
    state = WeightState(rep, rule)
    state.update(items)
    state._start = start
    return state
