"""Our own format: a folder with packed codes, values and the other weights of a model."""

from .native import Native, load_training_state
from .representations import load_representations, save_representations
from .storage import StorageReport, WeightStorage, storage_report

__all__ = [
    "Native",
    "StorageReport",
    "WeightStorage",
    "load_representations",
    "load_training_state",
    "save_representations",
    "storage_report",
]
