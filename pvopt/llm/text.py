"""Texts to tune and to evaluate on, and the endless stream of token batches made of them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PYDOC = "pydoc"
_HUB = "hub:"


def load_text(source: str | Path) -> str:
    """Load a text.

    Args:
        source: one of

            * ``pydoc``: Python's own manual from the standard library (about 460 kB; its wording
              follows the Python version), topics in alphabetical order,
            * ``hub:NAME[:CONFIG[:SPLIT]]``: the column ``text`` of a Hugging Face dataset, rows
              joined by blank lines as published perplexities do; the split is ``train`` unless
              named, e.g. ``hub:Salesforce/wikitext:wikitext-2-raw-v1:test``,
            * the path of a UTF-8 text file.

    Returns:
        The text, not empty.

    Raises:
        ValueError: `source` names nothing readable, or the text there is empty.
        ImportError: a ``hub:`` source without the package `datasets`.

    Example:
        >>> from pvopt.llm import load_text
        >>> text = load_text("pydoc")
        >>> '"assert"' in text
        True
    """
    source = str(source)
    if source == _PYDOC:
        text = _python_manual()
    elif source.startswith(_HUB):
        text = _hub_text(source)
    else:
        text = _file_text(source)
    if not text.strip():
        raise ValueError(f"source={source!r} holds an empty text")
    return text


def split_text(text: str, held_out: float = 0.1) -> tuple[str, str]:
    r"""Cut a text in two at a paragraph: first the part to train on, then the part held out.

    The cut is the blank line nearest to the wanted place; a text without blank lines is cut at
    the nearest line end, one without lines at the nearest space. Blanks around the text go.

    Args:
        text: the whole text.
        held_out: fraction of the characters to hold out, between 0 and 1.

    Returns:
        ``(train, held_out)``, both non-empty, without the separator between them.

    Raises:
        ValueError: `held_out` is not inside (0, 1), or `text` has nowhere to be cut.

    Example:
        >>> from pvopt.llm import split_text
        >>> split_text("one\n\ntwo\n\nthree four", held_out=0.5)
        ('one\n\ntwo', 'three four')
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie strictly between 0 and 1, got {held_out}")
    text = text.strip()  # so that every cut inside leaves words on both sides
    wanted = round(len(text) * (1 - held_out))
    for separator in ("\n\n", "\n", " "):
        before = text.rfind(separator, 0, wanted + len(separator) - 1)  # starts before `wanted`
        after = text.find(separator, wanted)
        cuts = [cut for cut in (before, after) if cut >= 0]
        if cuts:
            cut = min(cuts, key=lambda cut: abs(cut - wanted))
            return text[:cut], text[cut + len(separator) :]
    raise ValueError(
        f"text of {len(text)} characters cannot be cut in two: it needs a blank line, a line end "
        "or a space with text on both sides"
    )


#: Which part of a text: all but its last tenth to train on, that tenth, or all of it.
PARTS = ("held-out", "train", "all")


@dataclass(frozen=True)
class TextPart:
    """A part of a text, with what tells it from others.

    Attributes:
        source: what :func:`load_text` was asked for.
        part: ``train``, ``held-out`` or ``all``, cut as :func:`split_text` does.
        text: the part.
        digest: checksum of the whole text.

    Example:
        >>> from pvopt.llm import TextPart
        >>> TextPart("mine", "all", "so long", "0").record("tuning")["use"]
        'tuning'
    """

    source: str
    part: str
    text: str
    digest: str

    @classmethod
    def load(cls, source: str | Path, part: str) -> TextPart:
        """Load a part of a text.

        Example:
            >>> from pvopt.llm import TextPart
            >>> TextPart.load("pydoc", "held-out").record("tuning")["part"]
            'held-out'
        """
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
        whole = load_text(source)
        digest = hashlib.sha256(whole.encode()).hexdigest()
        if part == "all":
            return cls(str(source), part, whole, digest)
        return cls(str(source), part, split_text(whole)[0 if part == "train" else 1], digest)

    def record(self, use: str) -> dict[str, str]:
        """Describe what the part was used for, for the metadata of a checkpoint."""
        return {"use": use, "text": self.source, "part": self.part, "sha256": self.digest}

    @staticmethod
    def recorded(metadata: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return the records among the metadata of a checkpoint; what is none is left out.

        Example:
            >>> from pvopt.llm import TextPart
            >>> record = TextPart("mine", "all", "so long", "0").record("tuning")
            >>> TextPart.recorded({"seen": [record, "yours"]}) == [record]
            True
        """
        found = metadata.get("seen")
        keys = TextPart("", "", "", "").record("").keys()
        return [
            record
            for record in (found if isinstance(found, list) else ())
            if isinstance(record, dict)
            and record.keys() == keys
            and all(isinstance(value, str) for value in record.values())
        ]

    def overlaps(self, record: Mapping[str, str]) -> bool:
        """Tell whether a recorded part has text in common with this one."""
        same = record.get("sha256") == self.digest
        return same and {self.part, record.get("part")} != {"train", "held-out"}


class TokenBatches:
    """An endless stream of training batches that any step number can enter.

    The tokens are cut into non-overlapping windows. Each epoch visits the windows in its own random
    order, drawn from `seed` and the epoch number alone; windows left over after the last whole
    batch of an epoch wait for another epoch. Batch number `step` therefore depends on the tokens,
    the seed and `step` only: a resumed run continues with ``batches[step]`` and stores nothing.

    Args:
        tokens: token ids, [tokens], integers.
        batch_size: windows per batch.
        sequence_length: tokens per window.
        seed: seed of all permutations.

    Raises:
        TypeError: `tokens` are not integers in one dimension.
        ValueError: a size is below 1, or there are fewer tokens than one batch needs.

    Example:
        >>> import torch
        >>> from pvopt.llm import TokenBatches
        >>> batches = TokenBatches(range(100), batch_size=2, sequence_length=10, seed=0)
        >>> batches[0].shape
        torch.Size([2, 10])
        >>> batches.steps_per_epoch
        5
        >>> torch.equal(batches[123], batches[123])
        True
    """

    def __init__(
        self, tokens: Tensor | Sequence[int], batch_size: int, sequence_length: int, seed: int
    ) -> None:
        tokens = torch.as_tensor(tokens)
        if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex():
            raise TypeError(
                f"tokens must be integers of shape [tokens], got {tokens.dtype} of shape "
                f"{list(tokens.shape)}"
            )
        for name, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if len(tokens) < batch_size * sequence_length:
            raise ValueError(
                f"tokens must hold at least one batch of batch_size x sequence_length = "
                f"{batch_size} x {sequence_length} = {batch_size * sequence_length} tokens, "
                f"got {len(tokens)}"
            )
        windows = len(tokens) // sequence_length
        self._windows = tokens[: windows * sequence_length].long().view(windows, sequence_length)
        self._batch_size = batch_size
        self._seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the windows."""
        return len(self._windows) // self._batch_size

    def __getitem__(self, step: int) -> Tensor:
        """Return batch number `step`, counted from 0: [batch_size, sequence_length], int64."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        epoch, index = divmod(step, self.steps_per_epoch)
        # A hash keeps neighbouring seeds and epochs from sharing a permutation.
        digest = hashlib.blake2b(f"{self._seed}/{epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))
        order = torch.randperm(len(self._windows), generator=generator)
        chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
        return self._windows[chosen.to(self._windows.device)]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches from step 0 on, without end."""
        return map(self.__getitem__, itertools.count())


def _python_manual() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError(
            f"source={_PYDOC!r}: this Python comes without its manual (pydoc_data.topics); "
            "name a text file instead"
        ) from error
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def _file_text(source: str) -> str:
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f"source={source!r} must be {_PYDOC!r}, '{_HUB}NAME[:CONFIG[:SPLIT]]' or the path of "
            "an existing text file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"source={source!r} is not a UTF-8 text file: {error}") from error


def _hub_text(source: str) -> str:
    name, *rest = source.removeprefix(_HUB).split(":")
    if not name or len(rest) > 2:
        raise ValueError(f"source={source!r} must have the form '{_HUB}NAME[:CONFIG[:SPLIT]]'")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"source={source!r} needs the package datasets, which is not installed: "
            "pip install datasets"
        ) from error
    config, split = [*rest, *[""] * (2 - len(rest))]
    dataset: Any = datasets.load_dataset(name, config or None, split=split or "train")
    if "text" not in dataset.column_names:
        raise ValueError(
            f"source={source!r} must have a column 'text', it has {dataset.column_names}"
        )
    return "\n\n".join(dataset["text"])
