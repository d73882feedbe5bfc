"""Small tasks whose data comes with scikit-learn and Python: digits and text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data import topics

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from pvopt import Parametrization, UniformGrid, VectorCodebook

__all__ = ["TASKS", "Batch", "Task"]

Batch = tuple[Tensor, Tensor]

TRAIN, VALIDATION = 1000, 300  # of 1797 digits; the rest are for the test
CONTEXT = 8  # characters that the character model sees
WINDOW = 32  # tokens of a sequence of the language model


@dataclass(frozen=True)
class Task:
    """Data, a model and how both are used.

    Args:
        model: makes an untrained model.
        parametrization: of the quantized weights, 2 bits of codes for each.
        data: returns inputs and labels of a split: ``train``, ``validation`` or ``test``.
        lr: learning rate of Adam, for the start, for full precision and for every recipe.
        batch: examples of a step.
        steps: of the start in full precision, and again of each recipe.
    """

    model: Callable[[], nn.Module]
    parametrization: Parametrization
    data: Callable[[str], Batch]
    lr: float = 3e-3
    batch: int = 64
    steps: int = 150

    def quantized(self, model: nn.Module) -> list[str]:
        """Return the names of the weights that are quantized: all matrices but embeddings."""
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        named = model.named_parameters()
        return [name for name, p in named if p.ndim > 1 and id(p) not in embeddings]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        inputs, labels = batch
        return functional.cross_entropy(_logits(model, inputs), labels.flatten())

    @torch.no_grad()
    def score(self, model: nn.Module, data: Batch) -> float:
        """Return the mean cross-entropy on a whole split."""
        return float(self.loss(model, data))


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    found = model(inputs)
    found = getattr(found, "logits", found)
    return found.flatten(0, -2)


def _digits(split: str) -> Batch:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    first, last = {
        "train": (0, TRAIN),
        "validation": (TRAIN, TRAIN + VALIDATION),
        "test": (TRAIN + VALIDATION, len(labels)),
    }[split]
    chosen = order[first:last]
    return torch.tensor(images, dtype=torch.float32)[chosen] / 16, torch.tensor(labels)[chosen]


def _text(split: str) -> Tensor:
    """Return the characters of Python's help topics as numbers below 128."""
    pages = [text for _, text in sorted(topics.topics.items())]
    order = torch.randperm(len(pages), generator=torch.Generator().manual_seed(0)).tolist()
    third = len(pages) // 8
    chosen = {
        "test": order[:third],
        "validation": order[third : 2 * third],
        "train": order[2 * third :],
    }[split]
    text = "".join(pages[i] for i in chosen)
    limit = None if split == "train" else 8_000
    return torch.tensor([ord(c) if ord(c) < 128 else 63 for c in text[:limit]])


def _next_character(split: str) -> Batch:
    windows = _text(split).unfold(0, CONTEXT + 1, 1)
    return windows[:, :-1], windows[:, -1]


def _next_characters(split: str) -> Batch:
    windows = _text(split).unfold(0, WINDOW + 1, WINDOW)
    return windows[:, :-1], windows[:, 1:]


def _mlp() -> nn.Module:
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


class _GRU(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(8, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.rows(images.unflatten(1, (8, 8)))[0][:, -1])


def _character_model() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(128, 16),
        nn.Flatten(),
        nn.Linear(16 * CONTEXT, 96),
        nn.ReLU(),
        nn.Linear(96, 96),
        nn.ReLU(),
        nn.Linear(96, 128),
    )


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=48,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WINDOW,
        )
    )


GRID = UniformGrid(bits=2)
#: The tasks by name.
TASKS = {
    "MLP": Task(_mlp, GRID, _digits),
    "CNN": Task(_cnn, GRID, _digits),
    "GRU": Task(_GRU, GRID, _digits),
    "characters": Task(_character_model, GRID, _next_character, batch=64),
    "Llama": Task(
        _llama,
        VectorCodebook(bits=4, group_size=2),
        _next_characters,
        batch=16,
    ),
}
