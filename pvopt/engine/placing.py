"""Where the rows of a weight are: found out, or refused with what is possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme
from pvopt.rules.metric_sources import MetricSource
from pvopt.rules.subspace import Subspace

from .agreement import WeightsChangedError
from .placement import WHOLE, Placement, is_sharded, local
from .writing import write_decoded_

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    from .row_shards import RowShards

__all__ = ["check_rules", "check_scheme", "dependence", "placement_of", "whole"]

_POSSIBLE = (
    "grids, Binary, Ternary, SharedValues, codebooks and E8P, without a rotation or another space"
)
_INSTEAD = (
    "use DistributedDataParallel, or leave the module unsharded (fully_shard(ignored_params=...))"
)


def placement_of(
    name: str, parameter: Tensor, rep: Representation, known: Placement = WHOLE
) -> Placement:
    """Return which rows of a weight this process holds; let codes and values be of these.

    Args:
        name: of the weight, for messages.
        parameter: the model's present one.
        rep: of all rows, or of those of this process; of all, it is cut in place.
        known: where the weight was found before.

    Raises:
        TypeError: for a parameter that is not shared out by rows, or codes that cannot be.
        WeightsChangedError: if codes and values are of other rows.
    """
    if not is_sharded(parameter):
        return WHOLE
    if known.key == _key(parameter):
        return known
    found = _shards_of(name, parameter, rep.scheme)
    held = (found.out_group if found.empty else found.own[1], *found.shape[1:])
    if rep.shape == found.shape:
        found.cut_(rep)
    elif rep.shape != held:
        raise WeightsChangedError(
            f"{name!r} has {held[0]} rows in this process now, its codes are of "
            f"{rep.shape[0]}: load a checkpoint into a model that is sharded as you want it"
        )
    if found.empty:  # what stands for the weight is always what is decoded
        write_decoded_(rep, [found.entries(parameter)])
    return found


def check_scheme(name: str, parameter: Tensor, scheme: Scheme) -> None:
    """Raise a TypeError unless a weight can be represented so where its rows are."""
    if is_sharded(parameter):
        _shards_of(name, parameter, scheme)


@torch.no_grad()
def whole(parameter: Tensor) -> Tensor:
    """Return a parameter with all rows; every process has to ask for those of a sharded one."""
    found = parameter.detach()
    return found.full_tensor() if is_sharded(found) else found


def _shards_of(name: str, parameter: DTensor, scheme: Scheme) -> RowShards:
    """Return which rows this process holds, if codes and values can be of these."""
    from .row_shards import RowShards  # torch.distributed.tensor takes a second to import

    axis, reason = _axis(name, parameter), dependence(scheme, tuple(parameter.shape))
    if reason is not None:
        raise TypeError(
            f"{name!r} is sharded by rows, as fully_shard does, but {reason}. That is possible for "
            f"{_POSSIBLE}; otherwise {_INSTEAD}"
        )
    out_group = scheme.parametrization.layout(tuple(parameter.shape)).out_group
    shape, mesh, placements = _key(parameter)
    like = local(parameter).detach().new_empty(0)
    found = RowShards(shape, mesh, placements, axis, out_group, like)
    if found.chunk % out_group and found.chunk < parameter.shape[0]:
        raise TypeError(
            f"{name!r} has {parameter.shape[0]} rows, {found.chunk} of them in the first process: "
            f"not a multiple of the {out_group} rows of a group of {scheme.name}. Use a number of "
            f"processes that cuts no group, groups of one row, or {_INSTEAD}"
        )
    return found


def check_rules(
    name: str, placement: Placement, subspace: Subspace, metric: MetricSource | None
) -> None:
    """Raise unless rules can work on weights whose rows are shared out.

    Raises:
        ValueError: naming the rule and what is possible.
    """
    if placement.channel is None:
        return
    if not subspace.keyed:
        raise ValueError(
            f"subspace must select by keys where {name!r} is sharded, as AllGroups, Greedy, "
            f"Uniform and Proportional do, got {subspace}"
        )
    if metric is not None:
        raise ValueError(
            f"metric must be None where {name!r} is sharded, got {type(metric).__name__}: "
            f"{_INSTEAD}"
        )


def _key(parameter: DTensor) -> tuple[tuple[int, ...], DeviceMesh, tuple[Any, ...]]:
    return tuple(parameter.shape), parameter.device_mesh, tuple(parameter.placements)


def _axis(name: str, parameter: DTensor) -> int:
    """Return the dimension of the mesh that the rows are shared out over."""
    from torch.distributed.tensor import Replicate, Shard

    kinds = parameter.placements
    cut = [axis for axis, kind in enumerate(kinds) if not isinstance(kind, Replicate)]
    if len(cut) == 1 and kinds[cut[0]] == Shard(0) and type(kinds[cut[0]]) is Shard:
        return cut[0]
    raise TypeError(
        f"{name!r} is a DTensor with the placements {kinds}: only rows can be shared out, as "
        f"fully_shard does (Shard(0), and Replicate for copies); for other ways, such as tensor "
        f"parallelism, {_INSTEAD}"
    )


def dependence(scheme: Scheme, shape: tuple[int, ...]) -> str | None:
    """Return why processes cannot hold some rows of a weight each; None: they can.

    Example:
        >>> from pvopt import parse_scheme
        >>> from pvopt.engine.placing import dependence
        >>> dependence(parse_scheme("2x8g8"), (8, 8)), dependence(parse_scheme("had+e8p:2"), (8, 8))
        (None, 'had+e8p:2 lives in another space than that of the rows')
    """
    if not scheme.space.trivial:
        return f"{scheme.name} lives in another space than that of the rows"
    if not scheme.view.plain or len(shape) < 2:
        return "the first dimension of the parameter does not count rows of one matrix"
    if scheme.parametrization.common_values is None or not scheme.parametrization.stacks:
        return f"the rows of {scheme.name} depend on each other"
    return None
