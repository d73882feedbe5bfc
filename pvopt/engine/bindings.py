"""Which representation belongs to which parameter."""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pvopt.parametrizations.representation import Representation
from pvopt.rules.value_optimizers import ValueOptimizer

from .agreement import Seen, WeightsChangedError
from .dense_start import DenseStart
from .placement import WHOLE, Placement
from .placing import placement_of
from .state import WeightState

__all__ = ["Binding", "NamedRepresentations", "bindings_of", "check_owners", "check_precision"]

T = TypeVar("T")


@dataclass(eq=False)
class Binding:
    """One quantized weight of the optimizer.

    Weights are bound by name where there is a model: wrappers that replace the parameter objects
    of a model (FSDP2, Accelerate) keep working.

    Args:
        name: of the weight.
        find: returns its present parameter.
        locate: returns where its rows are now.
        rep: its codes and values.
        state: what the optimizer keeps for it.
        start: the dense weight that a latent weight begins at, if it was kept.
        placement: which rows of the weight codes and values are of.

    Attributes:
        owned: whether a group of the optimizer has had it.
        joined: whether it has taken a step or a state was loaded, so that its state is shown.
        seen: what the dense weight looked like when it was last written; None: nobody knows.
        versions: of its codes and values at that time, as torch counts what is written.
    """

    name: str
    find: Callable[[], nn.Parameter]
    locate: Callable[[], Placement]
    rep: Representation
    state: WeightState
    start: DenseStart | None = None
    placement: Placement = WHOLE
    owned: bool = field(default=False, init=False)
    joined: bool = field(default=False, init=False)
    seen: Seen | None = field(default=None, init=False)
    versions: int = field(default=-1, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"seen": None}  # a copy is of another parameter

    @property
    def parameter(self) -> nn.Parameter:
        """The present parameter."""
        return self.find()

    def move_(self, present: Collection[int]) -> bool:
        """Take up where the rows are now; tell whether that is elsewhere.

        Args:
            present: ``id`` of the parameters that the base optimizer has now.

        Raises:
            WeightsChangedError: if the weight has taken steps elsewhere, or the base optimizer has
                the parameter that it was.
        """
        found = self.locate()
        if found.key == self.placement.key:
            return False
        if self.state.step or (self.owned and id(self.parameter) not in present):
            raise WeightsChangedError(
                f"{self.name!r} has been sharded since the optimizer was made: call fully_shard "
                "first, then make the base optimizer and PVOptimizer, then load a checkpoint"
            )
        self.placement, self.seen, self.owned = found, None, False
        self.state = WeightState(self.rep, self.state.rule, self.name)
        return True

    def shown(self) -> dict[str, Any]:
        """Return what is kept for the weight, rows as the model's tensors are."""
        state = self.state
        state.complete()  # the representation may have got other tensors
        wrapped = self.placement.wrapped
        return {key: wrapped(v) if state.by_row(key) else v for key, v in state.items()}

    def taken(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return what :meth:`shown` has returned, in whatever process, for the rows of this one."""
        taken, by_row = self.placement.taken, self.state.by_row
        rows = {k for k, v in saved.items() if isinstance(v, Tensor) and v.dim() and by_row(k)}
        return {key: taken(value) if key in rows else value for key, value in saved.items()}

    def present_versions(self) -> int:
        """Return a number that grows with everything that is written into codes and values."""
        own = (*self.rep.codes.values(), *self.rep.values.values())
        return sum(tensor._version for tensor in own)

    @property
    def untouched(self) -> bool:
        """Whether nobody wrote into weight, codes or values since, as far as torch knows."""
        if self.seen is None or not self.seen.untouched(self.placement.entries(self.parameter)):
            return False
        return self.versions == self.present_versions()

    def data(self, parameter: nn.Parameter) -> Tensor:
        """Return the entries of its present parameter, without their history."""
        entries = self.placement.entries(parameter)
        if self.seen is not None and self.seen.is_of(entries):
            return self.seen.data
        return entries.data


@runtime_checkable
class NamedRepresentations(Protocol):
    """Representations by the names of a model's parameters (:class:`pvopt.QuantizedWeights`)."""

    def parameter(self, name: str) -> nn.Parameter:
        """Return the model's present parameter of a name."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Return the present parameters, in order."""
        ...

    def items(self) -> ItemsView[str, Representation]:
        """Return names and representations."""
        ...

    def values(self) -> ValuesView[Representation]:
        """Return the representations."""
        ...

    def start(self, name: str) -> DenseStart | None:
        """Return the dense weight that representations were fitted to, if it was kept."""
        ...

    def placement(self, name: str) -> Placement:
        """Return which rows of a weight its representation is of."""
        ...

    def __len__(self) -> int: ...


def check_precision(binding: Binding) -> None:
    """Raise unless values can take steps: those in half precision round most of them away.

    Raises:
        ValueError: if the values are narrower than single precision.
    """
    dtype = binding.rep.dtype
    if torch.promote_types(dtype, torch.float32) != dtype:
        raise ValueError(
            f"values of {binding.name!r} must be torch.float32 or torch.float64 to be trained, got "
            f"{dtype}: give QuantizedWeights rep.to(dtype=torch.float32) in place of each rep"
        )


def check_owners(
    base: Optimizer, representations: NamedRepresentations | Mapping[nn.Parameter, Representation]
) -> None:
    """Raise a ValueError unless each representation is of one parameter of the optimizer."""
    if len({id(rep) for rep in representations.values()}) < len(representations):
        raise ValueError("representations must be distinct, got one of several parameters")
    known = {id(p) for group in base.param_groups for p in group["params"]}
    if isinstance(representations, NamedRepresentations):
        found = [id(p) in known for p in representations.parameters()]
        if found and not any(found):
            raise ValueError(
                "none of the quantized weights is a parameter of base: representations belong to "
                "the model that was quantized; copy.deepcopy((model, weights)) copies both"
            )
        return
    for p, rep in representations.items():
        if not isinstance(p, Tensor) or id(p) not in known:
            raise ValueError(
                "representations must map parameters of base to Representation, got key "
                f"{type(p).__name__} that is in none of its groups"
            )
        if tuple(p.shape) != rep.shape:
            raise ValueError(
                f"a representation of shape {list(rep.shape)} was given for a parameter "
                f"of shape {list(p.shape)}"
            )


def bindings_of(
    representations: NamedRepresentations | Mapping[nn.Parameter, Representation],
    rule: ValueOptimizer,
) -> Iterator[Binding]:
    """Yield the quantized weights, each with a fresh state."""
    if isinstance(representations, NamedRepresentations):
        for name, rep in representations.items():
            find = partial(representations.parameter, name)
            locate = partial(representations.placement, name)
            place = locate()  # first: the rows that are kept here follow from it
            state = WeightState(rep, rule, name)
            yield Binding(name, find, locate, rep, state, representations.start(name), place)
        return
    for number, (parameter, rep) in enumerate(representations.items()):
        find = partial(_itself, parameter)
        name = f"parameter {number}"
        place = placement_of(name, parameter, rep)
        state = WeightState(rep, rule, name)
        yield Binding(name, find, partial(_itself, place), rep, state, None, place)


def _itself(found: T) -> T:
    return found
