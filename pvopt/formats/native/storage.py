"""What a checkpoint takes on the disk, to the bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pvopt.formats.folders import one_generation, read_complete
from pvopt.formats.shards import INDEX, holds_tensors, read_shards
from pvopt.parametrizations.scheme import Scheme

from .manifest import Manifest
from .tensors import check_parts, part_names, tensors_place

__all__ = ["StorageReport", "WeightStorage", "storage_report"]


@dataclass(frozen=True)
class WeightStorage:
    """Storage of one quantized weight.

    Args:
        name: of the parameter.
        shape: of the dense weight.
        scheme: its settings.
        codes: bytes of packed codes by stream.
        values: bytes of codebooks, scales and so on by name, as stored.
    """

    name: str
    shape: tuple[int, ...]
    scheme: Scheme
    codes: Mapping[str, int]
    values: Mapping[str, int]

    @property
    def code_bytes(self) -> int:
        """Bytes of all packed codes."""
        return sum(self.codes.values())

    @property
    def value_bytes(self) -> int:
        """Bytes of all values."""
        return sum(self.values.values())

    @property
    def count(self) -> int:
        """Number of dense weights."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight as stored."""
        return 8 * (self.code_bytes + self.value_bytes) / self.count

    @property
    def bits_per_weight_16(self) -> float:
        """Bits per weight with values of 16 bits, the usual way to count."""
        return self.scheme.bits_per_weight(self.shape, value_bits=16)


@dataclass(frozen=True)
class StorageReport:
    """Storage of a whole checkpoint.

    Args:
        weights: the quantized weights.
        other_count: number of weights that are not quantized (each tied one counted once).
        other_bytes: what these take, as stored.
        file_bytes: size of ``model.safetensors``, or of all its shards.
    """

    weights: tuple[WeightStorage, ...]
    other_count: int
    other_bytes: int
    file_bytes: int

    @property
    def count(self) -> int:
        """Number of quantized weights."""
        return sum(weight.count for weight in self.weights)

    @property
    def bits_per_weight(self) -> float:
        """Bits per quantized weight as stored, with codebooks and scales."""
        stored = sum(weight.code_bytes + weight.value_bytes for weight in self.weights)
        return 8 * stored / max(1, self.count)

    @property
    def bits_per_weight_16(self) -> float:
        """Bits per quantized weight with values of 16 bits."""
        return self._bits_16() / max(1, self.count)

    @property
    def total_bits_per_weight(self) -> float:
        """Bits per weight of the whole model as stored, embeddings and all."""
        bits = self.bits_per_weight * self.count + 8 * self.other_bytes
        return bits / max(1, self.count + self.other_count)

    @property
    def total_bits_per_weight_16(self) -> float:
        """Bits per weight of the whole model with values and other weights of 16 bits."""
        bits = self._bits_16() + 16 * self.other_count
        return bits / max(1, self.count + self.other_count)

    def _bits_16(self) -> float:
        return sum(weight.bits_per_weight_16 * weight.count for weight in self.weights)


def storage_report(folder: str | Path) -> StorageReport:
    """Measure a checkpoint, from the headers of its files alone.

    Args:
        folder: the checkpoint.

    Returns:
        Bytes and bits of every weight.

    Raises:
        CheckpointError: if the folder is no checkpoint, or its file is truncated.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import pvopt
        >>> from pvopt.formats import save, storage_report
        >>> folder, model = tempfile.mkdtemp(), torch.nn.Linear(64, 64, bias=False)
        >>> weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2, group_size=32))
        >>> report = storage_report(save(folder, model, weights))
        >>> report.bits_per_weight, report.bits_per_weight_16  # scale and zero per 32 weights
        (4.0, 3.0)
    """
    return read_complete(folder, _measure)


def _measure(folder: Path) -> StorageReport:
    with one_generation(folder):
        manifest = Manifest.read(folder)
        file = tensors_place(folder, manifest)
        tensors = read_shards(folder, sharded=file.name == INDEX)  # mapped, not read
        shards = filter(holds_tensors, manifest.files)
        file_bytes = sum((folder / name).stat().st_size for name in shards)
    sizes = {name: (tensor.numel(), tensor.nbytes) for name, tensor in tensors.items()}
    weights = []
    for name, entry in manifest.weights.items():
        check_parts(file, name, entry, tensors)
        taken = {k: sizes.pop(stored)[1] for k, stored in part_names(name, entry).items()}
        codes = {key: taken[f"codes.{key}"] for key in entry.streams}
        values = {key: taken[f"values.{key}"] for key in entry.value_shapes}
        weights.append(WeightStorage(name, entry.shape, entry.scheme, codes, values))
    return StorageReport(
        tuple(weights),
        sum(count for count, _ in sizes.values()),
        sum(size for _, size in sizes.values()),
        file_bytes,
    )
