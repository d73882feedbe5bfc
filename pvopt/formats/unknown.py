"""Why a folder is in none of the formats that can be read."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import CheckpointError
from .files import read_json

__all__ = ["unknown_reason"]

_CONFIG = "config.json"


def unknown_reason(path: Path) -> str:
    """Return what a folder says of its format, or a file, that no reader knows.

    Args:
        path: an existing one.

    Raises:
        CheckpointError: if its configuration cannot be read; the message names the file and says
            what is wrong with it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.unknown import unknown_reason
        >>> unknown_reason(Path(tempfile.mkdtemp()))
        'it has no config.json'
    """
    if not path.is_dir():
        return "it is a single file"
    if not os.path.lexists(path / _CONFIG):
        return f"it has no {_CONFIG}"
    config = read_json(path, _CONFIG, strict=False)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path / _CONFIG}: must hold an object")
    settings = config.get("quantization_config")
    if settings is None:
        return f"its {_CONFIG} has no quantization_config, as of a model that is not quantized"
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path / _CONFIG}: quantization_config must be an object")
    return f"its {_CONFIG} has the quant_method {settings.get('quant_method')!r}"
