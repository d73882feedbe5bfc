"""The scheme of each weight that is to be quantized."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import nn

from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.scheme import Scheme, as_scheme, joined

from .layers import LayerWeight
from .patterns import Selection, select

__all__ = ["Spec", "select_schemes"]

#: One parametrization or scheme for all layers, or one for each pattern of names.
Spec = Parametrization | Scheme | Mapping[str, Parametrization | Scheme]


def select_schemes(
    model: nn.Module,
    spec: Spec,
    exclude: Iterable[str],
    argument: str = "spec",
    optional: Collection[str] = (),
) -> Selection[Scheme]:
    """Find the scheme of each parameter that is to be quantized.

    Args:
        model: any module.
        spec: schemes by pattern.
        exclude: patterns of modules or parameters to leave out.
        argument: name of ``spec`` in messages.
        optional: patterns that need not mean any weight.

    Raises:
        ValueError: if a pattern means no weight or groups do not fit a layer.
    """
    found = select(model, spec, exclude, (Parametrization, Scheme), argument, optional)
    chosen = {n: _scheme_of(found.weights[n], settings) for n, settings in found.chosen.items()}
    wrong = {}
    for name, scheme in chosen.items():
        try:
            scheme.check(found.weights[name].shape)
        except ValueError as error:
            wrong[name] = f"cannot quantize {name!r} with {scheme}: {error}"
    if wrong:
        first, *others = wrong
        more = f" (nor {', '.join(map(repr, others[:3]))})" if others else ""
        ways = "exclude it, give it settings of its own or fill it up with Padding"
        raise ValueError(f"{wrong[first]}{more}; {ways}")
    return Selection(chosen, found.weights, found.left, found.tied)


def _scheme_of(weight: LayerWeight, settings: Parametrization | Scheme) -> Scheme:
    """Return settings that look at a weight the way it lies, unless they say which way."""
    scheme = as_scheme(settings)
    if scheme.view.plain:
        scheme = replace(scheme, view=weight.view)
    if weight.space is None:
        return scheme
    return replace(scheme, space=joined([weight.space, *scheme.space.parts]))
