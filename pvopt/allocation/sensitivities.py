"""What each format of each group of layers costs a model's predictions, measured and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pvopt.core.text_files import replace_text
from pvopt.evaluation_mode import evaluation_mode
from pvopt.formats import CheckpointError
from pvopt.llm import OutputHead, chunked_kl
from pvopt.llm.output_head import run_to_head
from pvopt.parametrizations.representation import Representation

__all__ = ["Predictions", "Sensitivities"]

Progress = Callable[[list[str]], Iterable[str]]


class Predictions:
    r"""The next-token distributions of a model, to compare others with.

    .. math:: \frac1N \sum_n \operatorname{KL}(p_n \,\|\, q_n)

    over the positions of some sequences, with the distributions p of the model that is given and q
    of another one.

    Args:
        model: a causal language model, which may change afterwards.
        tokens: ``[sequences, length]`` token ids.
        masks: of the tokens' shape, 0 for padding, which does not count; None for none.

    Example:
        >>> import torch
        >>> from pvopt.allocation import Predictions
        >>> from pvopt.llm import load_model
        >>> model = load_model("tiny-llama").model
        >>> Predictions(model, torch.arange(40).view(2, 20)).divergence(model)
        0.0
    """

    def __init__(self, model: nn.Module, tokens: Tensor, masks: Tensor | None = None) -> None:
        self._tokens, self._real = tokens, None if masks is None else masks != 0
        self._hidden: list[Tensor] = []
        for hidden, head in self._pass(model):
            self._hidden.append(hidden)
            self._head = head.clone()

    def divergence(self, model: nn.Module) -> float:
        """Return the mean divergence of a model, in nats per token."""
        total, count = 0.0, 0
        for known, (hidden, head) in zip(self._hidden, self._pass(model), strict=True):
            total += len(hidden) * float(chunked_kl(hidden, head, known, self._head))
            count += len(hidden)
        return total / count

    @torch.no_grad()
    def _pass(self, model: nn.Module) -> Iterator[tuple[Tensor, OutputHead]]:
        """Yield what the head of a model is given for each sequence, and the head."""
        device = next(model.parameters()).device
        with evaluation_mode(model):
            for number, ids in enumerate(self._tokens.to(device)):
                hidden, head = run_to_head(model, ids[None])
                real = slice(None) if self._real is None else self._real[number].to(device)
                yield hidden[0][real], head.detach()


class Sensitivities:
    """Divergences by group and format, kept in a file as they are measured.

    Args:
        file: where to; None keeps them in memory alone.
        settings: everything they depend on, as JSON.

    Raises:
        CheckpointError: if the file is of other settings, or damaged.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.allocation import Sensitivities
        >>> file = Path(tempfile.mkdtemp()) / "sensitivities.json"
        >>> Sensitivities(file, {"seed": 0}).put("layers.0", "grid:2g64", 0.25)
        >>> Sensitivities(file, {"seed": 0}).get("layers.0", "grid:2g64")
        0.25
    """

    def __init__(self, file: Path | None, settings: Mapping[str, Any]) -> None:
        self._file, self._settings = file, json.loads(json.dumps(settings))
        self._found: dict[str, dict[str, float]] = {}
        if file is None or not file.exists():
            return
        try:
            content = json.loads(file.read_text("utf-8"))
            known = content["settings"]
            self._found = {
                str(group): {str(name): float(loss) for name, loss in losses.items()}
                for group, losses in content["divergences"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{file}: is damaged ({error}); delete it") from error
        if known != self._settings:
            raise CheckpointError(
                f"{file}: holds divergences measured with other settings; take another folder or "
                "delete it"
            )

    def get(self, group: str, format: str) -> float | None:
        """Return a divergence, or None if it was not measured."""
        return self._found.get(group, {}).get(format)

    def __getitem__(self, key: tuple[str, str]) -> float:
        group, format = key
        return self._found[group][format]

    def put(self, group: str, format: str, divergence: float) -> None:
        """Keep a divergence."""
        self._found.setdefault(group, {})[format] = divergence
        if self._file is not None:
            content = {"settings": self._settings, "divergences": self._found}
            replace_text(self._file, json.dumps(content, indent=1) + "\n")

    def measure(
        self,
        model: nn.Module,
        groups: Sequence[Sequence[str]],
        format: str,
        representations: Mapping[str, Representation],
        predictions: Predictions,
        progress: Progress | None = None,
    ) -> None:
        """Measure each group alone in a format; those that are known are not measured again.

        Args:
            model: in full precision; it is left as it was.
            groups: names of the weights that go together.
            format: short name.
            representations: of all these weights in the format, by name.
            predictions: of the model.
            progress: wraps the names of what is measured.
        """
        lacking = {group[0]: group for group in groups if self.get(group[0], format) is None}
        names = list(lacking)
        for name in names if progress is None else progress(names):
            with _replaced(model, {n: representations[n] for n in lacking[name]}):
                self.put(name, format, predictions.divergence(model))


@contextmanager
def _replaced(model: nn.Module, representations: Mapping[str, Representation]) -> Iterator[None]:
    """Let some weights be decoded ones for a while."""
    parameters = {name: model.get_parameter(name) for name in representations}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        try:
            for name, parameter in parameters.items():
                parameter.copy_(representations[name].decode())
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
