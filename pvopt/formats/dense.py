"""Dense models of transformers: decoded weights, for whatever loads models in full precision."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from .contract import FORMATS, Checkpoint, Writer
from .exports import EXPORT, foreign_files, write_export
from .models import unsupported_model
from .shards import untied, write_shards
from .transformers_files import write_transformers_files

__all__ = ["Dense"]


@FORMATS.register
class Dense(Writer):
    """Writes what ``save_pretrained`` writes: what was quantized cannot be told any more."""

    name = "dense"
    marker = EXPORT
    usage = "vllm serve {folder}"

    def can_write(self, checkpoint: Checkpoint) -> str | None:
        return unsupported_model(checkpoint)

    def foreign(self, folder: Path) -> Collection[str]:
        return foreign_files(folder)

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        write_transformers_files(folder, checkpoint.model, checkpoint.tokenizer, None)
        write_shards(folder, untied(checkpoint.model))
        write_export(folder, self.name)
