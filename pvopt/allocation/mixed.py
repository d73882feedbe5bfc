"""Calibrate a model in formats that differ from layer to layer, for the least divergence."""

from __future__ import annotations

import copy
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pvopt.calibration import (
    AsymmetricCalibration,
    Calibration,
    EndLoss,
    FineTuning,
    calibrate_,
)
from pvopt.calibration.digests import digest
from pvopt.parametrizations.scheme import Scheme
from pvopt.selection.fused import fused_groups
from pvopt.selection.schemes import select_schemes
from pvopt.starts import STARTS, Start, usual_start
from pvopt.weights import QuantizedWeights

from .budget import Option, allocate
from .candidates import mean_bits
from .sensitivities import Predictions, Progress, Sensitivities

__all__ = ["MixedFormats", "mix_formats_"]

# In the place of a group: all of them.
_WHOLE = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class MixedFormats:
    """What :func:`mix_formats_` returns.

    Attributes:
        calibration: the representations, bound to the model, and the errors of the layers.
        formats: short name by weight.
        bits: true bits per weight.
        divergence: of the model from what it was, in nats per token.
        uniform: the best single format within the budget.
        uniform_bits: its true bits per weight.
        uniform_divergence: of the model in it.
    """

    calibration: Calibration
    formats: dict[str, str]
    bits: float
    divergence: float
    uniform: str
    uniform_bits: float
    uniform_divergence: float

    @property
    def mixes(self) -> bool:
        """Whether several formats do better than a single one."""
        return len(set(self.formats.values())) > 1


def mix_formats_(
    model: nn.Module,
    tokens: Tensor,
    held_out: Tensor,
    names: list[str],
    candidates: Mapping[str, Scheme],
    bits: float,
    *,
    masks: tuple[Tensor, Tensor] | None = None,
    start: Start | None = None,
    end_loss: EndLoss | None = None,
    asymmetric: AsymmetricCalibration | None = None,
    fine_tuning: FineTuning | None = None,
    work: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MixedFormats:
    r"""Quantize layers of a language model in formats chosen for a number of bits, in place.

    Every candidate is calibrated on the whole model. Then each group of layers that servers join
    is quantized alone, and the divergence of the model's predictions from its own measured; the
    formats are those of the least sum,

    .. math::
        \min_f \sum_g \operatorname{KL}(p \,\|\, p_{g \to f_g}) \quad \text{with} \quad
        \sum_g \mathrm{bits}(g, f_g) \le b\, d .

    The model is calibrated in them and measured as a whole. Where a single format within the
    budget diverges less, the model gets that one.

    Args:
        model: a causal language model, see :func:`pvopt.calibration.calibrate_`.
        tokens: ``[sequences, length]``, to calibrate on.
        held_out: ``[sequences, length]``, to measure divergences on.
        names: of the weights.
        candidates: schemes by short name (:func:`candidates_near`); one of them at least is within
            the budget.
        bits: ``b``, per weight, scales and codebooks counted.
        masks: of tokens and held_out, 0 for padding; None for none.
        start: of all weights; None for what suits each format.
        end_loss: see :func:`pvopt.calibration.calibrate_`.
        asymmetric: likewise.
        fine_tuning: likewise.
        work: folder that keeps calibrated blocks and divergences: other numbers of bits cost no
            new measurements, and an interrupted call goes on. None keeps nothing.
        seed: of the starts.
        progress: wraps the names of what is calibrated or measured.

    Returns:
        Representations, formats and divergences.

    Raises:
        ValueError: if no candidate is within the budget, or for what
            :func:`pvopt.calibration.calibrate_` refuses.
        CheckpointError: if the work folder is of other inputs, or damaged.

    Example:
        >>> from pvopt import parse_scheme
        >>> from pvopt.allocation import mix_formats_
        >>> from pvopt.llm import load_model, load_text
        >>> loaded = load_model("tiny-llama")
        >>> tokens = loaded.encode(load_text("pydoc"))[: 8 * 32].view(8, 32)
        >>> names = [f"model.layers.1.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")]
        >>> candidates = {n: parse_scheme(n) for n in ("grid:2g32s", "grid:4g32s")}
        >>> mixed = mix_formats_(loaded.model, tokens[:6], tokens[6:], names, candidates, 3.5)
        >>> mixed.bits <= 3.5, mixed.divergence <= mixed.uniform_divergence
        (True, True)
    """
    if not 0 < bits < math.inf:
        raise ValueError(f"bits must be positive and finite, got {bits}")
    shapes = {name: tuple(model.get_parameter(name).shape) for name in names}
    fitted = {
        format: select_schemes(model, dict.fromkeys(names, scheme), ()).chosen
        for format, scheme in candidates.items()
    }
    sizes = {format: mean_bits(schemes, shapes) for format, schemes in fitted.items()}
    within = [format for format, size in sizes.items() if size <= bits]
    if not within:
        raise ValueError(
            f"bits must be at least {min(sizes.values(), default=math.nan):.3f}, the smallest "
            f"candidate's, got {bits}"
        )
    folder = None if work is None else Path(work)
    settings: dict[str, Any] = {
        "tokens": digest([tokens, held_out, *(masks or ())]),
        "weights": digest(model.parameters()),
        "names": names,
        "start": None if start is None else STARTS.to_json(start),
        "end_loss": None if end_loss is None else asdict(end_loss),
        "asymmetric": None if asymmetric is None else asdict(asymmetric),
        "fine_tuning": None if fine_tuning is None else asdict(fine_tuning),
        "seed": seed,
    }
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    file = None if folder is None else folder / "sensitivities.json"
    known = Sensitivities(file, settings)
    predictions = Predictions(model, held_out, None if masks is None else masks[1])
    groups = fused_groups(names)

    def calibrated(schemes: Mapping[str, Scheme], place: str) -> tuple[nn.Module, Calibration]:
        copied = copy.deepcopy(model)
        found = calibrate_(
            copied,
            tokens,
            schemes,
            {name: start or usual_start(scheme) for name, scheme in schemes.items()},
            masks=None if masks is None else masks[0],
            exclude=(),
            end_loss=end_loss,
            asymmetric=asymmetric,
            fine_tuning=fine_tuning,
            work=None if folder is None else folder / re.sub(r"[^\w.-]", "-", place),
            seed=seed,
            progress=progress,
        )
        return copied, found

    def whole(schemes: Mapping[str, Scheme], place: str) -> Calibration:
        """Calibrate the model and measure it as a whole."""
        copied, found = calibrated(schemes, place)
        if known.get(_WHOLE, place) is None:
            known.put(_WHOLE, place, predictions.divergence(copied))
        return found

    single: dict[str, Calibration] = {}
    for format, schemes in fitted.items():
        found = whole(schemes, format)
        known.measure(model, groups, format, found.weights, predictions, progress)
        if format in within:
            single[format] = found
    formats = _least(known, groups, fitted, shapes, bits)
    uniform = min(within, key=lambda format: known[_WHOLE, format])
    chosen, place, result = dict.fromkeys(names, uniform), uniform, single[uniform]
    if len(set(formats.values())) > 1:
        other = f"mixed-{zlib.crc32(json.dumps(formats).encode()):08x}"
        found = whole({name: fitted[format][name] for name, format in formats.items()}, other)
        if known[_WHOLE, other] < known[_WHOLE, uniform]:
            chosen, place, result = formats, other, found
    weights = QuantizedWeights(model, dict(result.weights))
    weights.write_()
    return MixedFormats(
        calibration=replace(result, weights=weights),
        formats=chosen,
        bits=mean_bits({name: fitted[format][name] for name, format in chosen.items()}, shapes),
        divergence=known[_WHOLE, place],
        uniform=uniform,
        uniform_bits=sizes[uniform],
        uniform_divergence=known[_WHOLE, uniform],
    )


def _least(
    known: Sensitivities,
    groups: Sequence[Sequence[str]],
    fitted: Mapping[str, Mapping[str, Scheme]],
    shapes: Mapping[str, tuple[int, ...]],
    bits: float,
) -> dict[str, str]:
    """Return the format of each weight for the least sum of divergences."""
    names = list(fitted)
    options = []
    for group in groups:
        own = {name: shapes[name] for name in group}
        count = sum(map(math.prod, own.values()))
        sizes = [
            count * mean_bits({n: schemes[n] for n in group}, own) for schemes in fitted.values()
        ]
        losses = [known[group[0], format] for format in names]
        options.append([Option(*pair) for pair in zip(sizes, losses, strict=True)])
    # Sums of the same numbers in another order may differ in their last digits.
    budget = bits * sum(map(math.prod, shapes.values())) * (1 + 1e-12)
    found = allocate(options, budget)
    return {
        name: names[number] for group, number in zip(groups, found, strict=True) for name in group
    }
