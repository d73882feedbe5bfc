from __future__ import annotations

import math

import pytest
import torch

from pvopt.llm import evaluation, load_model, native_autocast_dtype, perplexity

TOKENS = torch.randint(256, (107,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return load_model("tiny-llama").model


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("max_windows", [None, 1, 4, 100])
def test_perplexity_equals_the_loss_of_transformers(model, batch_size, max_windows):
    result = perplexity(
        model, TOKENS, context_length=20, batch_size=batch_size, max_windows=max_windows
    )
    windows = TOKENS[:100].view(5, 20)[:max_windows]
    with torch.no_grad():
        expected = sum(float(model(row[None], labels=row[None]).loss) for row in windows)
    expected /= len(windows)
    assert result.nll_per_token == pytest.approx(expected, rel=1e-6)
    assert result.perplexity == math.exp(result.nll_per_token)
    assert (result.windows, result.context_length) == (len(windows), 20)
    assert result.tokens == len(windows) * 19


def test_a_window_does_not_see_the_one_before(model):
    changed = TOKENS.clone()
    changed[:20] = 0
    alone = perplexity(model, TOKENS[20:40], context_length=20).nll_per_token
    for tokens in (TOKENS, changed):
        first, both = (
            perplexity(model, tokens, context_length=20, max_windows=windows).nll_per_token
            for windows in (1, 2)
        )
        assert 2 * both - first == pytest.approx(alone, rel=1e-5)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    model = load_model("tiny-llama").model
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    result = perplexity(model, TOKENS.tolist(), context_length=10)
    assert result.perplexity == pytest.approx(model.config.vocab_size, rel=1e-6)


def test_the_modes_of_all_modules_are_restored_even_after_an_error(model):
    seen = []
    hook = model.model.register_forward_hook(lambda module, *_: seen.append(module.training))
    try:
        model.train()
        model.model.layers[0].eval()
        modes = [module.training for module in model.modules()]
        perplexity(model, TOKENS, context_length=50)
        assert seen == [False, False]
        assert [module.training for module in model.modules()] == modes
        with pytest.raises(IndexError):
            perplexity(model, torch.full((50,), 10_000), context_length=50)
        assert [module.training for module in model.modules()] == modes
        assert all(parameter.grad is None for parameter in model.parameters())
    finally:
        hook.remove()
        model.eval()


def test_the_model_can_be_trained_afterwards(model):
    perplexity(model, TOKENS, context_length=50)
    model(TOKENS[None, :50], labels=TOKENS[None, :50]).loss.backward()
    model.zero_grad()


def test_autocast_runs_in_its_dtype_and_ends(model):
    exact = perplexity(model, TOKENS, context_length=20)
    rounded = perplexity(model, TOKENS, context_length=20, autocast_dtype=torch.bfloat16)
    assert not torch.is_autocast_enabled("cpu")
    assert rounded.nll_per_token != exact.nll_per_token
    assert rounded.nll_per_token == pytest.approx(exact.nll_per_token, rel=2e-2)


def test_progress_counts_windows(model):
    calls = []
    perplexity(
        model,
        TOKENS,
        context_length=20,
        batch_size=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_an_overflow_is_infinite_and_nan_stays(model, monkeypatch):
    for loss, value in ((1000.0, math.inf), (math.nan, math.nan)):
        monkeypatch.setattr(evaluation, "language_loss", lambda *_, loss=loss: torch.tensor(loss))
        result = perplexity(model, TOKENS, context_length=20)
        assert result.perplexity == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_length": 1}, "context_length must be at least 2, got 1"),
        ({"context_length": 108}, "context_length=108 tokens, got 107"),
        ({"context_length": 10, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"context_length": 10, "max_windows": 0}, "max_windows must be at least 1 or None"),
    ],
)
def test_wrong_settings_are_named(model, settings, message):
    with pytest.raises(ValueError, match=message):
        perplexity(model, TOKENS, **settings)


def test_tokens_must_be_integers_in_a_row(model):
    for tokens in (TOKENS.float(), TOKENS[None]):
        with pytest.raises(TypeError, match="tokens must be integers of shape"):
            perplexity(model, tokens, context_length=10)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_f": True}, None),
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
    ],
)
def test_the_autocast_dtype_follows_the_processor(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert native_autocast_dtype() is dtype
    assert native_autocast_dtype("meta") is None
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert native_autocast_dtype("cpu") is None
