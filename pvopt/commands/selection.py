"""Which weights of a language model a command quantizes, and to what."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from pvopt.selection.patterns import check_patterns
from pvopt.selection.schemes import select_schemes

if TYPE_CHECKING:
    from pvopt import Scheme

__all__ = ["Choice", "add_selection", "choose"]

# Less than this share of the matrices quantized is what nobody expects without being told.
_ENOUGH = 0.9


@dataclass(frozen=True)
class Choice:
    """What is quantized of a model and what is left.

    Args:
        layers: schemes of the weights of layers, by parameter name.
        outside: schemes of embeddings and output head, by parameter name.
        left: number of weights of every other matrix, by parameter name; embeddings, the output
            head and what the user excluded are not among them.
        excluded: number of weights that the user excluded.
    """

    layers: dict[str, Scheme]
    outside: dict[str, Scheme]
    left: dict[str, int]
    excluded: int

    def share(self, model: nn.Module) -> float:
        """Return the share of the wanted matrices' weights that is quantized."""
        found = sum(model.get_parameter(name).numel() for name in self.layers)
        total = found + sum(self.left.values())
        return found / total if total else 1.0

    def check(self, model: nn.Module) -> None:
        """Refuse to quantize much less than one would expect.

        Raises:
            ValueError: if the share is below 90 %.
        """
        share = self.share(model)
        if share < _ENOUGH:
            most = sorted(self.left, key=lambda name: -self.left[name])
            raise ValueError(
                f"only {share:.0%} of the weights of this model's matrices would be quantized; "
                f"{len(most)} others are of no known kind, such as {', '.join(most[:3])}: name "
                "them by --layer PATTERN=FORMAT or --exclude PATTERN, or accept it by --partial"
            )


def add_selection(parser: Any) -> None:
    """Add the flags that say what to quantize to what."""
    group = parser.add_argument_group("what is quantized")
    group.add_argument("--format", default="2x8g8", help="a form below; default 2x8g8")
    group.add_argument(
        "--layer",
        action="append",
        default=[],
        metavar="PATTERN=FORMAT",
        help="another format for layers whose name matches, such as '*.mlp.*=grid:4g64'; may be "
        "repeated, the first match counts",
    )
    group.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave layers or weights whose name matches as they are; may be repeated",
    )
    for name, what in (("head", "output head"), ("embeddings", "input embeddings")):
        group.add_argument(
            f"--{name}",
            nargs="?",
            const="",
            metavar="FORMAT",
            help=f"quantize the {what}, too, to --format unless another one is given",
        )
    group.add_argument(
        "--partial",
        action="store_true",
        help=f"accept that less than {100 * _ENOUGH:.0f} %% of the matrices' weights are quantized",
    )


def choose(args: Any, model: nn.Module) -> Choice:
    """Find the weights to quantize.

    Args:
        args: flags of :func:`add_selection`.
        model: a causal language model; nothing of it is changed.

    Raises:
        ValueError: if a pattern matches nothing, a format does not fit, or head and embeddings are
            one weight and get two formats.
    """
    from pvopt.parametrizations import parse_scheme

    scheme = parse_scheme(args.format)
    check_patterns(model, args.exclude, "--exclude")
    names = {id(p): name for name, p in model.named_parameters()}
    embeddings = _weight_name(model, "get_input_embeddings", names)
    head = _weight_name(model, "get_output_embeddings", names)
    outside: dict[str, Scheme] = {}
    for flag, name, given in (
        ("--embeddings", embeddings, args.embeddings),
        ("--head", head, args.head),
    ):
        if given is None:
            continue
        if name is None:
            raise ValueError(f"{flag}: the model does not say which weight that is")
        for alias in _aliases(model, {name}):
            pattern = _matching(alias, args.exclude)
            if pattern is not None:
                raise ValueError(f"{flag} and --exclude {pattern!r} are one weight, {alias!r}")
        wanted = parse_scheme(given) if given else scheme
        if outside.setdefault(name, wanted) != wanted:
            raise ValueError(
                f"--head and --embeddings are one weight in this model, {name!r}, and need one "
                "format"
            )
    spec = {"*": scheme} | _formats(args.layer)
    spec["*"] = spec.pop("*")  # the last to be asked
    apart = {name for name in (embeddings, head) if name is not None}
    left_out = (*args.exclude, *_aliases(model, apart))
    layers = select_schemes(model, spec, left_out, "--layer", optional=("*",)).chosen
    if not layers and not outside:
        raise ValueError(
            "nothing is left to quantize: --exclude matches every layer, or there are none"
        )
    if outside:
        outside = select_schemes(model, outside, (), "--head").chosen
    left, excluded = _left(model, {*layers, *outside}, apart, args.exclude)
    return Choice(layers, outside, left, excluded)


def _formats(layers: Sequence[str]) -> dict[str, Scheme]:
    from pvopt.parametrizations import parse_scheme

    found = {}
    for text in layers:
        pattern, separator, form = text.partition("=")
        if not (pattern and separator and form):
            raise ValueError(f"--layer must be PATTERN=FORMAT, got {text!r}")
        if pattern in found:
            raise ValueError(f"--layer must have each pattern once, got {pattern!r} again")
        found[pattern] = parse_scheme(form)
    return found


def _weight_name(model: Any, getter: str, names: dict[int, str]) -> str | None:
    """Return the parameter of the embeddings or the head by its first name, tied or not."""
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return names.get(id(getattr(module, "weight", None)))


def _aliases(model: nn.Module, names: set[str]) -> list[str]:
    """Return all names of some parameters: tied ones have several."""
    parameters = {id(model.get_parameter(name)) for name in names}
    every = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in every if id(parameter) in parameters]


def _matching(name: str, patterns: Sequence[str]) -> str | None:
    """Return the first pattern that a parameter or its module matches."""
    names = (name, name.rpartition(".")[0])
    return next((p for p in patterns if any(fnmatch.fnmatchcase(n, p) for n in names)), None)


def _left(
    model: nn.Module, chosen: set[str], apart: set[str], exclude: Sequence[str]
) -> tuple[dict[str, int], int]:
    """Return the sizes of matrices that are not chosen, and how many weights are excluded."""
    lookups = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    left, excluded = {}, 0
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name in chosen or name in apart or name in lookups:
            continue
        if _matching(name, exclude) is not None:
            excluded += parameter.numel()
        else:
            left[name] = parameter.numel()
    return left, excluded
