"""Quantize a language model block by block, each on the outputs of the quantized ones before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pvopt.evaluation_mode import evaluation_mode
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme
from pvopt.selection.patterns import select
from pvopt.selection.schemes import select_schemes
from pvopt.starts.contract import STARTS, Start
from pvopt.weights import QuantizedWeights

from .asymmetric import AsymmetricCalibration
from .blocks import check_own_weights, find_blocks
from .capture import capture_inputs
from .digests import digest
from .end_loss import EndLoss
from .experts import expert_by_expert
from .fine_tuning import FineTuning
from .finished_blocks import FinishedBlocks
from .one_block import OneBlock

__all__ = ["Calibration", "calibrate_"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What :func:`calibrate_` returns.

    Args:
        weights: the representations, bound to the model.
        layer_errors: by parameter name, ``||X (W - W_q)'|| / ||X W'||`` on the inputs ``X`` that
            the quantized blocks before hand on, as the layer was started (before fine-tuning).
            Asymmetric calibration aims elsewhere than at ``W``: its errors are larger.
        without_tokens: parameter names of layers that no token of the text reached, and experts
            that were never chosen as ``NAME[NUMBER]``: they have no error, and got the fit of their
            format.
    """

    weights: QuantizedWeights
    layer_errors: dict[str, float]
    without_tokens: tuple[str, ...] = ()


def calibrate_(
    model: nn.Module,
    tokens: Tensor,
    spec: Parametrization | Scheme | Mapping[str, Parametrization | Scheme],
    start: Start | Mapping[str, Start],
    *,
    masks: Tensor | None = None,
    exclude: Iterable[str] = ("lm_head", "*.lm_head"),
    batch_size: int = 1,
    end_loss: EndLoss | None = None,
    asymmetric: AsymmetricCalibration | None = None,
    fine_tuning: FineTuning | None = None,
    work: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[list[str]], Iterable[str]] | None = None,
) -> Calibration:
    r"""Quantize the linear layers of a causal language model, calibrated on a text, in place.

    Block by block: the block runs in full precision on the inputs that the quantized blocks before
    it hand on, while ``X'X`` of the inputs of its layers is gathered; every weight gets its
    start; the continuous values are fine-tuned if asked for; the quantized block computes the
    next block's inputs.

    Memory beyond the model and its representations is bounded by

    .. math:: c\, n\, h\, b + 8 c' \sum_{X} \mathrm{in}_X^2 + A

    bytes for ``n`` tokens, hidden states of width ``h`` and ``b`` bytes per number, the distinct
    inputs ``X`` of the layers of *one* block (layers that are given the same tensor share one
    Hessian), and what one batch ``A`` needs in one block; ``c`` and ``c'`` are 1, ``c`` one more
    with fine-tuning, both one more with asymmetric calibration. SmolLM2-135M and 65,536 tokens in
    float32: 151 MB and 27 MB.

    Args:
        model: a causal language model of transformers, with its blocks in one ``nn.ModuleList``.
            Its blocks are changed one after the other: an interrupted call leaves some quantized.
        tokens: ``[sequences, length]`` token ids.
        spec: parametrizations or schemes, as :func:`pvopt.quantize_` takes them; linear layers of
            the blocks only.
        start: one for all weights, or by pattern like ``spec``.
        masks: ``[sequences, length]``, 0 where a token is padding, which counts in no ``X'X`` and
            no loss (but for experts, which are given tokens in an order of their own); or None.
        exclude: patterns of modules or parameters to leave alone.
        batch_size: sequences per forward pass; it must divide their number.
        end_loss: how ``X'X`` weighs tokens by what they mean for the model's loss, and with it
            starts and layer errors; None weighs all alike.
        asymmetric: how far layers make good for errors of the blocks before them; None: not at all.
        fine_tuning: how to tune the continuous values of each block, or None.
        work: folder that finished blocks are saved to; a call with the same arguments and the
            original model takes them from there. Starts must be registered then. None saves
            nothing.
        seed: of the generator of each weight's start and of the fine-tuning.
        progress: wraps the list of the blocks' names, for instance ``tqdm.tqdm``.

    Returns:
        The representations and the layers' errors. The model keeps its parameters, with new data.

    Raises:
        ValueError: if a pattern matches nothing, groups do not fit a layer, a weight has no method
            or is not a linear layer's in a block, the tokens do not fit, or the model does not run
            its blocks once each and in order, each on what the one before returned; nothing is
            changed then.
        CheckpointError: if the work folder is of another calibration, or damaged.

    Example:
        >>> from pvopt import UniformGrid
        >>> from pvopt.calibration import calibrate_
        >>> from pvopt.llm import load_model, load_text
        >>> from pvopt.starts import Fit
        >>> loaded = load_model("tiny-llama")
        >>> tokens = loaded.encode(load_text("pydoc"))[: 4 * 64].view(4, 64)
        >>> grid = UniformGrid(bits=4, group_size=32)
        >>> result = calibrate_(loaded.model, tokens, grid, Fit(weighted=True))
        >>> len(result.weights), max(result.layer_errors.values()) < 0.15
        (14, True)

    References:
        GPTQ (arXiv 2210.17323), section 3.3; AQLM (arXiv 2401.06118), algorithm 1.
    """
    chosen = select_schemes(model, spec, tuple(exclude)).chosen
    starts = select(model, start, tuple(exclude), (Start,), "start").chosen
    lacking = [name for name in chosen if name not in starts]
    if lacking:
        raise ValueError(f"start has no pattern for {lacking[:5]}")
    list_name, blocks = find_blocks(model, chosen)
    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in chosen}
    other = [n for n, scheme in chosen.items() if not (scheme.view.experts or _linear(layers[n]))]
    if other:
        raise ValueError(
            f"only linear layers and experts can be calibrated, not {other[:5]}: exclude them"
        )
    experts = [layers[name] for name, scheme in chosen.items() if scheme.view.experts]
    check_own_weights(model, list_name, blocks)
    batches = _batches(tokens, batch_size)
    real = None if masks is None else _masks(masks, tokens).unflatten(0, (-1, batch_size))
    finished = None
    if work is not None:
        settings = {
            "tokens": digest([batches]),
            "weights": digest(model.get_parameter(name) for name in chosen),
            "spec": {name: scheme.to_json() for name, scheme in chosen.items()},
            "start": {name: STARTS.to_json(starts[name]) for name in chosen},
            "fine_tuning": None if fine_tuning is None else asdict(fine_tuning),
            "seed": seed,
            "end_loss": None if end_loss is None else asdict(end_loss),
            "asymmetric": None if asymmetric is None else asdict(asymmetric),
        } | ({} if real is None else {"masks": digest([real])})
        finished = FinishedBlocks(work, settings)
    names = [f"{list_name}.{number}" for number in range(len(blocks))]
    representations: dict[str, Representation] = {}
    errors: dict[str, float] = {}
    alone = nullcontext() if finished is None else finished.alone()
    with alone, torch.no_grad(), evaluation_mode(model), expert_by_expert(experts):
        inputs = capture_inputs(model, blocks, batches, real)
        dense = None if asymmetric is None else inputs.hidden.clone()
        weights: dict[str, Tensor] = {}
        if end_loss is not None and (finished is None or not all(n in finished for n in names)):
            plain = {n: layers[n] for n, scheme in chosen.items() if not scheme.view.experts}
            weights = end_loss.token_weights(model, batches, plain, real)
        for name in names if progress is None else progress(names):
            number = names.index(name)
            block = OneBlock(
                model,
                blocks[number],
                inputs.calls[number],
                real,
                {w: own for w, own in weights.items() if w.startswith(f"{name}.")},
                {w: p for w, p in chosen.items() if w.startswith(f"{name}.")},
                asymmetric,
                last=number == len(names) - 1,
            )
            if finished is not None and name in finished:
                found, own_errors = block.load(finished, name, inputs.hidden, dense)
            else:
                found, own_errors = block.calibrate(inputs.hidden, dense, starts, fine_tuning, seed)
                if finished is not None:
                    finished.save(name, found, own_errors)
            representations |= found
            errors |= own_errors
    # In the model's order, as quantize_ has them.
    bound = QuantizedWeights(model, {name: representations[name] for name in chosen})
    bound.write_()
    return Calibration(
        bound,
        {name: errors[name] for name in chosen if not math.isnan(errors[name])},
        tuple(name for name, error in errors.items() if math.isnan(error)),
    )


def _batches(tokens: Tensor, batch_size: int) -> Tensor:
    """Return token ids ``[batches, batch_size, length]``."""
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.numel() == 0:
        raise ValueError(
            "tokens must be integers of shape [sequences, length], got "
            f"{tokens.dtype} of shape {list(tokens.shape)}"
        )
    if batch_size < 1 or len(tokens) % batch_size:
        raise ValueError(
            f"batch_size must divide the {len(tokens)} sequences of tokens, got {batch_size}"
        )
    return tokens.long().unflatten(0, (-1, batch_size))


def _linear(layer: nn.Module) -> bool:
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    return isinstance(layer, nn.Linear) or "Conv1D" in kinds  # of transformers: [in, out]


def _masks(masks: Tensor, tokens: Tensor) -> Tensor:
    """Return masks as integers; the first token of each sequence must be real."""
    if masks.shape != tokens.shape:
        raise ValueError(
            f"masks must have the shape of tokens, {list(tokens.shape)}, got {list(masks.shape)}"
        )
    masks = (masks != 0).long()
    if not masks.any(1).all():
        raise ValueError("masks must leave a token in every sequence")
    return masks
