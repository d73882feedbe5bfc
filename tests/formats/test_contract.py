"""Formats, parametrizations and spaces from outside of the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from schemes import draw
from torch import Tensor, nn

import pvopt
from pvopt import (
    PARAMETRIZATIONS,
    CodeStream,
    GroupLayout,
    Metric,
    Parametrization,
    QuantizedWeights,
    Query,
    Representation,
    Scheme,
    Space,
)
from pvopt.formats import (
    FORMATS,
    Checkpoint,
    CheckpointError,
    Reader,
    Writer,
    load,
    save,
    storage_report,
)
from pvopt.layers import QuantizedLinear, to_dense, to_quantized
from pvopt.spaces.contract import SPACES


@dataclass(frozen=True, kw_only=True)
class Powers(Parametrization):
    """Signed powers of two of one size for the weight: two streams, ``w = u (2 s - 1) 2^e``."""

    num_powers: int = 3

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        return GroupLayout(shape, 1, 1)

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        layout = self.layout(shape)
        size = (layout.rows, layout.cols, 1)
        return {
            "powers": CodeStream(shape=size, num_codes=self.num_powers, codes_per_word=5),
            "signs": CodeStream(shape=size, num_codes=2),
        }

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"unit": (1,)}

    def fit(self, weight, *, metric=None, options=None, generator=None) -> Representation:
        shape = tuple(weight.shape)
        codes = {name: stream.zeros() for name, stream in self.streams(shape).items()}
        unit = weight.abs().max()[None] / 2 ** (self.num_powers - 1)
        rep = Representation(self, codes, {"unit": unit}, shape)
        query = Query(target=rep.layout.split(weight), rep=rep)
        rep.write_codes_(None, self.search(query)[:, 0])
        return rep

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        codes = rep.group_codes(groups) if codes is None else codes
        power, sign = codes.to(rep.dtype).split(1, dim=1)
        return rep.values["unit"] * (2 * sign - 1) * torch.exp2(power)

    def search(self, query: Query) -> Tensor:
        scaled = query.target / query.rep.values["unit"]
        levels = 2.0 ** torch.arange(self.num_powers)
        power = (scaled.abs() - levels).abs().argmin(dim=1)
        return torch.stack([power, (scaled[:, 0] >= 0).long()], dim=1)[:, None]


@dataclass(frozen=True, kw_only=True)
class Swap(Space):
    """Rows in another order and of another size: owns a stream and a value."""

    times: float = 2.0

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        return {"rows": CodeStream(shape=(shape[0],), num_codes=shape[0], moves=False)}

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"factor": (1,)}

    def start(self, weight, metric):
        rows = self.streams(tuple(weight.shape))["rows"]
        order = torch.arange(len(weight)).flip(0).to(rows.dtype)
        return {"rows": order}, {"factor": weight.new_tensor([self.times])}

    def enter(self, weight: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return weight.index_select(0, owned["rows"].int()) / owned["factor"].to(weight)

    def leave(self, inner: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        order = owned["rows"].long().argsort()
        return inner.index_select(0, order) * owned["factor"].to(inner)

    def pull(self, gradient: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return gradient.index_select(0, owned["rows"].int()) * owned["factor"].to(gradient)

    def pull_values(self, gradient, inner, owned):
        moved = gradient.index_select(0, owned["rows"].int())
        return {"factor": (moved * inner).sum()[None]}

    def enter_metric(self, metric: Metric | None, shape, owned) -> Metric | None:
        return None


@pytest.fixture
def registered():
    PARAMETRIZATIONS.register()(Powers)
    SPACES.register()(Swap)
    yield Scheme(Powers(num_powers=3), Swap(times=4.0))
    PARAMETRIZATIONS.forget(Powers)
    SPACES.forget(Swap)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 4))


def test_a_parametrization_and_a_space_of_a_test_are_saved_loaded_and_run(registered, tmp_path):
    model = network()
    weights = pvopt.quantize_(model, registered)
    folder = save(tmp_path / "x", model, weights)
    loaded = load(folder, network())
    for name, rep in weights.items():
        found = loaded.weights[name]
        assert found.scheme == registered
        for (key, mine), (_, theirs) in zip(rep.tensors(), found.tensors(), strict=True):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs), key
        assert torch.equal(loaded.model.get_parameter(name), model.get_parameter(name))
    assert registered.name == "Swap[times=4.0]+Powers[num_powers=3]"
    assert pvopt.parse_scheme(registered.name) == registered
    report = storage_report(folder).weights[0]
    assert report.codes == {"powers": 16, "signs": 10, "space.rows": 3}
    assert report.values == {"unit": 4, "space.factor": 4}

    x = draw(5, 10).requires_grad_()
    dense = model(x)
    (slope,) = torch.autograd.grad(dense.square().sum(), x)
    quantized = to_quantized(loaded.model, loaded.weights)
    assert isinstance(quantized.get_submodule("0"), QuantizedLinear)
    found = quantized(x)
    torch.testing.assert_close(found, dense)
    found.square().sum().backward()
    torch.testing.assert_close(x.grad, slope, rtol=1e-4, atol=1e-4)
    dense = model(x.detach())
    dense.square().sum().backward()
    for name, rep in weights.items():
        pulled = rep.pull([model.get_parameter(name).grad])
        layer = quantized.get_submodule(name.removesuffix(".weight"))
        for value, gradient in pulled.items():
            held = value if value.startswith("space.") else f"values.{value}"
            torch.testing.assert_close(layer.get_parameter(held).grad, gradient)
    back = to_dense(quantized)
    for name, rep in weights.items():
        assert torch.equal(back[name].decode(), rep.decode())


def test_a_file_may_name_what_is_registered_and_nothing_else(registered, tmp_path):
    model = network()
    folder = save(tmp_path / "x", model, pvopt.quantize_(model, registered))
    SPACES.forget(Swap)
    with pytest.raises(CheckpointError, match="unknown space 'Swap'"):
        load(folder, network())
    SPACES.register()(Swap)
    PARAMETRIZATIONS.forget(Powers)
    with pytest.raises(CheckpointError, match=r"'0\.weight': unknown parametrization 'Powers'"):
        load(folder, network())


class Plain(Reader, Writer):
    """Dense text files, of grids of two bits only."""

    name = "plain"
    marker = "plain.txt"

    def match(self, folder: Path) -> bool:
        return (folder / self.marker).is_file()

    def can_write(self, checkpoint: Checkpoint) -> str | None:
        if checkpoint.training_state is not None:
            return "it keeps no training state"
        for name, rep in checkpoint.weights.items():
            if rep.scheme != Scheme(pvopt.UniformGrid(bits=2)):
                return f"{name} is not a grid of 2 bits"
        return None

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        (folder / self.marker).write_text("\n".join(checkpoint.weights))

    def read(self, folder: Path, model: nn.Module | None) -> Checkpoint:
        assert model is not None
        names = (folder / self.marker).read_text().split("\n")
        fitted = {n: pvopt.UniformGrid(bits=2).fit(model.get_parameter(n)) for n in names}
        return Checkpoint(model, QuantizedWeights(model, fitted))


@pytest.fixture
def plain():
    FORMATS.register(Plain)
    yield
    FORMATS.forget("plain")


def test_another_format_is_written_by_name_and_recognized(plain, tmp_path):
    model = network()
    weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
    folder = save(tmp_path / "x", model, weights, format="plain")
    assert [file.name for file in folder.iterdir()] == ["plain.txt"]
    assert list(load(folder, network()).weights) == ["0.weight", "1.weight"]
    save(folder, model, weights, format="plain")  # replaces its own
    assert [*FORMATS][-1] == "plain"
    with pytest.raises(
        CheckpointError, match=r"exists and holds something else \(it has no pvopt.json\)"
    ):
        save(folder, model, weights)


def test_what_a_format_cannot_hold_is_refused_with_the_reason(plain, tmp_path):
    model = network()
    weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
    with pytest.raises(CheckpointError, match="in the format 'plain': it keeps no training state"):
        save(tmp_path / "x", model, weights, format="plain", training_state={})
    weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=3))
    with pytest.raises(CheckpointError, match=r"'plain': 0.weight is not a grid of 2 bits"):
        save(tmp_path / "x", model, weights, format="plain")
    assert not (tmp_path / "x").exists()


def test_unknown_formats(tmp_path):
    model = network()
    weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
    with pytest.raises(ValueError, match="format 'gguff' cannot be written; known are native"):
        save(tmp_path / "x", model, weights, format="gguff")
    (tmp_path / "other").mkdir()
    for content, reason in (
        (None, "none of the formats that can be read: native.*; it has no config.json"),
        ('{"quantization_config": {"quant', r"other/config\.json: is truncated or not JSON \("),
        ("[]", r"other/config\.json: must hold an object"),
        ('{"quantization_config": 4}', r"other/config\.json: quantization_config must be an obj"),
        ('{"quantization_config": {"quant_method": "awq"}}', "has the quant_method 'awq'"),
        ("{}", "no quantization_config, as of a model that is not quantized"),
    ):
        if content is not None:
            (tmp_path / "other" / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=reason):
            load(tmp_path / "other", model)

    class Other(Plain):
        name = "native"
        __module__ = "elsewhere"

    with pytest.raises(ValueError, match="'native' is registered already"):
        FORMATS.register(Other)
