"""``pvopt report``: runs and checkpoints on one page."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .common import add_device, choose_device, note, original_of, shortened

if TYPE_CHECKING:
    import torch

    from pvopt.llm import LanguageModel
    from pvopt.report import ReportedRun, Sample

__all__ = ["add_parser", "run"]


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "report",
        help=help,
        description="Draw runs, finished or not, and checkpoints on one page; it needs no network.",
    )
    parser.example = "pvopt report runs/tuned runs/other --out report.html"
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="folders written by tune or quantize"
    )
    parser.add_argument(
        "--out", default="report.html", metavar="FILE", help="the page; default report.html"
    )
    group = parser.add_argument_group("samples")
    group.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="let each checkpoint, and the original, go on with this text; may be repeated",
    )
    group.add_argument("--tokens", type=int, default=48, help="new tokens; default 48")
    add_device(group)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the folders, write the page."""
    import altair  # noqa: F401  # what is missing is said before any work
    import vl_convert  # noqa: F401

    from pvopt.report import read_runs, write_report
    from pvopt.report.page import check_place

    if args.tokens < 1:
        raise ValueError(f"--tokens must be at least 1, got {args.tokens}")
    check_place(args.out)
    runs = read_runs(args.folders)
    samples = _samples(args, runs) if args.prompt else []
    page = write_report(runs, args.out, samples=samples)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
    return 0


def _samples(args: argparse.Namespace, runs: list[ReportedRun]) -> list[Sample]:
    """Let every checkpoint and every original go on with the prompts, one model at a time."""
    from pvopt.llm import load_model
    from pvopt.tuning import load_student

    device = choose_device(args.device)
    samples, originals = [], []
    for found in runs:
        if found.storage is None:
            note(f"{found.name} has no checkpoint yet, so it writes no sample")
            continue
        student, _, metadata = load_student(found.folder, device=device)
        samples += _continued(args, found.name, student, device)
        try:
            name = original_of(found.folder, metadata)
        except ValueError as error:
            note(f"no sample of the original: {error}")
            continue
        if name not in originals:
            originals.append(name)
    for name in originals:
        try:
            original = load_model(name, device=device)
        except (ValueError, OSError, ImportError) as error:
            note(f"no sample of the original {name}: {shortened(str(error), 300)}")
            continue
        samples += _continued(args, f"original: {name}", original, device)
    return samples


def _continued(
    args: argparse.Namespace, name: str, loaded: LanguageModel, device: torch.device
) -> list[Sample]:
    import torch

    from pvopt.llm import check_length
    from pvopt.report import Sample

    model: Any = loaded.model.eval()
    tokenizer: Any = loaded.tokenizer
    samples = []
    for prompt in args.prompt:
        tokens = loaded.encode(prompt)[None].to(device)
        if not tokens.shape[1]:
            raise ValueError("--prompt must hold at least one token")
        check_length(model, "--tokens and --prompt", tokens.shape[1] + args.tokens)
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=args.tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
        text = tokenizer.decode(found[0, tokens.shape[1] :], skip_special_tokens=True)
        samples.append(Sample(model=name, prompt=prompt, text=text))
    return samples
