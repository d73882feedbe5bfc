from __future__ import annotations

import itertools
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt.llm import TokenBatches, load_text, split_text


def test_the_python_manual_is_whole_and_in_order():
    from pydoc_data.topics import topics

    text = load_text("pydoc")
    assert text == load_text("pydoc")
    place = 0
    for name in sorted(topics):
        topic = topics[name].strip()
        assert text.startswith(topic, place), name
        place += len(topic) + len("\n\n")


def test_a_file_is_read_as_utf8(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("Grüße\n\n世界", encoding="utf-8")
    assert load_text(file) == load_text(str(file)) == "Grüße\n\n世界"


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"text\.txt' is not a UTF-8 text file"):
        load_text(file)
    file.write_text(" \n")
    with pytest.raises(ValueError, match=r"text\.txt' holds an empty text"):
        load_text(file)
    with pytest.raises(ValueError, match="'pydocs' must be 'pydoc'"):
        load_text("pydocs")


class FakeDataset:
    column_names = ("text",)

    def __getitem__(self, column):
        return {"text": ["one", "", "two"]}[column]


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("hub:owner/name", ("owner/name", None, "train")),
        ("hub:owner/name:config", ("owner/name", "config", "train")),
        ("hub:owner/name:config:test", ("owner/name", "config", "test")),
        ("hub:owner/name::test", ("owner/name", None, "test")),
    ],
)
def test_a_hub_data_set_is_named_by_config_and_split(monkeypatch, source, arguments):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return FakeDataset()

    datasets = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    assert load_text(source) == "one\n\n\n\ntwo"
    assert asked == [arguments]
    monkeypatch.setattr(FakeDataset, "column_names", ("question", "answer"))
    with pytest.raises(ValueError, match=r"must have a column 'text', it has \('question'"):
        load_text(source)


def test_errors_of_hub_sources(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        load_text("hub:owner/name")
    for source in ("hub:", "hub:a:b:c:d"):
        with pytest.raises(ValueError, match="must have the form"):
            load_text(source)


@given(
    st.lists(st.text("ab \n", min_size=1).filter(str.strip), min_size=2, max_size=8),
    st.floats(0.01, 0.99),
)
def test_a_split_loses_only_the_separator(paragraphs, held_out):
    text = "\n\n".join(paragraphs)
    train, rest = split_text(text, held_out)
    assert train.strip()
    assert rest.strip()
    assert text.strip() == train + "\n\n" + rest


def test_a_split_is_nearest_to_the_wanted_place():
    text = "\n\n".join("x" * 8 for _ in range(10))  # breaks at 8, 18, 28, ... 88 of 98
    assert len(split_text(text, 0.1)[0]) == 88
    assert len(split_text(text, 0.5)[0]) == 48
    assert len(split_text(text, 0.999)[0]) == 8


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a b\nc d", ("a b", "c d")), ("a b", ("a", "b")), ("a\nb\n\n\n\n", ("a", "b"))],
)
def test_a_split_without_paragraphs_takes_lines_then_words(text, parts):
    assert split_text(text, 0.5) == parts


def test_errors_of_a_split():
    for held_out in (0.0, 1.0, -1.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match="held_out must lie strictly between"):
            split_text("a\n\nb", held_out)
    for text in ("", "word", "\n\nword", "word\n\n"):
        with pytest.raises(ValueError, match="cannot be cut in two"):
            split_text(text)


sizes = st.integers(1, 6)


@settings(deadline=None)
@given(sizes, sizes, st.integers(0, 30), st.integers(0, 2**40))
def test_an_epoch_is_a_permutation_of_windows(batch_size, length, extra, seed):
    tokens = torch.arange(batch_size * length + extra)
    batches = TokenBatches(tokens, batch_size, length, seed)
    assert batches.steps_per_epoch == len(tokens) // length // batch_size
    windows = {
        tuple(row) for row in tokens[: len(tokens) // length * length].view(-1, length).tolist()
    }
    for epoch in (0, 5):
        first = epoch * batches.steps_per_epoch
        rows = [
            tuple(row)
            for step in range(first, first + batches.steps_per_epoch)
            for row in batches[step].tolist()
        ]
        assert len(set(rows)) == len(rows) == batches.steps_per_epoch * batch_size
        assert set(rows) <= windows


def test_a_batch_depends_on_seed_and_step_only():
    tokens = list(range(1000))
    stream = TokenBatches(tokens, batch_size=3, sequence_length=7, seed=1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    run = list(itertools.islice(stream, 120))
    assert torch.equal(torch.get_rng_state(), state)
    resumed = TokenBatches(torch.tensor(tokens), batch_size=3, sequence_length=7, seed=1)
    for step in (119, 0, 47, 46):
        assert run[step].dtype == torch.long
        assert torch.equal(run[step], resumed[step])
    epoch = stream.steps_per_epoch
    assert not torch.equal(run[0], run[epoch])
    assert not torch.equal(run[0], TokenBatches(tokens, 3, 7, seed=2)[0])


def test_errors_of_batches():
    with pytest.raises(ValueError, match=r"2 x 5 = 10 tokens, got 9"):
        TokenBatches(range(9), 2, 5, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        TokenBatches(range(9), 0, 5, seed=0)
    with pytest.raises(ValueError, match="sequence_length must be at least 1, got -1"):
        TokenBatches(range(9), 1, -1, seed=0)
    with pytest.raises(TypeError, match="tokens must be integers of shape"):
        TokenBatches(torch.zeros(9), 1, 3, seed=0)
    with pytest.raises(TypeError, match="tokens must be integers of shape"):
        TokenBatches(torch.zeros(3, 3, dtype=torch.long), 1, 3, seed=0)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        TokenBatches(range(9), 1, 3, seed=0)[-1]
