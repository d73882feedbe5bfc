"""The format of ExLlamaV3: trellises in a rotated space, each layer with bits of its own."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pvopt.formats.contract import FORMATS
from pvopt.formats.errors import CheckpointError
from pvopt.formats.files import read_json
from pvopt.formats.layerwise import LayerFormat
from pvopt.formats.models import WEIGHT
from pvopt.formats.settings_checks import CONFIG
from pvopt.formats.shards import narrowest, read_shards
from pvopt.formats.transformers_files import model_skeleton
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme
from pvopt.parametrizations.trellis import Trellis
from pvopt.spaces import Chain, Rotation
from pvopt.weights import QuantizedWeights

from .canonical import BLOCK, CODES, canonical, check_scheme
from .layers import PARTS, TRELLIS, misfit, read_layer, write_layer

__all__ = ["EXL3Format"]

_HEAD = "lm_head"
_STORAGE = "quantization_config.json"


@FORMATS.register
class EXL3Format(LayerFormat):
    """Models whose linear layers are trellises with scales around a rotation in blocks of 128.

    Layers may have different bits, 1 to 8, or be dense. Reading gives one scheme whatever was
    written, with bits and code of the layer, in float32:
    ``pad128x128[free=False]+scale:in-out[weighted=False]+had128+trellis:2l16-mul1@mma/tensor``.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.exl3 import EXL3Format
        >>> EXL3Format().match(Path(tempfile.mkdtemp()))
        False

    References:
        QTIP (arXiv 2406.11235); the files of ExLlamaV3's published models.
    """

    name = "exl3"
    usage = 'exllamav3.Model.from_config(exllamav3.Config.from_directory("{folder}"))'
    parts = PARTS
    spaces = (Chain, Rotation)
    decodes_in = torch.float32

    def prepared(self, rep: Representation) -> Representation:
        try:
            check_scheme(rep.scheme)
        except ValueError:
            return rep
        return canonical(rep)

    def kind(self, scheme: Scheme) -> Trellis:
        check_scheme(scheme)
        assert isinstance(scheme.parametrization, Trellis)
        return scheme.parametrization

    def refusal(self, kind: Trellis, rep: Representation) -> str | None:
        if rep.dtype != torch.float32:
            return f"it is decoded in float32, its values are {rep.dtype}: pvopt export sees to it"
        return misfit(rep)

    def conflict(self, kinds: Mapping[str, Trellis], dense: Collection[str]) -> str | None:
        return None

    def settings(self, kinds: Mapping[str, Trellis], dense: Collection[str]) -> dict[str, Any]:
        bits = [kind.bits for name, kind in kinds.items() if name != _HEAD]
        codes = {kind.code for kind in kinds.values()}
        return {
            "version": f"pvopt {version('pvopt')}",
            "bits": round(sum(bits) / max(1, len(bits)), 2),
            "head_bits": kinds[_HEAD].bits if _HEAD in kinds else 16,
            "out_scales": "always",
            "codebook": codes.pop() if len(codes) == 1 else "mixed",
        }

    def tensors(self, layer: str, rep: Representation) -> dict[str, Tensor]:
        return write_layer(layer, rep)

    def kind_of(self, settings: Mapping[str, Any], layer: str) -> None:
        return None  # the tensors of a layer say what it is

    def representation(
        self, layer: str, kind: Any, tensors: Mapping[str, Tensor]
    ) -> Representation:
        return read_layer(layer, tensors)

    def stored(self, tensors: dict[str, Tensor], weights: QuantizedWeights) -> dict[str, Tensor]:
        found = {name: tensor.to(narrowest(tensor)) for name, tensor in tensors.items()}
        for name in _biases(weights):
            if name in found:
                found[name] = pad(found[name], (0, -len(found[name]) % BLOCK))
        return found

    def fitted(
        self,
        folder: Path,
        model: nn.Module | None,
        reps: dict[str, Representation],
        others: dict[str, Tensor],
    ) -> tuple[dict[str, Representation], dict[str, Tensor]]:
        if model is None:
            with self.transformers_files(folder) as files:
                model = model_skeleton(files, len(reps) + len(others))
        shapes = {name: tuple(t.shape) for name, t in model.state_dict(keep_vars=True).items()}
        found = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in others.items()
        }
        for name in _biases(reps):
            if name in found and name in shapes:
                found[name] = found[name][: shapes[name][0]]
        return {n: _of_shape(folder, n, rep, shapes.get(n)) for n, rep in reps.items()}, found

    def write_more(self, folder: Path, config: Mapping[str, Any]) -> None:
        storage: dict[str, Any] = {}
        for name, tensor in sorted(read_shards(folder).items()):
            layer, _, part = name.rpartition(".")
            entry = storage.setdefault(layer, {"stored_tensors": {}})
            entry["stored_tensors"][name] = {
                "shape": [*tensor.shape],
                "n_bytes": tensor.nbytes,
                "dtype": str(tensor.dtype),
            }
            if f".{part}" == TRELLIS:
                entry |= {"quant_format": self.name, "bits_per_weight": tensor.shape[2] // 16}
            elif part in CODES:
                entry[f"{part}_multiplier"] = CODES[part]
        content = json.dumps({**config, "tensor_storage": storage}, indent=2)
        (folder / _STORAGE).write_text(content + "\n", encoding="utf-8")

    @contextmanager
    def transformers_files(self, folder: Path) -> Iterator[Path]:
        with super().transformers_files(folder) as files:
            # A head with codes of its own is no embedding, whatever the original's settings say.
            if f"{_HEAD}{TRELLIS}" in read_shards(folder) and (files / CONFIG).is_file():
                config = read_json(files, CONFIG, strict=False)
                if isinstance(config, dict):
                    content = json.dumps({**config, "tie_word_embeddings": False})
                    (files / CONFIG).write_text(content, encoding="utf-8")
            yield files


def _biases(names: Collection[str]) -> list[str]:
    """Return the names of the biases of layers, whose outputs are filled up, too."""
    return [f"{name.removesuffix(WEIGHT)}.bias" for name in names]


def _of_shape(
    folder: Path, name: str, rep: Representation, shape: tuple[int, ...] | None
) -> Representation:
    """Return the weight without what it was filled up with."""
    if shape is None or len(shape) != 2:
        return rep  # of no weight of the model, which is said elsewhere
    if rep.space.inner_shape(shape) != rep.inner_shape:
        raise CheckpointError(
            f"{folder}: {name} is stored with the shape {list(rep.shape)}, the model's "
            f"{list(shape)} is not filled up to it"
        )
    return Representation(rep.parametrization, rep.codes, rep.values, shape, rep.space, check=False)
