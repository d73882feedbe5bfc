"""Files: how models with codes and values are written and read, one package for each format.

:func:`save` writes a folder, :func:`load` finds out its format and reads it. The format ``native``
is lossless for every representation, and the only one that training can be resumed from.
"""

# The first to be asked, and to be named: folders of ours are no other's.
from . import native as _native  # noqa: F401, it registers itself

# isort: split
from . import aqlm as _aqlm  # noqa: F401, alike
from . import compressed_tensors as _compressed_tensors  # noqa: F401, alike
from . import dense as _dense  # noqa: F401, alike
from . import exl3 as _exl3  # noqa: F401, alike
from . import gguf as _gguf  # noqa: F401, alike
from . import gptq as _gptq  # noqa: F401, alike
from .checkpoints import check_place, load, load_tokenizer, read_metadata, save
from .contract import FORMATS, Checkpoint, Formats, Reader, Writer
from .errors import CheckpointError
from .folders import complete_folder
from .integer_grids import StoredGrid
from .layerwise import LayerFormat
from .native import (
    StorageReport,
    WeightStorage,
    load_representations,
    load_training_state,
    save_representations,
    storage_report,
)

__all__ = [
    "FORMATS",
    "Checkpoint",
    "CheckpointError",
    "Formats",
    "LayerFormat",
    "Reader",
    "StorageReport",
    "StoredGrid",
    "WeightStorage",
    "Writer",
    "check_place",
    "complete_folder",
    "load",
    "load_representations",
    "load_tokenizer",
    "load_training_state",
    "read_metadata",
    "save",
    "save_representations",
    "storage_report",
]
