"""Checkpoints: one file per on-disk format, written so that a crash never costs the last one."""

from pvopt.formats.errors import CheckpointError
from .checkpoint import Checkpoint, load, load_training_state, read_metadata, save
from .packing import pack, packed_size, unpack
from .storage import StorageReport, WeightStorage, storage_report
from .transformers_files import load_tokenizer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "StorageReport",
    "WeightStorage",
    "load",
    "load_tokenizer",
    "load_training_state",
    "pack",
    "packed_size",
    "read_metadata",
    "save",
    "storage_report",
    "unpack",
]
