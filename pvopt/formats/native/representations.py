"""Representations by themselves, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pvopt.formats.folders import one_generation, read_complete, replaced_folder
from pvopt.formats.shards import write_shards
from pvopt.parametrizations.representation import Representation

from .manifest import Manifest, WeightEntry, files_of
from .native import Native
from .tensors import checked_tensors, packed, unpacked

__all__ = ["load_representations", "save_representations"]


def save_representations(
    folder: str | Path,
    representations: Mapping[str, Representation],
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write representations without a model, losslessly, in the place of an older checkpoint.

    The folder is complete on the disk, with checksums, before it replaces an older one. What
    :func:`read_metadata` and :func:`storage_report` tell of checkpoints they tell of it, too.

    Args:
        folder: where to; replaced if it is a checkpoint, refused if it is anything else.
        representations: by any names, each of one weight; members of stacks may be given.
        metadata: primitives, lists and dictionaries to keep.

    Returns:
        The folder.

    Raises:
        CheckpointError: if the folder is in use for something else, or something cannot be stored.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import pvopt
        >>> from pvopt.formats import load_representations, save_representations
        >>> rep = pvopt.UniformGrid(bits=2).fit(torch.randn(4, 8))
        >>> folder = save_representations(tempfile.mkdtemp(), {"w": rep}, metadata={"error": 0.1})
        >>> torch.equal(load_representations(folder)["w"].decode(), rep.decode())
        True
    """
    entries = {name: WeightEntry.of(name, rep, rep.dtype) for name, rep in representations.items()}
    tensors = {k: t for name, rep in representations.items() for k, t in packed(name, rep).items()}
    with replaced_folder(folder, Native.marker, Native().foreign) as new:
        write_shards(new, tensors)
        Manifest(None, entries, {}, files_of(new), metadata or {}).write(new)
    return Path(folder)


def load_representations(folder: str | Path) -> dict[str, Representation]:
    """Read the representations of a checkpoint, with or without a model in it.

    Args:
        folder: as given to :func:`save_representations` or :func:`pvopt.formats.save`.

    Returns:
        The representations by name, in the order in which they were saved, on the CPU.

    Raises:
        CheckpointError: if a file is missing, truncated, damaged or foreign.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import pvopt
        >>> from pvopt.formats import load_representations, save_representations
        >>> rep = pvopt.Ternary().fit(torch.randn(4, 8))
        >>> folder = save_representations(tempfile.mkdtemp(), {"w": rep})
        >>> load_representations(folder)["w"].scheme.name
        'ternary'
    """

    def read(path: Path) -> dict[str, Representation]:
        with one_generation(path):
            manifest = Manifest.read(path)
            file, tensors = checked_tensors(path, manifest)
            return {n: unpacked(file, n, e, tensors) for n, e in manifest.weights.items()}

    return read_complete(folder, read)
