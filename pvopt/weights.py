"""Quantize the weights of a model in place and keep track of their representations."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import nn

from pvopt.engine.writing import write_decoded_
from pvopt.metrics.contract import Metric
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.options import FitOptions
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme, as_scheme

__all__ = ["QuantizedWeights", "quantize_"]

logger = logging.getLogger(__name__)

Spec = Parametrization | Scheme | Mapping[str, Parametrization | Scheme]
Setting = TypeVar("Setting")


class QuantizedWeights(Mapping[str, Representation]):
    """The representations of a model's quantized weights, by parameter name.

    Weights are bound by name: wrappers that replace the parameter objects of a model (FSDP2,
    Accelerate) keep working.

    Args:
        model: the module that holds the dense weights.
        representations: one representation for each quantized parameter's name.

    Raises:
        ValueError: if a name is no parameter of the model or the shapes differ.

    Example:
        >>> from pvopt import UniformGrid
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> weights = quantize_(model, {"0": UniformGrid(bits=2)})
        >>> list(weights), len(weights.parameters()), len(weights.other_parameters())
        (['0.weight'], 1, 3)
    """

    def __init__(self, model: nn.Module, representations: Mapping[str, Representation]) -> None:
        self.model = model
        self._representations = dict(representations)
        named = dict(model.named_parameters())
        for name, rep in self._representations.items():
            if name not in named:
                raise ValueError(f"representations names {name!r}, which is no parameter of model")
            if tuple(named[name].shape) != rep.shape:
                raise ValueError(
                    f"representation of {name!r} must have shape {list(named[name].shape)}, "
                    f"got {list(rep.shape)}"
                )

    def __getitem__(self, name: str) -> Representation:
        return self._representations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._representations)

    def __len__(self) -> int:
        return len(self._representations)

    def parameter(self, name: str) -> nn.Parameter:
        """Return the model's present parameter of that name."""
        return self.model.get_parameter(name)

    def parameters(self) -> list[nn.Parameter]:
        """Return the quantized weights' parameters, in order."""
        return [self.parameter(name) for name in self]

    def other_parameters(self) -> list[nn.Parameter]:
        """Return the model's trainable parameters that are not quantized."""
        quantized = {id(p) for p in self.parameters()}
        return [p for p in self.model.parameters() if id(p) not in quantized and p.requires_grad]

    @torch.no_grad()
    def write_(self) -> None:
        """Write every decoded weight into the model."""
        for name, rep in self.items():
            write_decoded_(rep, [self.parameter(name)])

    def bits_per_weight(self) -> float:
        """Return the storage of all quantized weights per weight, values at their present dtype."""
        sizes = [self.parameter(name).numel() for name in self]
        bits = [rep.bits_per_weight() for rep in self.values()]
        return sum(b * n for b, n in zip(bits, sizes, strict=True)) / max(1, sum(sizes))


def quantize_(
    model: nn.Module,
    spec: Spec,
    *,
    exclude: Iterable[str] = ("lm_head", "*.lm_head"),
    metrics: Mapping[str, Metric] | None = None,
    options: FitOptions | None = None,
    seed: int = 0,
    progress: Callable[[list[str]], Iterable[str]] | None = None,
) -> QuantizedWeights:
    """Fit representations to weights of a model and write the decoded weights in place.

    Args:
        model: any module.
        spec: one parametrization or scheme for the weights of all ``nn.Linear`` layers, or a
            mapping from ``fnmatch`` patterns to them (first match wins). A pattern is matched with
            the module names of linear layers (``"*.mlp.*"``), or, if it spells out the parameter
            (``"embed_tokens.weight"``), with the names of all parameters of two or more dimensions.
        exclude: patterns of modules or parameters to leave alone.
        metrics: by parameter name, in which distance the weight is to be close.
        options: how hard a fit tries.
        seed: of the generators that fits draw from, one per weight.
        progress: wraps the list of names, for instance ``tqdm.tqdm``.

    Returns:
        The representations by parameter name. The model keeps its parameters, with new data.

    Raises:
        ValueError: if a pattern matches nothing or groups do not fit a layer; nothing is changed
            then.

    Example:
        >>> from pvopt import VectorCodebook
        >>> model = nn.Linear(16, 8, bias=False)
        >>> weights = quantize_(model, VectorCodebook(bits=4, group_size=2))
        >>> torch.equal(model.weight, weights["weight"].decode())
        True
    """
    chosen = select_weights(model, spec, tuple(exclude))
    named = dict(model.named_parameters())
    metrics = metrics or {}
    unknown = sorted(set(metrics) - set(chosen))
    if unknown:
        raise ValueError(f"metrics names weights that are not quantized: {unknown}")
    representations = {}
    names = list(chosen)
    for name in names if progress is None else progress(names):
        weight = named[name].detach()
        generator = torch.Generator(weight.device).manual_seed(seed)
        try:
            representations[name] = chosen[name].fit(
                weight, metric=metrics.get(name), options=options, generator=generator
            )
        except ValueError as error:
            raise ValueError(f"cannot quantize {name!r}: {error}") from error
        logger.debug("quantized %s with %s", name, chosen[name])
    weights = QuantizedWeights(model, representations)
    weights.write_()
    return weights


def select_weights(model: nn.Module, spec: Spec, exclude: tuple[str, ...]) -> dict[str, Scheme]:
    """Return the scheme of each parameter that is to be quantized, by name.

    Raises:
        ValueError: if a pattern matches nothing or groups do not fit a layer.
    """
    found = match_patterns(model, spec, exclude, (Parametrization, Scheme), "spec")
    chosen = {name: as_scheme(settings) for name, settings in found.items()}
    for name, scheme in chosen.items():
        try:
            scheme.check(tuple(model.get_parameter(name).shape))
        except ValueError as error:
            raise ValueError(f"cannot quantize {name!r} with {scheme}: {error}") from error
    return chosen


def match_patterns(
    model: nn.Module,
    settings: Setting | Mapping[str, Setting],
    exclude: tuple[str, ...],
    kinds: tuple[type[Setting], ...],
    argument: str,
) -> dict[str, Setting]:
    """Return a setting for each parameter that a pattern matches, by name; first match wins.

    Args:
        model: any module.
        settings: one for all linear layers, or by pattern, as :func:`quantize_` takes them.
        exclude: patterns of modules or parameters to leave out.
        kinds: classes, of one of which every setting must be an instance.
        argument: name of ``settings`` in messages.
    """

    def excluded(name: str) -> bool:
        module = name.rpartition(".")[0]
        return any(fnmatch.fnmatchcase(n, pattern) for n in (name, module) for pattern in exclude)

    def matches(name: str, pattern: str) -> bool:
        module, _, leaf = name.rpartition(".")
        if pattern.endswith(leaf) and fnmatch.fnmatchcase(name, pattern):
            return named[name].ndim > 1
        return name in linear and fnmatch.fnmatchcase(module, pattern)

    # named_parameters lists a tied parameter once, under its first name
    named = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    linear = {
        f"{prefix}.weight".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    patterns = dict(settings) if isinstance(settings, Mapping) else {"*": settings}
    for pattern, setting in patterns.items():
        if not isinstance(setting, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{argument}[{pattern!r}] must be a {names}, got {setting!r}")
    chosen: dict[str, Setting] = {}
    used: set[str] = set()
    for name in named:
        pattern = next((p for p in patterns if matches(name, p)), None)
        if pattern is not None and not excluded(name):
            chosen[name] = patterns[pattern]
            used.add(pattern)
    unused = [pattern for pattern in patterns if pattern not in used]
    if unused:
        raise ValueError(
            f"{argument} patterns {unused} match no weight; linear layers are "
            f"{sorted(linear)[:8]}{' ...' if len(linear) > 8 else ''}"
        )
    return chosen
