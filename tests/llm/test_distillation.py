from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pvopt.llm import (
    chunked_cross_entropy,
    chunked_kl,
    distillation_loss,
    hidden_states,
    language_loss,
    load_model,
    output_head,
)

TOKENS, VOCABULARY = 11, 37
CHUNKS = [1, 4, 11, 100, None]


def make(dtype=torch.float64, *, student_width=5, teacher_width=7, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    student = draw(TOKENS, student_width), draw(VOCABULARY, student_width)
    teacher = draw(TOKENS, teacher_width), draw(VOCABULARY, teacher_width)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return [tensor.requires_grad_() for tensor in student], teacher, targets


def plain_kl(hidden, head, teacher_hidden, teacher_head, temperature=1.0):
    q = F.log_softmax(hidden.double() @ head.double().t() / temperature, -1)
    p = F.log_softmax(teacher_hidden.double() @ teacher_head.double().t() / temperature, -1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def plain_cross_entropy(hidden, head, targets):
    return F.cross_entropy(hidden.double() @ head.double().t(), targets)


def losses(dtype=torch.float64, **settings):
    """Pairs of (chunked loss, plain loss in float64), both functions of hidden states and head."""
    _, teacher, targets = make(dtype, **settings)
    some = torch.where(torch.arange(TOKENS) % 3 == 1, -100, targets)
    return [
        (lambda h, w, **s: chunked_kl(h, w, *teacher, **s), lambda h, w: plain_kl(h, w, *teacher)),
        (
            lambda h, w, **s: chunked_kl(h, w, *teacher, temperature=2.5, **s),
            lambda h, w: plain_kl(h, w, *teacher, temperature=2.5),
        ),
        (
            lambda h, w, **s: chunked_cross_entropy(h, w, targets, **s),
            lambda h, w: plain_cross_entropy(h, w, targets),
        ),
        (
            lambda h, w, **s: chunked_cross_entropy(h, w, some, **s),
            lambda h, w: plain_cross_entropy(h, w, some),
        ),
    ]


LOSSES = pytest.mark.parametrize("which", range(4), ids=["kl", "kl-2.5", "ce", "ce-ignore"])


@LOSSES
@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_loss_and_gradients_equal_the_plain_ones(which, chunk_tokens):
    chunked, plain = losses()[which]
    student, *_ = make()
    value, expected = chunked(*student, chunk_tokens=chunk_tokens), plain(*student)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    # A factor after the loss (loss scaling, accumulation) must reach the gradients.
    for gradient, wanted in zip(
        torch.autograd.grad(3.5 * value, student),
        torch.autograd.grad(3.5 * expected, student),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-13)


@LOSSES
def test_gradcheck(which):
    chunked, _ = losses()[which]
    student, *_ = make()
    assert torch.autograd.gradcheck(functools.partial(chunked, chunk_tokens=4), student)


@LOSSES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_near_float64(which, dtype):
    chunked, plain = losses(dtype)[which]
    student, *_ = make(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in student]
    value, expected = chunked(*student, chunk_tokens=3), plain(*exact)
    assert value.dtype == torch.float32
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(value, student)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert gradient.dtype == dtype
        error = (gradient.double() - wanted).norm() / wanted.norm()
        assert error < tolerance


def test_the_sum_over_chunks_of_low_precision_is_wide():
    # One token per chunk: a sum kept in bfloat16 would stop growing at 256 equal terms.
    hidden = torch.ones(2000, 1, dtype=torch.bfloat16)
    head = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(2000, dtype=torch.long)
    loss = chunked_cross_entropy(hidden, head, targets, chunk_tokens=1)
    torch.testing.assert_close(float(loss.detach()), 0.69314718, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, head)
    assert gradient.flatten().tolist() == [-0.5, 0.5]


def test_a_loss_scale_saves_float16_gradients_from_underflow():
    hidden = torch.full((1000, 1), 1e-4, dtype=torch.float16, requires_grad=True)
    head = torch.tensor([[1e-2], [0]], dtype=torch.float16)
    targets = torch.zeros(1000, dtype=torch.long)
    loss = chunked_cross_entropy(hidden, head, targets) * 2.0**14
    loss.backward()
    # -0.5 * 1e-2 / 1000 = -5e-6 is subnormal in float16; times 2^14 it is not.
    torch.testing.assert_close(
        hidden.grad, torch.full_like(hidden, -5e-6 * 2**14), rtol=5e-3, atol=0
    )


@LOSSES
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_the_wanted_gradients_are_made(which, wanted):
    chunked, plain = losses()[which]
    student, *_ = make()
    for tensor, flag in zip(student, wanted, strict=True):
        tensor.requires_grad_(flag)
    value = chunked(*student, chunk_tokens=4)
    assert value.requires_grad == any(wanted)
    if any(wanted):
        value.backward()
        plain_gradients = torch.autograd.grad(
            plain(*student), [tensor for tensor in student if tensor.requires_grad]
        )
        made = [tensor.grad for tensor in student if tensor.grad is not None]
        torch.testing.assert_close(made, list(plain_gradients))


def test_without_grad_mode_nothing_is_differentiated():
    student, teacher, _ = make()
    with torch.no_grad(), LargestTensor() as largest:
        value = chunked_kl(*student, *teacher, chunk_tokens=4)
    assert not value.requires_grad
    assert "aten.exp_.default" not in largest.operations  # the first operation of the gradient


def test_the_teacher_gets_no_gradient():
    student, teacher, _ = make()
    for tensor in teacher:
        tensor.requires_grad_()
    chunked_kl(*student, *teacher).backward()
    assert all(tensor.grad is None for tensor in teacher)


def test_a_tied_head_gets_the_gradient_of_both_uses():
    embedding = torch.randn(VOCABULARY, 5, dtype=torch.float64, requires_grad=True)
    _, teacher, _ = make()
    ids = torch.arange(TOKENS)
    results = [
        torch.autograd.grad(
            loss(F.embedding(ids, embedding).tanh(), embedding, *teacher), embedding
        )
        for loss in (chunked_kl, plain_kl)
    ]
    torch.testing.assert_close(*results)


def test_backward_runs_twice_on_a_retained_graph():
    student, teacher, _ = make()
    value = chunked_kl(*student, *teacher, chunk_tokens=4)
    first = torch.autograd.grad(value, student, retain_graph=True)
    second = torch.autograd.grad(2 * value, student)
    torch.testing.assert_close([2 * gradient for gradient in first], list(second))


def test_identical_models_have_no_divergence_and_no_gradient():
    student, *_ = make(torch.float32, scale=3.0)
    value = chunked_kl(*student, *(tensor.detach() for tensor in student), chunk_tokens=4)
    assert value.detach() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(value, student))


def test_a_small_divergence_keeps_its_digits():
    student, *_ = make(torch.float32)
    teacher = [tensor.detach().clone() for tensor in student]
    teacher[0] += 1e-3
    value, expected = chunked_kl(*student, *teacher).detach(), plain_kl(*student, *teacher).detach()
    assert 0 < expected < 1e-4
    torch.testing.assert_close(value.double(), expected, rtol=0.1, atol=0)


def test_huge_logits_stay_finite():
    student, teacher, targets = make(torch.float32, scale=100.0)
    for value in (chunked_kl(*student, *teacher), chunked_cross_entropy(*student, targets)):
        gradients = torch.autograd.grad(value, student)
        assert value.detach().isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_autocast_multiplies_in_its_dtype_and_sums_wide():
    student, teacher, _ = make(torch.float32)
    student[0] = student[0].detach().bfloat16().requires_grad_()  # as the body hands it over
    with torch.autocast("cpu", torch.bfloat16), LargestTensor() as largest:
        value = chunked_kl(*student, *teacher, chunk_tokens=4)
    assert value.dtype == torch.float32
    assert largest.product_dtypes == {torch.bfloat16}
    gradients = torch.autograd.grad(value, student)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32]
    exact = [tensor.detach().double().requires_grad_() for tensor in student]
    expected = plain_kl(*exact, *teacher)
    torch.testing.assert_close(value.double(), expected, rtol=2e-2, atol=2e-2)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert (gradient.double() - wanted).norm() < 3e-2 * wanted.norm()


class LargestTensor(TorchDispatchMode):
    """Records what every operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0
        self.operations = set()
        self.product_dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
                if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
                    self.product_dtypes.add(args[-1].dtype)
        self.operations.add(str(func))
        return result


@pytest.mark.parametrize("loss", ["kl", "cross entropy"])
def test_the_logits_never_exist_as_a_whole(loss):
    tokens, vocabulary, width, chunk_tokens = 64, 500, 8, 16
    ids = torch.zeros(tokens, dtype=torch.long)
    hidden, head = torch.randn(tokens, width), torch.randn(vocabulary, width)
    student = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    with LargestTensor() as largest:
        if loss == "kl":
            value = chunked_kl(*student, hidden, head, chunk_tokens=chunk_tokens)
        else:
            value = chunked_cross_entropy(*student, ids, chunk_tokens=chunk_tokens)
        value.backward()
    assert largest.numel == chunk_tokens * vocabulary
    with LargestTensor() as largest:
        plain_kl(*student, hidden, head).backward()
    assert largest.numel == tokens * vocabulary  # the measurement sees what it should


BAD = [
    ((0, torch.zeros(11, 5, dtype=torch.long)), TypeError, "student_hidden must be floating point"),
    ((1, torch.zeros(37, 5)), TypeError, "must have one dtype outside autocast"),
    ((1, torch.zeros(37, 6, dtype=torch.float64)), ValueError, "agree in their last dimension"),
    ((1, torch.zeros(36, 5, dtype=torch.float64)), ValueError, "in vocabulary, got 36 and 37"),
    ((2, torch.zeros(10, 7, dtype=torch.float64)), ValueError, "in tokens, got 11 and 10"),
    ((3, torch.zeros(37, 7, 1, dtype=torch.float64)), ValueError, "must be a non-empty matrix"),
    ((2, torch.zeros(0, 7, dtype=torch.float64)), ValueError, "must be a non-empty matrix"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_wrong_inputs_are_named(change, error, message):
    student, teacher, _ = make()
    inputs = [*student, *teacher]
    inputs[change[0]] = change[1]
    with pytest.raises(error, match=message):
        chunked_kl(*inputs)


def test_wrong_settings_are_named():
    student, teacher, targets = make()
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be positive"):
            chunked_kl(*student, *teacher, temperature=temperature)
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1, got 0"):
        chunked_kl(*student, *teacher, chunk_tokens=0)
    with pytest.raises(
        ValueError, match=r"targets must have shape \[tokens\] = \[11\], got \[10\]"
    ):
        chunked_cross_entropy(*student, targets[:10])
    with pytest.raises(TypeError, match="targets must be int64"):
        chunked_cross_entropy(*student, targets.int())


# Whole models


@pytest.fixture
def models():
    return [load_model("tiny-llama", seed=seed).model for seed in (0, 1)]


IDS = torch.randint(256, (3, 10), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_loss_of_a_model_equals_the_plain_one(models, temperature):
    teacher, student = models
    with torch.no_grad():
        teacher_hidden = hidden_states(teacher, IDS)
        p = F.log_softmax(teacher(IDS).logits.double() / temperature, -1)
    loss = distillation_loss(
        student, teacher_hidden, output_head(teacher), IDS, temperature=temperature, chunk_tokens=7
    )
    q = F.log_softmax(student(IDS).logits.double() / temperature, -1)
    expected = (p.exp() * (p - q)).sum(-1).mean() * temperature**2
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    parameters = list(student.parameters())
    for gradient, wanted in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_language_loss_equals_the_one_of_transformers(models):
    loss, expected = language_loss(models[0], IDS, chunk_tokens=5), models[0](IDS, labels=IDS).loss
    torch.testing.assert_close(loss, expected)
    parameters = list(models[0].parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_hidden_states_belong_to_the_head(models):
    with torch.no_grad():
        logits = output_head(models[0]).logits(hidden_states(models[0], IDS))
        torch.testing.assert_close(logits, models[0](IDS).logits)


def test_an_untied_head_is_found(models):
    model = models[0]
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert output_head(model).weight is model.lm_head.weight
    language_loss(model, IDS).backward()
    assert model.lm_head.weight.grad is not None


# What models do to their logits, under whatever names: settings and the function.
TRANSFORMS = {
    "scale": ({"some_scale": 0.0625}, lambda z, c: z * c.some_scale),
    "divisor": ({"other_scaling": 3.0}, lambda z, c: z / c.other_scaling),
    "cap": ({"a_cap": 1.5, "attention_cap": 9.0}, lambda z, c: c.a_cap * torch.tanh(z / c.a_cap)),
    "scale and cap": (
        {"multiplier": 0.3, "soft_cap": 2.0},
        lambda z, c: torch.tanh(z * c.multiplier / c.soft_cap) * c.soft_cap,
    ),
    "in place": ({"logit_scale": -2.5}, lambda z, c: z.mul_(c.logit_scale)),
    "unnamed scale": ({}, lambda z, c: z * 0.7182),
    "cap of another thing": ({"attention_cap": 0.01}, lambda z, c: z),
}
UNKNOWN = {
    "softmax": lambda z: z.log_softmax(-1),
    "other for one token": lambda z: torch.cat([z[..., :-1], z[..., -1:] - 100], -1),
    "shift": lambda z: z + 1e-3,
    "relu": lambda z: z.relu(),
    "fewer tokens": lambda z: z[..., :-3],
}


def alter(model, transform):
    forward = model.forward

    def altered(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = transform(output.logits)
        return output

    model.forward = altered


@pytest.mark.parametrize("small", [1.0, 1e-3], ids=["logits of size 1", "tiny logits"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_losses_are_those_of_the_logits_of_the_model(models, name, bias, small):
    settings, transform = TRANSFORMS[name]
    with torch.no_grad():
        for model in models:
            model.double()
            model.lm_head.weight.mul_(small)  # tied: the first norm undoes it
            if bias:
                model.lm_head.bias = torch.nn.Parameter(small * torch.arange(259.0).double().sin())
            for setting, value in settings.items():
                setattr(model.config, setting, value)
            alter(model, lambda logits, c=model.config: transform(logits, c))
    teacher, student = models
    with torch.no_grad():
        p = F.log_softmax(teacher(IDS).logits / 1.7, -1)
        hidden, head = hidden_states(teacher, IDS), output_head(teacher)
    logits = student(IDS).logits
    q = F.log_softmax(logits / 1.7, -1)
    right = F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    pairs = [
        (language_loss(student, IDS, chunk_tokens=7), right),
        (
            distillation_loss(student, hidden, head, IDS, temperature=1.7, chunk_tokens=7),
            (p.exp() * (p - q)).sum(-1).mean() * 1.7**2,
        ),
    ]
    parameters = list(student.parameters())
    for loss, expected in pairs:
        torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-10)
        for gradient, wanted in zip(
            torch.autograd.grad(loss, parameters),
            torch.autograd.grad(expected, parameters, retain_graph=True),
            strict=True,
        ):
            assert (gradient - wanted).norm() <= 1e-6 * wanted.norm() + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_recognized_in_every_dtype(models, name, dtype):
    settings, transform = TRANSFORMS[name]
    model = models[0].to(dtype)
    for setting, value in settings.items():
        setattr(model.config, setting, value)
    alter(model, lambda logits: transform(logits, model.config))
    with torch.no_grad():
        found = output_head(model).logits(hidden_states(model, IDS)).float()
        wanted = model(IDS).logits.float()
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", UNKNOWN)
def test_logits_that_are_anything_else_are_refused(models, name):
    alter(models[0], UNKNOWN[name])
    with pytest.raises(ValueError, match="something else to them, which losses on hidden states"):
        language_loss(models[0], IDS)


class Scaled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_heads_that_are_not_plain_are_refused(models):
    model = models[0]
    model.lm_head = Scaled(64, 259, bias=False)
    with pytest.raises(ValueError, match="of LlamaForCausalLM, a Scaled, computes something else"):
        output_head(model)
    model.get_output_embeddings = lambda: model.model.layers[0].mlp.down_proj
    model.set_submodule("model.layers.1.mlp.down_proj", model.model.layers[0].mlp.down_proj)
    with pytest.raises(TypeError, match="LlamaForCausalLM calls it 2 times"):
        output_head(model)


def test_a_model_without_head_is_refused(models):
    plain, body = torch.nn.Linear(3, 3), models[0].model
    for model, kind in ((plain, "Linear"), (body, "LlamaModel")):
        with pytest.raises(TypeError, match=f"{kind} has NoneType"):
            hidden_states(model, IDS)


def test_shapes_of_a_batch_are_checked(models):
    with pytest.raises(ValueError, match=r"ids must have shape \[batch, length\], got \[10\]"):
        hidden_states(models[0], IDS[0])
    with pytest.raises(ValueError, match="length at least 2"):
        language_loss(models[0], IDS[:, :1])
    with torch.no_grad():
        teacher_hidden = hidden_states(models[0], IDS)
    with pytest.raises(ValueError, match=r"teacher_hidden must have shape .* got \[3, 10, 64\]"):
        distillation_loss(models[1], teacher_hidden, output_head(models[0]), IDS[:, :9])
