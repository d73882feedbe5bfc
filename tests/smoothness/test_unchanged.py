"""The model comes back bit for bit, evaluations see one random state, and autograd's limits."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pvopt.smoothness import SmoothnessSettings, estimate_smoothness, suggest_code_lr

PLAN = SmoothnessSettings(fractions=(0.5, 1.0), path_steps=2)


class Messy(nn.Module):
    """Buffers that move, dropout, a frozen weight, and a mode that the loss could change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(8, 2)
        self.last.bias.requires_grad_(False)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x)).tanh()))


@pytest.fixture
def messy():
    torch.manual_seed(0)
    model, inputs = Messy(), torch.randn(12, 6)
    model.drop.eval()
    model.drop.train()
    model.norm.eval()
    model.norm.train()
    model.first.eval()  # modes differ between modules
    model(inputs).square().sum().backward()
    return model, inputs


def state(model):
    """Return everything that must come back, and the identities of the tensors that hold it."""
    tensors = copy.deepcopy(model.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    identities = [id(p) for p in model.parameters()] + [id(b) for b in model.buffers()]
    places = [p.data_ptr() for p in model.parameters()] + [id(p.grad) for p in model.parameters()]
    flags = [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]
    return tensors, grads, identities + places, flags, torch.random.get_rng_state()


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    for old, new in zip(before[0].values(), after[0].values(), strict=True):
        assert torch.equal(old, new)
    for old, new in zip(before[1], after[1], strict=True):
        assert (old is None and new is None) or torch.equal(old, new)
    assert before[2:4] == after[2:4]
    assert torch.equal(before[4], after[4])


def run(function, model, loss):
    generator = torch.Generator().manual_seed(0)
    if function == "estimate":
        return estimate_smoothness(model, loss, settings=PLAN, generator=generator)
    return suggest_code_lr(model, loss, base=torch.optim.Adafactor, generator=generator)


@pytest.mark.parametrize("function", ["estimate", "suggest"])
def test_model_comes_back(messy, function):
    model, inputs = messy

    def loss(m):
        m.norm.running_mean = m.norm.running_mean + 1.0  # replaced, not only changed
        value = m(inputs).square().sum()
        m.eval()
        return value

    before = state(model)
    with torch.no_grad():  # callers need not enable gradients
        run(function, model, loss)
    assert_same(before, state(model))


@pytest.mark.parametrize("function", ["estimate", "suggest"])
@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_model_comes_back_after_an_error(messy, function, fails_at):
    model, inputs = messy
    calls = []

    def loss(m):
        calls.append(None)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return m(inputs).square().sum()

    before = state(model)
    if function == "suggest" and fails_at > 1:
        run(function, model, loss)  # evaluates the loss once only
    else:
        with pytest.raises(KeyboardInterrupt):
            run(function, model, loss)
    assert_same(before, state(model))


def test_every_evaluation_has_the_same_dropout_masks():
    torch.manual_seed(1)
    model = nn.Linear(50, 1, bias=False).double()
    found = estimate_smoothness(
        model,
        lambda m: 0.5 * F.dropout(m.weight, 0.5).square().sum(),
        settings=SmoothnessSettings(fractions=(1.0,)),
        generator=torch.Generator().manual_seed(0),
    )
    # Kept entries are doubled, so their curvature is 4; fresh masks would give other quotients.
    for estimate in found:
        assert estimate.constants[0] == pytest.approx([4.0, 0, 0], rel=1e-6) or (
            estimate.constants[0] == pytest.approx([4.0] * 3, rel=1e-6)
        )


class Attention(nn.Module):
    """Attention by PyTorch's fused function, in double precision."""

    def __init__(self, backend: SDPBackend | None = None) -> None:
        super().__init__()
        self.inputs = nn.Linear(8, 24).double()
        self.backend = backend

    def forward(self, x):
        q, k, v = self.inputs(x).view(1, 2, 5, 24).chunk(3, -1)
        if self.backend is None:
            return F.scaled_dot_product_attention(q, k, v)
        with sdpa_kernel(self.backend):
            return F.scaled_dot_product_attention(q, k, v)


def test_fused_attention_takes_the_path_with_second_derivatives():
    torch.manual_seed(2)
    model, inputs = Attention(), torch.randn(10, 8).double()

    def written_out(m):
        q, k, v = m.inputs(inputs).view(1, 2, 5, 24).chunk(3, -1)
        return ((q @ k.mT / 8**0.5).softmax(-1) @ v).square().sum()

    plan = SmoothnessSettings(fractions=(1.0,), path_steps=1, iterations=200, tolerance=1e-13)
    constants = [
        estimate_smoothness(model, loss, settings=plan, generator=torch.Generator().manual_seed(0))[
            1
        ].constant
        for loss in (lambda m: m(inputs).square().sum(), written_out)
    ]
    assert constants[0] == pytest.approx(constants[1], rel=1e-9)
    assert torch.backends.cuda.flash_sdp_enabled()  # as it was


def test_attention_that_insists_on_a_fused_kernel_is_explained():
    model, inputs = Attention(SDPBackend.FLASH_ATTENTION), torch.randn(10, 8).double()

    def loss(m):
        return m(inputs).square().sum()

    generator = torch.Generator().manual_seed(0)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice.*eager"):
        estimate_smoothness(model, loss, settings=PLAN, generator=generator)
    plan = SmoothnessSettings(fractions=(1.0,), estimators=("quotient",))
    found = estimate_smoothness(model, loss, settings=plan, generator=generator)
    assert found[0].constant > 0


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


@pytest.mark.parametrize("function", ["estimate", "suggest"])
def test_a_once_differentiable_part_is_an_error_and_not_a_missing_part(function):
    def loss(m):  # the rest has second derivatives, so autograd alone would not complain
        return _Once.apply(m.weight) + m.weight.pow(4).sum()

    with pytest.raises(RuntimeError, match="once_differentiable takes part"):
        run(function, nn.Linear(3, 2), loss)


def test_other_errors_of_the_loss_are_not_reinterpreted():
    def loss(m):
        raise RuntimeError("out of coffee")

    with pytest.raises(RuntimeError, match=r"^out of coffee$"):
        run("estimate", nn.Linear(2, 2), loss)
