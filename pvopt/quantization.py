"""Quantize the weights of a model in place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from pvopt.core.draws import SEEDS
from pvopt.core.validation import check_integer
from pvopt.engine.placing import check_scheme, placement_of, whole
from pvopt.metrics.matrices import WeightMetric
from pvopt.parametrizations.options import FitOptions
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme
from pvopt.selection.patterns import Selection
from pvopt.selection.schemes import Spec, select_schemes

from .weights import QuantizedWeights

__all__ = ["quantize_"]

logger = logging.getLogger(__name__)

# Weights of unknown kinds that are left dense are worth a warning from this share of all matrices.
_NOTABLE = 0.1


def quantize_(
    model: nn.Module,
    spec: Spec,
    *,
    exclude: Iterable[str] = ("lm_head", "*.lm_head"),
    metrics: Mapping[str, WeightMetric] | None = None,
    options: FitOptions | None = None,
    seed: int = 0,
    progress: Callable[[list[str]], Iterable[str]] | None = None,
    on_fit: Callable[[str, Tensor, Representation], None] | None = None,
    keep_dense: bool = False,
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
        on_fit: called after each fit with the name, the dense weight and its representation.
        keep_dense: whether the dense weights are kept until an optimizer takes them: latent weights
            then begin at them instead of at the codes. A second copy of the weights until then.

    Returns:
        The representations by parameter name; :meth:`QuantizedWeights.coverage` says what was
        left dense. The model keeps its parameters, with new data.

    Raises:
        ValueError: if a pattern means no weight or groups do not fit a layer; nothing is changed
            then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt import VectorCodebook, quantize_
        >>> model = nn.Linear(16, 8, bias=False)
        >>> weights = quantize_(model, VectorCodebook(bits=4, group_size=2))
        >>> torch.equal(model.weight, weights["weight"].decode())
        True
    """
    check_integer("seed", seed, *SEEDS)
    selection = select_schemes(model, spec, exclude)
    chosen = selection.chosen
    named = dict(model.named_parameters())
    for name, scheme in chosen.items():
        _check_memory(name, named[name])
        check_scheme(name, named[name], scheme)
    metrics = metrics or {}
    unknown = sorted(set(metrics) - set(chosen))
    if unknown:
        raise ValueError(f"metrics names weights that are not quantized: {unknown}")
    representations, dense, placements = {}, {}, {}
    names = list(chosen)
    for name in names if progress is None else progress(names):
        weight = whole(named[name])
        generator = torch.Generator(weight.device).manual_seed(seed)
        try:
            representations[name] = chosen[name].fit(
                weight, metric=metrics.get(name), options=options, generator=generator
            )
        except ValueError as error:
            raise ValueError(f"cannot quantize {name!r}: {error}") from error
        if on_fit is not None:
            on_fit(name, weight, representations[name])
        rep = representations[name]
        placement = placements[name] = placement_of(name, named[name], rep)
        if keep_dense:
            rows = placement.taken(weight)
            dense[name] = rows.clone(memory_format=torch.contiguous_format)
        logger.debug("quantized %s with %s", name, chosen[name])
    weights = QuantizedWeights(
        model, representations, reasons=selection.left, dense=dense, placements=placements
    )
    weights.write_()
    _report(weights, selection)
    return weights


def _check_memory(name: str, weight: Tensor) -> None:
    """Raise a ValueError unless a weight can be read, and each entry be written by itself."""
    if weight.is_meta:
        raise ValueError(f"cannot quantize {name!r}: it is on the meta device, load it first")
    if any(n > 1 and step == 0 for n, step in zip(weight.shape, weight.stride(), strict=True)):
        raise ValueError(
            f"cannot quantize {name!r}: entries share memory (expand), give it memory of its own "
            "(clone)"
        )


def _report(weights: QuantizedWeights, selection: Selection[Scheme]) -> None:
    """Log what is quantized, and warn where much of an unknown kind is not."""
    coverage = weights.coverage()
    logger.info("%s", coverage)
    for name, layer in selection.tied.items():
        logger.warning(
            "%r stays dense: its weight is %r, %s; name one of the two in a pattern to quantize it",
            layer,
            name,
            selection.weights[name].left,
        )
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
