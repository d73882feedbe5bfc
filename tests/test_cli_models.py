"""The command line with models of all kinds: what is quantized, what is refused, what is said."""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
import types
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

pytest.importorskip("transformers", reason="the language-model extra is not installed")

from pvopt import UniformGrid, quantize_
from pvopt.calibration import sequences_of
from pvopt.cli import main
from pvopt.commands import generate
from pvopt.formats import read_metadata, storage_report
from pvopt.layers import QuantizedLinear
from pvopt.llm import TextPart, compare, load_model, perplexity
from pvopt.tuning import load_student

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
QUICK = ["--format", "grid:3g16"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"so long number {n}, and thanks.\n\n" for n in range(120)))
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in a folder, with a chat template."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    loaded = load_model("tiny-llama", seed=1)
    loaded.tokenizer.chat_template = TEMPLATE
    loaded.model.save_pretrained(place)
    loaded.tokenizer.save_pretrained(place)
    return place


def calibrated(text):
    return ["--calibration", text, "--calibration-tokens", "64", "--calibration-length", "32"]


def run(capsys, *command, code=0):
    capsys.readouterr()
    try:
        found = main([str(part) for part in command])
    except SystemExit as ended:
        found = ended.code
    shown = capsys.readouterr()
    assert found == code, shown.err
    if code == 2:
        assert "Traceback" not in shown.err
        assert len(shown.err.strip().splitlines()) == 1, shown.err
    return shown.out if code == 0 else shown.err


# Every failure is one line.


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            IndexError("index 7 is out of range"),
            2,
            "IndexError: index 7 is out of range; this is a",
        ),
        (TypeError("no"), 2, "TypeError: no; this is a mistake of pvopt or of the model's code"),
        (RuntimeError("several\nlines"), 2, "RuntimeError: several lines"),
        (ValueError("x " * 900), 2, "... (all: --debug)"),
        (MemoryError(), 2, "out of memory: take a smaller --batch"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory: take a smaller --batch"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), 2, "out of memory:"),
        (
            ModuleNotFoundError("no tqdm", name="tqdm"),
            2,
            "tqdm, which is not installed: pip install",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_failure_is_one_line(monkeypatch, capsys, error, code, message):
    def fail(args):
        raise error

    monkeypatch.setattr("pvopt.commands.info.run", fail)
    shown = run(capsys, "info", "--checkpoint", "x", code=code)
    assert message in shown
    if code == 2:
        with pytest.raises(type(error)):
            main(["--debug", "info", "--checkpoint", "x"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["quantise"], "did you mean quantize?"),
        (["eval", "--model", "tiny-llama", "--contxt", "3"], "did you mean --context?"),
        (["tune", "--out", "x", "--recipe", "subspace_pv_st"], "did you mean subspace_pv_ste?"),
        (["quantize", "--model", "tiny-llama", "--out", "x", "--format", "gird:2"], "grid"),
        (["quantize", "--model", "x", "--out", "x", "--text", "x"], "did you mean --calibration?"),
        (["eval", "--model", "x", "--max_length=3"], "did you mean --context?"),
        (["tune", "--out", "x", "--learning-rate", "1"], "did you mean --lr?"),
    ],
)
def test_what_was_meant_is_guessed(capsys, command, message):
    assert message in run(capsys, *command, code=2)


def test_versions(capsys):
    assert run(capsys, "--version").startswith("pvopt ")


_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(%r))  # importing None fails as importing what is not there does
from pvopt.cli import main
for command in %r:
    try:
        code = main(command)
    except SystemExit as ended:
        code = ended.code or 0
    print("code", code, flush=True)
    print("code", code, file=sys.stderr, flush=True)
"""
_LLM = ["transformers", "tokenizers", "huggingface_hub", "accelerate", "gguf", "safetensors"]
_EVERY = [
    ["quantize", "--model", "tiny-llama", "--format", "grid:2g16", "--out", "x"],
    ["tune", "--model", "tiny-llama", "--out", "x"],
    ["eval", "--model", "tiny-llama"],
    ["generate", "--model", "tiny-llama", "--prompt", "so"],
    ["info", "--checkpoint", "x"],
    ["export", "--checkpoint", "x", "--to", "dense", "--out", "y"],
    ["report", "x", "--out", "y"],
    ["demo", "--model", "tiny-llama", "--out", "x"],
]


def without(packages, commands, where):
    """Run commands in a process that lacks packages; return codes and errors of each."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT % (packages, commands)],
        capture_output=True,
        text=True,
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    parts = done.stderr.split("code ")
    codes = [int(part.split()[0]) for part in parts[1:]]
    errors = [parts[0], *(part.partition("\n")[2] for part in parts[1:-1])]
    return list(zip(codes, errors, strict=True))


def test_without_extras_every_command_names_the_extra(tmp_path):
    packages = [*_LLM, "tqdm", "numba", "triton"]
    (helped, _), *others = without(packages, [["--help"], *_EVERY], tmp_path)
    assert helped == 0
    for code, error in others:
        assert code == 2, error
        assert len(error.strip().splitlines()) == 1, error
        assert "which is not installed: pip install 'pvopt[llm]'" in error


@pytest.mark.parametrize(
    ("packages", "command", "extra"),
    [
        (["altair"], ["report", "x"], "report"),
        (["vl_convert"], ["report", "x"], "report"),
        (
            ["tensorboard"],
            ["tune", "--model", "x", "--out", "x", "--log-to", "tensorboard"],
            "tensorboard",
        ),
    ],
)
def test_without_the_packages_of_pages_and_logs_their_extra_is_named(
    tmp_path, monkeypatch, capsys, packages, command, extra
):
    monkeypatch.chdir(tmp_path)
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    shown = run(capsys, *command, code=2)
    assert f"needs the package {packages[0]}, which is not installed" in shown
    assert f"pip install 'pvopt[{extra}]'" in shown
    assert not list(tmp_path.iterdir())


def test_without_kernels_everything_works(tmp_path, text):
    command = ["eval", "--model", "tiny-llama", "--text", text, "--context", "32", "--windows", "1"]
    ((code, error),) = without(["numba", "llvmlite", "triton"], [command], tmp_path)
    assert code == 0, error


def test_every_package_of_the_extras_is_known():
    import tomllib

    from pvopt.commands.packages import missing_package

    project = Path(__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    modules = {"vl-convert-python": "vl_convert"}
    for extra in ("llm", "cpu", "kernels", "report", "tensorboard"):
        for requirement in extras[extra]:
            package = requirement.partition(">")[0]
            package = modules.get(package, package)
            found = missing_package(ModuleNotFoundError("", name=f"{package}.part"))
            assert found is not None
            assert f"pvopt[{extra}]" in found
    assert missing_package(ModuleNotFoundError("", name="my_module")) is None
    assert missing_package(ValueError()) is None


# Models that cannot be used say what they are.

CONFIGS = {
    "t5": ({"model_type": "t5"}, "T5ForConditionalGeneration"),
    "bert": ({"model_type": "bert"}, "BertForMaskedLM"),
    "llava": ({"model_type": "llava"}, "LlavaForConditionalGeneration"),
    "qwen2_vl": ({"model_type": "qwen2_vl"}, "Qwen2VLForConditionalGeneration"),
    "classifier": ({"model_type": "llama"}, "LlamaForSequenceClassification"),
    "code": ({"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}, "Mine"),
}
REASONS = {
    "t5": "has an encoder and a decoder",
    "bert": "no causal language model",
    "llava": "takes more than text: save its language model by itself",
    "qwen2_vl": "takes more than text, and its language model is none that transformers loads",
    "classifier": "a LlamaForSequenceClassification, no causal language model",
    "code": "without running code from its folder, which pvopt never does",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_other_models_say_what_they_are(tmp_path, capsys, kind):
    settings, architecture = CONFIGS[kind]
    described = {**settings, "architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "evil.py").write_text("raise SystemExit(99)")
    for command in (["eval"], ["quantize", "--out", tmp_path / "out"]):
        assert REASONS[kind] in run(capsys, *command, "--model", tmp_path, code=2)


def test_an_encoder_with_a_decoders_head_is_refused(tmp_path, capsys):
    from transformers import BertConfig, BertLMHeadModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 259}
    config = BertConfig(num_attention_heads=2, **small)
    model = BertLMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.0, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    load_model("tiny-llama").tokenizer.save_pretrained(tmp_path)
    assert "depends on later ones" in run(capsys, "eval", "--model", tmp_path, code=2)


def test_folders_that_lack_something_say_what(tmp_path, folder, capsys):
    bare = tmp_path / "bare"
    load_model("tiny-llama").model.save_pretrained(bare)
    assert "has no tokenizer that can be read" in run(capsys, "eval", "--model", bare, code=2)
    made = tmp_path / "made"
    run(capsys, "quantize", "--model", "tiny-llama", *QUICK, "--out", made)
    message = "is a checkpoint of pvopt, not a model: name it by --checkpoint"
    assert message in run(capsys, "eval", "--model", made, code=2)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["eval", "--context", "513"], "--context must be at most 512, the positions of Llama"),
        (
            ["generate", "--prompt", "so", "--tokens", "511"],
            "--tokens and the 2 tokens of --prompt",
        ),
        (
            ["quantize", "--calibration", "pydoc", "--calibration-length", "513", *QUICK],
            "--calibration-length must be at most 512",
        ),
        (["tune", "--length", "513"], "--length must be at most 512"),
        (["tune", "--length", "64", "--eval-length", "513"], "--eval-length must be at most 512"),
        (["eval", "--device", "cuda:99"], "--device 'cuda:99' is none that torch can use here"),
        (["eval", "--device", "tpu9"], "--device 'tpu9' is none that torch can use here"),
        (["eval", "--original", "x", "--no-original"], "--original does not go with --no-original"),
        (["generate", "--prompt", "so", "--chat"], "--chat needs a chat template"),
    ],
)
def test_lengths_and_devices_are_checked_before_any_work(
    tmp_path, monkeypatch, capsys, command, message
):
    monkeypatch.chdir(tmp_path)
    if command[0] in ("quantize", "tune"):
        command = [*command, "--out", "x"]
    assert message in run(capsys, *command, "--model", "tiny-llama", code=2)
    assert not list(tmp_path.iterdir())


# What is quantized.


def schemes(folder):
    return {weight.name: weight.scheme.name for weight in storage_report(folder).weights}


def test_formats_by_layer_exclusions_head_and_embeddings(tmp_path, capsys):
    command = [
        "quantize", "--model", "tiny-llama", *QUICK, "--layer", "*.mlp.*=ternary",
        "--exclude", "*.o_proj", "--head", "grid:8g16",
    ]  # fmt: skip
    shown = run(capsys, *command, "--out", tmp_path / "q")
    assert "quantized 13 weights, 100% of the matrices, 8,192 weights excluded, to " in shown
    found = schemes(tmp_path / "q")
    assert found["model.embed_tokens.weight"] == "grid:8g16"  # tied: the head is the embedding
    assert {name for n, name in found.items() if ".mlp." in n} == {"ternary"}
    assert {name for n, name in found.items() if "_proj" in n and ".mlp." not in n} == {"grid:3g16"}
    student, weights, _ = load_student(tmp_path / "q")
    model = student.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"].decode())
    for flags, expected in (
        (["*.self_attn.*=ternary", "*.mlp.*=binary"], {"ternary", "binary"}),
        (["*=binary", "*.mlp.*=ternary"], {"ternary", "binary"}),
    ):
        given = [part for flag in flags for part in ("--layer", flag)]
        shown = run(capsys, "quantize", "--model", "tiny-llama", *given, "--dry-run", "--out", "x")
        assert {line.split()[2] for line in shown.splitlines() if "_proj" in line} == expected
    conflict = run(capsys, *command, "--embeddings", "ternary", "--out", tmp_path / "x", code=2)
    assert "--head and --embeddings are one weight" in conflict
    for flags, message in (
        (["--layer", "mlp"], "--layer must be PATTERN=FORMAT, got 'mlp'"),
        (["--layer", "*.nothing=ternary"], "--layer patterns ['*.nothing'] match no weight"),
        (["--layer", "*.mlp.*=ternary", "--layer", "*.mlp.*=e8p:2"], "each pattern once"),
        (["--exclude", "model.layers.0"], "--exclude pattern 'model.layers.0' matches no weight"),
        (["--exclude", "*"], "nothing is left to quantize"),
        (["--head", "--exclude", "*lm_head*"], "--head and --exclude '*lm_head*' are one weight"),
    ):
        command = ["quantize", "--model", "tiny-llama", *flags, "--out", tmp_path / "x"]
        assert message in run(capsys, *command, code=2)


def test_a_quantized_tied_head_is_calibrated_tuned_and_generated_from(tmp_path, text, capsys):
    made, tuned = tmp_path / "made", tmp_path / "tuned"
    command = ["quantize", "--model", "tiny-llama", *QUICK, "--embeddings", "--out", made]
    run(capsys, *command, *calibrated(text))
    assert len(schemes(made)) == 15
    steps = ["--steps", "1", "--batch", "1", "--length", "32", "--eval-windows", "1"]
    tune = ["tune", "--checkpoint", str(made), "--text", "pydoc", "--eval-text", text, *steps]
    assert main([*tune, "--out", str(tuned)]) == 0
    assert f"the checkpoint was made with the text {text} (calib" in capsys.readouterr().err
    command = ["generate", "--checkpoint", tuned, "--prompt", "so", "--tokens", "4"]
    assert run(capsys, *command) == run(capsys, *command, "--dense")
    assert len(load_student(tuned)[1]) == 15


def test_much_that_stays_dense_needs_a_flag(tmp_path, monkeypatch, capsys):
    loaded = load_model("tiny-llama")
    loaded.model.model.odd = nn.Parameter(torch.randn(300, 64))
    monkeypatch.setattr("pvopt.llm.load_model", lambda *args, **kwargs: loaded)
    command = ["quantize", "--model", "tiny-llama", *QUICK, "--out", tmp_path / "q"]
    error = run(capsys, *command, code=2)
    assert "only 79% of the weights of this model's matrices would be quantized" in error
    assert "model.odd" in error
    assert not (tmp_path / "q").exists()
    assert "79% of the matrices" in run(capsys, *command, "--partial")


def test_a_dry_run_says_what_the_run_will_give(tmp_path, folder, capsys):
    command = ["quantize", "--model", folder, *QUICK, "--out", tmp_path / "q"]
    shown = run(capsys, *command, "--dry-run")
    assert "nothing was written" in shown
    assert not (tmp_path / "q").exists()
    run(capsys, *command)
    report = storage_report(tmp_path / "q")
    assert f"{report.bits_per_weight_16:.3f} bits per quantized weight" in shown
    for weight in report.weights:
        assert f"{weight.bits_per_weight_16:.3f}" in next(
            line for line in shown.splitlines() if line.startswith(weight.name)
        )
    megabytes = float(shown.partition("safetensors about ")[2].split()[0])
    assert megabytes == pytest.approx(report.file_bytes / 1e6, abs=0.06)


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    "content", ["null", "3", "[" * 100_000, '{"model_type": "llama", "hidden_size": "x"}', "fifo"]
)
def test_a_broken_configuration_is_named_by_dry_runs_too(tmp_path, capsys, content, dry):
    file = tmp_path / "config.json"
    if content == "fifo":
        os.mkfifo(file)
    else:
        file.write_text(content)
    command = ["quantize", "--model", tmp_path, *QUICK, "--out", tmp_path / "q"]
    error = run(capsys, *command, *["--dry-run"] * dry, code=2)
    assert str(tmp_path) in error
    assert "mistake of pvopt" not in error


# Originals, texts that were seen, conversations.


def test_originals_are_found_from_every_folder(tmp_path, folder, text, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    os.symlink(folder, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    run(capsys, "quantize", "--model", "model", *QUICK, "--out", "start")
    assert read_metadata("start")["model"] == str(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "elsewhere")
    steps = ["--steps", "1", "--batch", "1", "--length", "32", "--eval-windows", "1"]
    run(capsys, "tune", "--checkpoint", "../start", "--text", text, *steps, "--out", "tuned")
    inputs = read_metadata("tuned/checkpoint")["inputs"]
    assert inputs["checkpoint"] == str(tmp_path / "start")
    os.unlink(tmp_path / "model")
    for command in (
        ["tune", "--checkpoint", "../start", "--out", "other"],
        ["tune", "--resume", "--out", "tuned", "--steps", "2"],
    ):
        error = run(capsys, *command, code=2)
        assert f"{tmp_path / 'model'}, which is not on this machine" in error


def test_eval_compares_with_the_original_and_warns_of_seen_texts(tmp_path, text, capsys):
    made = tmp_path / "made"
    run(capsys, "quantize", "--model", "tiny-llama", *QUICK, *calibrated(text), "--out", made)
    (seen,) = read_metadata(made)["seen"]
    assert (seen["use"], seen["part"]) == ("calibration", "train")
    flags = ["--text", text, "--context", "32", "--windows", "3", "--dtype", "float32"]
    passes = []

    def count(module, args):
        if type(module).__name__ == "LlamaForCausalLM":
            passes.append(module)

    handle = register_module_forward_pre_hook(count)
    assert main(["eval", "--checkpoint", str(made), *flags]) == 0
    handle.remove()
    shown = capsys.readouterr()
    assert sorted(map(passes.count, {*passes})) == [4, 4]  # each window once, and a look at heads
    assert "the checkpoint was made with the text" in shown.err
    student, original = load_student(made)[0], load_model("tiny-llama")
    tokens = student.encode(TextPart.load(text, "all").text)
    ids = tokens[: 3 * 32].view(3, 32)
    with torch.no_grad():
        p, q = (m.model(ids).logits.log_softmax(-1) for m in (original, student))
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    agreement = float((p.argmax(-1) == q.argmax(-1)).float().mean())
    found = compare(student.model, original.model, tokens, context_length=32, max_windows=3)
    assert found.divergence == pytest.approx(divergence, rel=1e-4)
    assert found.agreement == pytest.approx(agreement)
    read = perplexity(student.model, tokens, context_length=32, max_windows=3)
    assert {**asdict(found), **asdict(read)} == asdict(found)  # the same, bit for bit
    assert f"divergence {divergence:.4f}"[:-1] in shown.out
    assert f"{agreement:.2%} of 96 positions" in shown.out
    assert main(["eval", "--checkpoint", str(made), *flags, "--part", "held-out"]) == 0
    assert "was made with the text" not in capsys.readouterr().err
    assert main(["eval", "--checkpoint", str(made), *flags, "--no-original"]) == 0
    assert "beside the original" not in capsys.readouterr().out


class FakeTaskManager:
    """As that of lm-eval 0.4.13: it knows names, and matches patterns of them."""

    all_tasks = ("boolq", "piqa", "piqa_ar")

    def match_tasks(self, patterns):
        return [name for p in patterns for name in fnmatch.filter(self.all_tasks, p)]


@pytest.fixture
def lm_eval(monkeypatch):
    """What lm-eval is asked for, without the package."""
    asked = {}

    def simple_evaluate(**settings):
        asked.update(settings)
        measures = {"acc,none": 0.5, "alias": "piqa", "sample_len": 7, "acc_stderr,none": "N/A"}
        return {"results": {"piqa": measures}}

    names = ("lm_eval", "lm_eval.tasks", "lm_eval.models", "lm_eval.models.huggingface")
    modules = {name: types.ModuleType(name) for name in names}
    modules["lm_eval"].simple_evaluate = simple_evaluate
    modules["lm_eval.tasks"].TaskManager = FakeTaskManager
    modules[names[-1]].HFLM = lambda pretrained, tokenizer: (pretrained, tokenizer)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return asked


def test_eval_runs_tasks_of_lm_eval(lm_eval, tmp_path, monkeypatch, capsys):
    own = tmp_path / "own.yaml"
    own.write_text("task: own")
    monkeypatch.chdir(tmp_path)
    command = ["eval", "--model", "tiny-llama", "--windows", "7", "--tasks"]
    shown = run(capsys, *command, "boolq, own.yaml,piqa*,boolq")
    assert shown.splitlines()[-1].split() == ["piqa", "acc", "0.5000"]
    assert len(shown.splitlines()) == 3
    assert lm_eval["tasks"] == ["boolq", str(own), "piqa", "piqa_ar"]
    assert isinstance(lm_eval["task_manager"], FakeTaskManager)
    assert lm_eval["limit"] == 7


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("bolq", "lm-eval has no task 'bolq'; did you mean boolq?"),
        ("boolq,zzz", "lm-eval has no task 'zzz'"),
        ("other.yaml", "there is no file 'other.yaml'"),
        (" ,", "--tasks must name a task"),
    ],
)
def test_tasks_that_do_not_exist_are_said_before_any_work(
    lm_eval, tasks, message, monkeypatch, capsys
):
    monkeypatch.setattr("pvopt.llm.load_model", lambda *args, **kwargs: 1 / 0)
    command = ["eval", "--model", "tiny-llama", "--tasks", tasks]
    assert message in run(capsys, *command, code=2)
    assert not lm_eval
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert "pip install lm_eval" in run(capsys, *command, code=2)


def test_conversations_are_spelled_out_and_padded(folder):
    loaded = load_model(folder)
    lines = ["hi there", "a much longer question, which is cut"]
    text = "\n".join(json.dumps({"messages": [{"role": "u", "content": c}]}) for c in lines)
    found = sequences_of(loaded, text, length=16, tokens=64, chat=True)
    spelled = [f"<u>{content}".encode() for content in lines]
    assert found.tokens.shape == (2, 16)
    assert found.masks.sum(1).tolist() == [11, 16]
    assert found.count == 27
    for row, mask, wanted in zip(found.tokens, found.masks, spelled, strict=True):
        assert bytes(row[mask.bool()].tolist()) == wanted[:16]
    for wrong in ("so long", "{}", '{"messages": 3}'):
        with pytest.raises(ValueError, match="line 1 of the text must be"):
            sequences_of(loaded, wrong, length=16, chat=True)
    with pytest.raises(ValueError, match="needs a chat template"):
        sequences_of(load_model("tiny-llama"), text, length=16, chat=True)


def test_generate_takes_a_chat_template_and_streams(tmp_path, folder, capsys):
    assert (
        main(["generate", "--model", str(folder), "--prompt", "hi", "--chat", "--tokens", "3"]) == 0
    )
    shown = capsys.readouterr()
    assert "tokens/s" in shown.err
    assert "<user>" not in shown.out  # the answer alone
    loaded = load_model(folder)
    tokens = loaded.encode("<user>hi")[None]
    with torch.no_grad():
        following = loaded.model(tokens).logits[0, -1].argmax()
    assert shown.out.startswith(loaded.tokenizer.decode(following)[:1])


# Layers are packed only where nothing changes by it.


class Reading(nn.Module):
    """A model that does something with the weight of its layer besides calling it."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.embed = kind, nn.Embedding(8, 8)
        self.layer = Scaled(8, 8) if kind == "subclass" else nn.Linear(8, 8)
        self.done = False

    def forward(self, input_ids, use_cache=False):
        hidden = self.embed(input_ids)
        if self.kind == "reads":
            hidden = hidden @ self.layer.weight.T
        elif self.kind == "rescales" and not self.done:
            with torch.no_grad():
                self.layer.weight.div_(8)
            self.done = True
        elif self.kind == "expects a parameter":
            hidden = (
                hidden + self.layer.weight.data_ptr() * 0 + len(self.layer._parameters["weight"])
            )
        return types.SimpleNamespace(logits=self.layer(hidden))


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


@pytest.mark.parametrize(
    ("kind", "packed", "said"),
    [
        ("plain", True, False),
        ("reads", True, False),
        ("subclass", False, False),  # it reads its weight, which is packed
        ("hook", False, False),
        ("rescales", False, True),
        ("expects a parameter", False, True),
    ],
)
def test_layers_are_packed_where_nothing_changes(capsys, kind, packed, said):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reading(kind).eval()
    if kind == "hook":
        model.layer.register_forward_hook(lambda module, args, output: output + 1)
    weights = quantize_(model, {"layer": UniformGrid(bits=3)})
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = model(ids).logits
        generate.pack(model, weights, ids)
        torch.testing.assert_close(model(ids).logits, expected)
    assert isinstance(model.layer, QuantizedLinear) == packed
    assert ("decoded" in capsys.readouterr().err) == said
