"""The flags of ``pvopt quantize --bits``, and what it does."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pvopt import Scheme
    from pvopt.calibration import Calibration, Sequences
    from pvopt.llm import LanguageModel

__all__ = ["add_mixing", "check_mixing", "mix"]

# This share of the sequences is kept apart, to measure divergences on.
_APART = 8


def add_mixing(parser: Any) -> None:
    """Add the flags that choose formats by what they cost."""
    group = parser.add_argument_group("bits where they matter")
    group.add_argument(
        "--bits",
        type=float,
        help="bits per weight of the layers, scales and codebooks counted, such as 2.25: every "
        "layer gets the candidate with which the model predicts most like the original; --head and "
        "--embeddings are not among them",
    )
    group.add_argument(
        "--candidates",
        metavar="FORMATS",
        help="formats to choose from, joined by commas; default: those like --format with two "
        "sizes below --bits and two above",
    )


def check_mixing(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together.

    Raises:
        ValueError: if some do not.
    """
    if args.bits is None:
        if args.candidates is not None:
            raise ValueError("--candidates needs --bits")
        return
    if not 0 < args.bits < math.inf:
        raise ValueError(f"--bits must be positive and finite, got {args.bits}")
    if args.calibration is None:
        raise ValueError("--bits needs a text to measure on: --calibration TEXT")
    for name in ("layer", "dry_run"):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} does not go with --bits")


def mix(
    args: argparse.Namespace,
    loaded: LanguageModel,
    layers: dict[str, Scheme],
    sequences: Sequences,
    metadata: dict[str, Any],
    **options: Any,
) -> Calibration:
    """Choose formats, calibrate the model in them, and say what was found."""
    from pvopt.allocation import candidates_near, mix_formats_
    from pvopt.parametrizations import parse_scheme

    count = len(sequences.tokens)
    apart = max(1, count // _APART)
    if count == apart:
        raise ValueError(
            "--bits needs two sequences at least, one to measure on: take a longer text or a "
            "smaller --calibration-length"
        )
    masks = sequences.masks
    shapes = [loaded.model.get_parameter(name).shape for name in layers]
    if args.candidates is None:
        candidates = candidates_near(parse_scheme(args.format), map(tuple, shapes), args.bits)
    else:
        parsed = map(parse_scheme, args.candidates.split(","))
        candidates = {scheme.name: scheme for scheme in parsed}
    found = mix_formats_(
        loaded.model,
        sequences.tokens[:-apart],
        sequences.tokens[-apart:],
        list(layers),
        candidates,
        args.bits,
        masks=None if masks is None else (masks[:-apart], masks[-apart:]),
        **options,
    )
    uniform = f"{found.uniform} alone ({found.uniform_bits:.3f} bits)"
    if found.mixes:
        shares = ", ".join(f"{n} x {name}" for name, n in Counter(found.formats.values()).items())
        print(
            f"{shares}: {found.bits:.3f} bits, {found.divergence:.4f} nats per token from the "
            f"original; {uniform} {found.uniform_divergence:.4f}"
        )
    else:
        print(
            f"no mixture within {args.bits:g} bits is nearer to the original than {uniform}, "
            f"{found.uniform_divergence:.4f} nats per token away: all layers get that"
        )
    metadata["format"] = f"{args.bits:g} bits"
    metadata["mixture"] = {
        "candidates": list(candidates),
        "bits": found.bits,
        "divergence": found.divergence,
        "uniform": found.uniform,
        "uniform_bits": found.uniform_bits,
        "uniform_divergence": found.uniform_divergence,
    }
    return found.calibration
