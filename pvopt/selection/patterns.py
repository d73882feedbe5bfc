"""Settings by patterns of names: which weight each of them means."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from torch import nn

from .layers import LayerWeight, Place, layer_weights

__all__ = ["Selection", "check_patterns", "select"]

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Selection(Generic[Setting]):
    """Settings by the names of weights.

    Args:
        chosen: setting of each weight that a pattern means.
        weights: all parameters of two or more dimensions, by name.
        left: why the others are left alone, by name.
        tied: layers that patterns mean, but whose weight is left as it is an embedding, too; by
            the name of the weight.
    """

    chosen: dict[str, Setting]
    weights: Mapping[str, LayerWeight]
    left: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)


def select(
    model: nn.Module,
    settings: Setting | Mapping[str, Setting],
    exclude: Iterable[str],
    kinds: tuple[type[Setting], ...],
    argument: str,
    optional: Collection[str] = (),
) -> Selection[Setting]:
    """Find a setting for each weight that a pattern means; the first match wins.

    Args:
        model: any module.
        settings: one for all usual weights, or by pattern, as :func:`pvopt.quantize_` takes them.
        exclude: patterns of modules or parameters to leave out.
        kinds: classes, of one of which every setting must be an instance.
        argument: name of ``settings`` in messages.
        optional: patterns that need not mean any weight.

    Raises:
        TypeError: if a setting is of another class.
        ValueError: if a pattern means no weight; the message says what it comes close to.
    """
    patterns = dict(settings) if isinstance(settings, Mapping) else {"*": settings}
    if not patterns:
        raise ValueError(f"{argument} must have a pattern, got none")
    for pattern, setting in patterns.items():
        if not isinstance(setting, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{argument}[{pattern!r}] must be a {names}, got {setting!r}")
    excluded = tuple(exclude)
    found: Selection[Any] = Selection({}, layer_weights(model))
    used: set[str] = set()
    for name, weight in found.weights.items():
        meant = [place for place in _faces(weight) if _first(patterns, weight, place) is not None]
        free = [place for place in meant if _first(excluded, weight, place, covers=True) is None]
        if free:
            pattern = _first(patterns, weight, free[0])
            assert pattern is not None
            found.chosen[name] = patterns[pattern]
            used.add(pattern)
        elif meant:
            found.left[name] = f"excluded by {_first(excluded, weight, meant[0], covers=True)!r}"
        else:
            found.left[name] = "no pattern names it" if weight.usual else weight.left
            layer = _tied_layer(weight, patterns, excluded)
            if layer is not None:
                found.tied[name] = layer
                found.left[name] = f"{weight.left}, although it is the weight of {layer!r}, too"
    unused = [pattern for pattern in patterns if pattern not in {*used, *optional}]
    if unused:
        hints = [_hint(pattern, patterns, found, model) for pattern in unused]
        raise ValueError(f"{argument} patterns {unused} match no weight: {'; '.join(hints)}")
    return found


def check_patterns(model: nn.Module, patterns: Iterable[str], argument: str) -> None:
    """Raise unless each pattern matches the name of a matrix or of its module.

    Args:
        model: any module.
        patterns: as ``exclude`` takes them.
        argument: name of ``patterns`` in messages.

    Raises:
        ValueError: if one matches none; the message says what it comes close to.

    Example:
        >>> from torch import nn
        >>> from pvopt.selection.patterns import check_patterns
        >>> check_patterns(nn.Sequential(nn.Linear(2, 2)), ["0", "1"], "exclude")
        Traceback (most recent call last):
        ...
        ValueError: exclude pattern '1' matches no weight: '1': weights are '0.weight'
    """
    found: Selection[Any] = Selection({}, layer_weights(model))
    for pattern in patterns:
        pairs = ((weight, place) for weight in found.weights.values() for place in _faces(weight))
        if not any(_covers(pattern, weight, place) for weight, place in pairs):
            hint = _hint(pattern, {pattern: True}, found, model)
            raise ValueError(f"{argument} pattern {pattern!r} matches no weight: {hint}")


def _tied_layer(
    weight: LayerWeight, patterns: Iterable[str], excluded: Iterable[str]
) -> str | None:
    """Return a layer that patterns mean, whose weight is left for what else it is; or None."""
    for place in weight.places:
        wanted = place.usual and _first(patterns, weight, place, covers=True) is not None
        if wanted and _first(excluded, weight, place, covers=True) is None:
            return place.module
    return None


def _faces(weight: LayerWeight) -> list[Place]:
    """Return all places of a weight, with those that no layer is known to own."""
    known = {name for place in weight.places for name in place.names}
    others = [name for name in weight.aliases if name not in known]
    return [*weight.places, *(Place(n.rpartition(".")[0], (n,), usual=False) for n in others)]


def _first(
    patterns: Iterable[str], weight: LayerWeight, place: Place, *, covers: bool = False
) -> str | None:
    """Return the first pattern that means a weight in a place, or covers its name; or None."""
    matches = _covers if covers else _means
    return next((pattern for pattern in patterns if matches(pattern, weight, place)), None)


def _means(pattern: str, weight: LayerWeight, place: Place) -> bool:
    """Tell whether a pattern means a weight in a place.

    One that spells out the parameter reaches every parameter; one that matches a layer, or the
    parameters of a layer, reaches that layer's weights, and unusual ones (embeddings) only if its
    last word is the layer's own name.
    """
    for name in place.names:
        if pattern.endswith(name.rpartition(".")[2]) and fnmatch.fnmatchcase(name, pattern):
            return True
    if place not in weight.places or not (weight.usual or _names(pattern, place)):
        return False
    return _covers(pattern, weight, place)


def _names(pattern: str, place: Place) -> bool:
    """Tell whether a pattern names a layer: by more than wildcards, in its last word."""
    word, own = pattern.rpartition(".")[2], place.module.rpartition(".")[2]
    return bool(word.strip("*?")) and fnmatch.fnmatchcase(own, word)


def _covers(pattern: str, weight: LayerWeight, place: Place) -> bool:
    """Tell whether a pattern matches the name of a weight or of its module."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in (place.module, *place.names))


def _hint(
    pattern: str, patterns: Mapping[str, Any], found: Selection[Any], model: nn.Module
) -> str:
    """Say what a pattern that means no weight comes close to."""
    lost = []
    for name, weight in found.weights.items():
        place = next((p for p in _faces(weight) if _means(pattern, weight, p)), None)
        if place is not None and name in found.chosen:
            lost.append(f"{name!r} is taken by {_first(patterns, weight, place)!r}")
        elif place is not None:
            lost.append(f"{name!r} is {found.left[name]}")
    if lost:
        return f"{pattern!r}: {_few(lost)}"
    modules = [name for name, _ in model.named_modules() if fnmatch.fnmatchcase(name, pattern)]
    under = tuple(f"{module}." if module else "" for module in modules)
    near = [
        f"{name!r} ({weight.left})" if not weight.usual else repr(name)
        for name, weight in found.weights.items()
        if under and any(alias.startswith(under) for alias in weight.aliases)
    ]
    if near:
        return f"{pattern!r} matches a module, but name its weights: {_few(near)}"
    named = {name: p.dim() for name, p in model.named_parameters() if name not in found.weights}
    vectors = [name for name in named if fnmatch.fnmatchcase(name, pattern)]
    for module in modules:
        vectors += [name for name in named if name.rpartition(".")[0] == module]
    if vectors:
        listed = _few([repr(name) for name in dict.fromkeys(vectors)])
        return f"{pattern!r}: {listed} is no matrix of real numbers"
    words: dict[str, None] = dict.fromkeys(found.weights)
    for weight in found.weights.values():
        words |= dict.fromkeys(weight.aliases)
        words |= dict.fromkeys(n for p in weight.places for n in (p.module, *p.names) if n)
    close = get_close_matches(pattern.strip("*."), words, n=3, cutoff=0.5)
    if not close:  # the same last word elsewhere
        last = pattern.strip("*.").rpartition(".")[2]
        ends = {name.rpartition(".")[2]: name for name in reversed(words)}
        close = [ends[end] for end in get_close_matches(last, ends, n=3, cutoff=0.5)]
    if close:
        return f"{pattern!r}: did you mean {_few([repr(c) for c in close])}?"
    return f"{pattern!r}: weights are {_few([repr(name) for name in found.weights])}"


def _few(texts: list[str]) -> str:
    return ", ".join(texts[:8]) + (" ..." if len(texts) > 8 else "")
