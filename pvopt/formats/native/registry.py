"""Parametrizations by name: the closed list of what a checkpoint may ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from pvopt.parametrizations import (
    E8P,
    AdditiveCodebooks,
    Binary,
    Incoherent,
    Parametrization,
    QuantizedNonzeros,
    QuantizedScales,
    SharedValues,
    Sparse,
    SparseNM,
    Ternary,
    UniformGrid,
    VectorCodebook,
)

from pvopt.formats.errors import CheckpointError

__all__ = ["BUILT_IN", "parametrization_from_json", "parametrization_to_json"]

BUILT_IN: tuple[type[Parametrization], ...] = (
    AdditiveCodebooks,
    Binary,
    E8P,
    Incoherent,
    QuantizedNonzeros,
    QuantizedScales,
    SharedValues,
    Sparse,
    SparseNM,
    Ternary,
    UniformGrid,
    VectorCodebook,
)


def parametrization_to_json(parametrization: Parametrization) -> dict[str, Any]:
    """Describe a parametrization by its class name and all of its settings.

    Args:
        parametrization: a dataclass whose fields are numbers, strings, bools, None or
            parametrizations.

    Returns:
        ``{"class": NAME, SETTING: VALUE, ...}``

    Raises:
        CheckpointError: if it is no dataclass or a setting is of another kind.

    Example:
        >>> parametrization_to_json(UniformGrid(bits=2))
        {'class': 'UniformGrid', 'bits': 2, 'group_size': None, 'symmetric': False}
    """
    name = type(parametrization).__name__
    if not is_dataclass(parametrization):
        raise CheckpointError(f"{name}: only parametrizations that are dataclasses can be saved")
    settings: dict[str, Any] = {}
    for field in fields(parametrization):
        value = getattr(parametrization, field.name)
        if isinstance(value, Parametrization):
            value = parametrization_to_json(value)
        elif not isinstance(value, str | int | float | bool | None):
            raise CheckpointError(
                f"{name}.{field.name}: only numbers, strings, bools, None and parametrizations "
                f"can be saved, got {value!r}"
            )
        settings[field.name] = value
    return {"class": name, **settings}


def parametrization_from_json(
    description: Mapping[str, Any], more: Iterable[type[Parametrization]] = ()
) -> Parametrization:
    """Rebuild a parametrization from its description.

    Args:
        description: as :func:`parametrization_to_json` returns it. A setting that is not there
            takes the class's default, so that old checkpoints stay readable.
        more: classes that may be named besides the built-in ones.

    Returns:
        The parametrization.

    Raises:
        CheckpointError: if the class is unknown or the settings do not fit it.

    Example:
        >>> parametrization_from_json({"class": "SharedValues", "num_values": 3})
        SharedValues(num_values=3)
        >>> nested = Incoherent(SharedValues(num_values=3), seed=5)
        >>> parametrization_from_json(parametrization_to_json(nested)) == nested
        True
    """
    more = tuple(more)
    known: dict[str, Any] = {cls.__name__: cls for cls in (*BUILT_IN, *more)}
    name = description.get("class")
    if name not in known:
        raise CheckpointError(f"unknown parametrization {name!r}; known are {sorted(known)}")
    cls = known[name]
    settings = {
        key: parametrization_from_json(value, more) if isinstance(value, Mapping) else value
        for key, value in description.items()
        if key != "class"
    }
    names = {field.name for field in fields(cls)}
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    unknown, missing = settings.keys() - names, needed - settings.keys()
    if unknown or missing:
        what, wrong = ("unknown", unknown) if unknown else ("missing", missing)
        raise CheckpointError(f"{name}: {what} settings {sorted(wrong)}")
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: {error}") from error
