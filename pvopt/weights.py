"""Quantize the weights of a model in place and keep track of their representations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn

from pvopt.engine.writing import write_decoded_
from pvopt.metrics.matrices import WeightMetric
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.options import FitOptions
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme, as_scheme, joined
from pvopt.selection.coverage import Coverage
from pvopt.selection.layers import LayerWeight
from pvopt.selection.patterns import Selection, match_patterns, select

__all__ = ["QuantizedWeights", "match_patterns", "quantize_", "select_schemes", "select_weights"]

logger = logging.getLogger(__name__)

Spec = Parametrization | Scheme | Mapping[str, Parametrization | Scheme]
# Weights of unknown kinds that are left dense are worth a warning from this share of all matrices.
_NOTABLE = 0.1


class QuantizedWeights(Mapping[str, Representation]):
    """The representations of a model's quantized weights, by parameter name.

    Weights are bound by name: wrappers that replace the parameter objects of a model (FSDP2,
    Accelerate) keep working.

    Args:
        model: the module that holds the dense weights.
        representations: one representation for each quantized parameter, by any of its names.
        reasons: why other parameters are dense, by name, for :meth:`coverage`.

    Raises:
        ValueError: if a name is no parameter of the model, two names are those of one parameter, or
            shapes differ.

    Example:
        >>> from pvopt import UniformGrid
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> weights = quantize_(model, {"0": UniformGrid(bits=2)})
        >>> list(weights), len(weights.parameters()), len(weights.other_parameters())
        (['0.weight'], 1, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        representations: Mapping[str, Representation],
        *,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self._representations = dict(representations)
        self._reasons = dict(reasons or {})
        named = dict(model.named_parameters(remove_duplicate=False))
        owners: dict[int, str] = {}
        for name, rep in self._representations.items():
            if name not in named:
                raise ValueError(f"representations names {name!r}, which is no parameter of model")
            other = owners.setdefault(id(named[name]), name)
            if other != name:
                raise ValueError(f"representations names one parameter twice, {other!r}, {name!r}")
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
        """Return the model's present parameter of that name.

        Raises:
            ValueError: if it is there no more.
        """
        try:
            return self.model.get_parameter(name)
        except AttributeError as error:
            raise ValueError(
                f"the model has no parameter {name!r} any more, which is quantized: something has "
                "replaced it, as pruning, weight norm, adapters and removed layers do. Do that "
                "before quantize_, or undo it"
            ) from error

    def parameters(self) -> list[nn.Parameter]:
        """Return the quantized weights' parameters, in order."""
        return [self.parameter(name) for name in self]

    def other_parameters(self) -> list[nn.Parameter]:
        """Return the model's trainable parameters that are not quantized."""
        quantized = {id(p) for p in self.parameters()}
        return [p for p in self.model.parameters() if id(p) not in quantized and p.requires_grad]

    @torch.no_grad()
    def write_(self) -> None:
        """Write every decoded weight into the model.

        Raises:
            ValueError: if a code does not exist, as somebody may have edited them; nothing is
                written then.
        """
        for name, rep in self.items():
            try:
                rep.check_codes()
            except ValueError as error:
                raise ValueError(f"cannot write {name!r}: {error}") from error
        for name, rep in self.items():
            write_decoded_(rep, [self.parameter(name)])

    def coverage(self) -> Coverage:
        """Return what of the model is quantized and what is not, and the size of the whole."""
        return Coverage.of(self.model, self, self._reasons)

    def bits_per_weight(self) -> float:
        """Return the storage of all quantized weights per weight, values at their present dtype.

        See :meth:`coverage` for that of the whole model.
        """
        sizes = [self.parameter(name).numel() for name in self]
        bits = [rep.bits_per_weight() for rep in self.values()]
        return sum(b * n for b, n in zip(bits, sizes, strict=True)) / max(1, sum(sizes))


def quantize_(
    model: nn.Module,
    spec: Spec,
    *,
    exclude: Iterable[str] = ("lm_head", "*.lm_head"),
    metrics: Mapping[str, WeightMetric] | None = None,
    options: FitOptions | None = None,
    seed: int = 0,
    progress: Callable[[list[str]], Iterable[str]] | None = None,
) -> QuantizedWeights:
    """Fit representations to weights of a model and write the decoded weights in place.

    Args:
        model: any module.
        spec: one parametrization or scheme for all layers, or a mapping from ``fnmatch`` patterns
            to them (first match wins). Layers are linear ones, convolutions, recurrent ones,
            ``nn.MultiheadAttention``, ``Conv1D`` of transformers, and experts that lie in one
            tensor. A pattern is matched with their names (``"*.mlp.*"``) and those of their
            weights (``"rnn.weight_*"``). Embeddings are meant by patterns that name the layer
            (``"*.embed_tokens"``), and any other parameter of two or more dimensions by those that
            spell it out (``"mixer.A_log"``). Rows of the matrix that is quantized are the layer's
            outputs and columns its inputs, however they are stored; every expert is a matrix of its
            own; the padding row of an embedding stays zero.
        exclude: patterns of modules or parameters to leave alone.
        metrics: by parameter name, in which distance the weight is to be close; one for each
            expert, or one for all.
        options: how hard a fit tries.
        seed: of the generators that fits draw from, one per weight.
        progress: wraps the list of names, for instance ``tqdm.tqdm``.

    Returns:
        The representations by parameter name; :meth:`QuantizedWeights.coverage` says what was
        left dense. The model keeps its parameters, with new data.

    Raises:
        ValueError: if a pattern means no weight or groups do not fit a layer; nothing is changed
            then.

    Example:
        >>> from pvopt import VectorCodebook
        >>> model = nn.Linear(16, 8, bias=False)
        >>> weights = quantize_(model, VectorCodebook(bits=4, group_size=2))
        >>> torch.equal(model.weight, weights["weight"].decode())
        True
    """
    selection = select_schemes(model, spec, exclude)
    chosen = selection.chosen
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
    weights = QuantizedWeights(model, representations, reasons=selection.left)
    weights.write_()
    _report(weights, selection)
    return weights


def _report(weights: QuantizedWeights, selection: Selection[Scheme]) -> None:
    """Log what is quantized, and warn where much of an unknown kind is not."""
    coverage = weights.coverage()
    logger.info("%s", coverage)
    unknown = [w for w in coverage.dense if not selection.weights[w.name].places]
    count = sum(weight.count for weight in unknown)
    total = sum(coverage.quantized.values()) + sum(weight.count for weight in coverage.dense)
    if count > _NOTABLE * total:
        logger.warning(
            "%.0f %% of the weights stay dense because their layers are of no known kind: %s; name "
            "them in a pattern to quantize them",
            100 * count / total,
            ", ".join(weight.name for weight in unknown[:8]) + (" ..." if unknown[8:] else ""),
        )


def select_weights(model: nn.Module, spec: Spec, exclude: Iterable[str]) -> dict[str, Scheme]:
    """Return the scheme of each parameter that is to be quantized, by name."""
    return select_schemes(model, spec, exclude).chosen


def select_schemes(model: nn.Module, spec: Spec, exclude: Iterable[str]) -> Selection[Scheme]:
    """Find the scheme of each parameter that is to be quantized.

    Raises:
        ValueError: if a pattern means no weight or groups do not fit a layer.
    """
    found = select(model, spec, exclude, (Parametrization, Scheme), "spec")
    chosen = {n: _scheme_of(found.weights[n], settings) for n, settings in found.chosen.items()}
    wrong = {}
    for name, scheme in chosen.items():
        try:
            scheme.check(found.weights[name].shape)
        except ValueError as error:
            wrong[name] = f"cannot quantize {name!r} with {scheme}: {error}"
    if wrong:
        first, *others = wrong
        more = f" (nor {', '.join(map(repr, others[:8]))})" if others else ""
        ways = "exclude it, give it settings of its own or fill it up with Padding"
        raise ValueError(f"{wrong[first]}{more}; {ways}")
    return Selection(chosen, found.weights, found.left)


def _scheme_of(weight: LayerWeight, settings: Parametrization | Scheme) -> Scheme:
    """Return settings that look at a weight the way it lies, unless they say which way."""
    scheme = as_scheme(settings)
    if scheme.view.plain:
        scheme = replace(scheme, view=weight.view)
    if weight.space is None:
        return scheme
    return replace(scheme, space=joined([weight.space, *scheme.space.parts]))
