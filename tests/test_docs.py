"""Every public name is explained, and the examples on the documentation's pages run."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import doctest
import inspect
import io
import itertools
import re
import runpy
import statistics
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
STUB = DOCS.parent / "pvopt" / "__init__.pyi"
sys.path.insert(0, str(DOCS / "_ext"))

import api_pages  # noqa: E402
import math_font  # noqa: E402
import public_names  # noqa: E402
import results  # noqa: E402
import site_browser  # noqa: E402
import site_checks  # noqa: E402

PUBLIC = [n for n in public_names.public_names() if n.home == n.package]
WITHOUT_PAGE = [p for _, p in runpy.run_path(str(DOCS / "conf.py"))["nitpick_ignore_regex"]]
PAGES = sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"])


def _is_record(thing: Any) -> bool:
    """Whether a class only holds results: the function that returns it has the example."""
    holds_fields = dataclasses.is_dataclass(thing) or hasattr(thing, "_fields")
    own = [v for name, v in vars(thing).items() if not name.startswith("_")]
    return holds_fields and not any(inspect.isroutine(v) for v in own)


def _needs_example(thing: Any) -> bool:
    if inspect.isclass(thing):
        is_error = issubclass(thing, BaseException)
        return not (is_error or inspect.isabstract(thing) or _is_record(thing))
    return inspect.isroutine(thing)


@pytest.mark.parametrize("public", PUBLIC, ids=lambda n: f"{n.package}.{n.name}")
def test_public_name_is_explained(public):
    if public.directive == "autodata":
        return  # a constant has no docstring of its own
    doc = inspect.getdoc(public.thing) or ""
    name = f"{public.package}.{public.name}"
    assert doc, f"{name} has no docstring"
    if _needs_example(public.thing):
        assert re.search(r"^Examples?:$", doc, re.M), f"the docstring of {name} has no Example"
        assert ">>>" in doc, f"the Example of {name} does not run"


def _declares(base: type, name: str) -> bool:
    return hasattr(base, name) or name in vars(base).get("__annotations__", {})


CLASSES = [n for n in PUBLIC if inspect.isclass(n.thing)]


@pytest.mark.parametrize("public", CLASSES, ids=lambda n: f"{n.package}.{n.name}")
def test_new_methods_are_explained(public):
    """Those that override say nothing that their contract does not."""
    for name, member in vars(public.thing).items():
        function = getattr(member, "fget", getattr(member, "func", member))
        function = getattr(function, "__func__", function)
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        if (
            function.__name__ != name
            or function.__qualname__ != f"{public.thing.__qualname__}.{name}"
        ):
            continue  # a field whose default is a function, or what a dataclass makes
        overrides = any(_declares(base, name) for base in public.thing.__mro__[1:])
        assert overrides or function.__doc__, f"{public.name}.{name} has no docstring"


def _classes_named(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _classes_named(argument)


def _classes_shown(thing: type) -> Iterator[type]:
    """What the reference page of a class links to: its bases and its methods' annotations."""
    yield from thing.__bases__
    for name, member in vars(thing).items():
        function = inspect.unwrap(getattr(member, "fget", getattr(member, "__func__", member)))
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        with contextlib.suppress(NameError):  # imported for the type checker alone
            for annotation in typing.get_type_hints(function).values():
                yield from _classes_named(annotation)


@pytest.mark.parametrize("public", CLASSES, ids=lambda n: f"{n.package}.{n.name}")
def test_pages_of_classes_link_to_public_classes(public):
    """The build of the documentation would fail, minutes later."""
    documented = {n.thing for n in CLASSES}
    ours = {c for c in _classes_shown(public.thing) if c.__module__.startswith("pvopt")}
    without_page = {f"{c.__module__}.{c.__qualname__}" for c in ours - documented}
    assert {c for c in without_page if not any(re.fullmatch(p, c) for p in WITHOUT_PAGE)} == set()


def test_every_name_of_the_stub_is_documented():
    listed = re.findall(r"^    (\w+) as \1,$", STUB.read_text("utf-8"), re.M)
    assert len(listed) > 50
    assert {n.name for n in PUBLIC if n.package == "pvopt"} == set(listed)


def test_reference_has_every_public_name_once():
    pages = "\n".join(api_pages.pages().values())
    documented = re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)$", pages, re.M)
    expected = [n.full for n in PUBLIC] + public_names.packages()
    assert sorted(documented) == sorted(expected)
    files = [name.lower() for name in api_pages.pages()]
    assert len(set(files)) == len(files)


def test_every_name_has_a_summary_of_one_sentence():
    rows = [line for n in PUBLIC for line in api_pages.summary([n]) if line.startswith("     - ")]
    assert [row for row in rows if not row.removeprefix("     - ")] == []


GOOD = (
    '<h1 id="top">A</h1><a href="b.html#top">b</a><img src="i.svg" alt="i"><a href="http://x">x</a>'
)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("", ""), []),
        (("b.html", "c.html"), ["leads to c.html#top, which is not there"]),
        (("#top", "#end"), ["leads to b.html#end, where there is no such place"]),
        (("i.svg", "j.svg"), ["leads to j.svg, which is not there"]),
        ((' alt="i"', ""), ["no text in place of"]),
        (("<h1", "<h2"), ["must have one title"]),
        (("http:", "x" * 300_000 + ":"), ["has 300,0"]),
    ],
    ids=["good", "link", "place", "picture", "text", "title", "weight"],
)
def test_faults_of_finished_pages_are_found(tmp_path, change, found):
    (tmp_path / "a.html").write_text(GOOD.replace(*change), "utf-8")
    (tmp_path / "b.html").write_text(GOOD, "utf-8")
    (tmp_path / "i.svg").touch()
    problems = list(site_checks.problems(tmp_path))
    assert len(problems) == len(found)
    assert all(part in problem for part, problem in zip(found, problems, strict=True))


def _sentences_of_attributes(file: Path) -> Iterator[str]:
    """First lines of what is said of properties, and of attributes of classes by ``#:``."""
    text = file.read_text("utf-8")
    for before, line in itertools.pairwise(text.splitlines()):
        if re.match(" +#: ", line) and not re.match(" +#:", before):
            yield line
    for node in ast.walk(ast.parse(text)):
        decorators = getattr(node, "decorator_list", [])
        if isinstance(node, ast.FunctionDef) and "property" in map(ast.unparse, decorators):
            yield (ast.get_docstring(node) or "").partition("\n")[0]


def test_no_sentence_of_an_attribute_is_read_as_its_type():
    """Sphinx takes what stands before a colon there for the type, and looks for its page."""
    files = [f for p in ("pvopt", "pvopt_kernels") for f in (DOCS.parent / p).rglob("*.py")]
    lines = [line for file in files for line in _sentences_of_attributes(file)]
    assert len(lines) > 50
    assert [line for line in lines if re.search(r"\w: ", line)] == []


def _texts(tree: ast.AST) -> Iterator[str]:
    """The strings of a module, an ellipsis for what is filled in."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            yield re.sub(r"%[.\d]*[a-z]", "…", str(node.value))


def test_messages_of_the_troubleshooting_page_are_those_of_the_library():
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^`([^`]+)`\n: ", page, re.M)
    assert len(quoted) > 30
    sources = [file.read_text("utf-8") for file in (DOCS.parent / "pvopt").rglob("*.py")]
    texts = [text for source in sources for text in _texts(ast.parse(source))]
    assert [message for message in quoted if not any(message in text for text in texts)] == []


def test_results_are_those_that_the_benchmarks_report():
    """Who measures anew copies the file of ``--json`` to ``benchmarks/results``, too."""
    text = (DOCS.parent / "benchmarks" / "README.md").read_text("utf-8").replace("`", "")

    def shown(figure: float, *beginning: str) -> bool:
        lines = re.findall(rf"^\| {re.escape(' | '.join(beginning))} \|.*$", text, re.M)
        found = [n for line in lines for n in re.findall(r"[\d.]+(?:e\+?\d+)?", line)]
        return any(abs(float(n) - figure) <= 0.015 * figure for n in found)

    rows = results.read("frontier")["rows"]
    start = {r["format"]: r["method"] for r in rows if not r["steps"]}
    wrong: list[Any] = [
        row for row in rows if not shown(row["ppl"], row["format"], start[row["format"]])
    ]
    for row in results.read("llm_tune")["rows"]:
        wrong += [row] * (not shown(row["ppl_48"], row["recipe"]))
    losses: dict[tuple[str, str], list[float]] = {}
    for row in results.read("recipes")["rows"]:
        losses.setdefault((row["method"], row["task"]), []).append(row["loss"])
    wrong += [k for k, own in losses.items() if not shown(statistics.mean(own), k[0])]
    assert wrong == []


def test_the_table_of_servers_asks_every_writer():
    names = {writer.name for writer in results.WRITERS.writers}
    assert names - {"native", "dense"} == set(results.SERVERS)


def test_every_measured_row_is_shown():
    rows = results.read("frontier")["rows"]
    assert {row["format"] for row in rows} <= set(results.FORMATS)
    table = results.frontier(results.read("frontier"))
    assert [row for row in rows if results.shown(row["ppl"]) not in table] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_examples_on_page(page):
    blocks = re.findall(r"^( *)```pycon\n(.*?)^ *```", page.read_text("utf-8"), re.M | re.S)
    source = "\n".join(block for _, block in blocks)
    names: dict[str, Any] = {}
    test = doctest.DocTestParser().get_doctest(source, names, page.name, str(page), 0)
    failed = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed
    assert failed == 0, f"{failed} examples of {page.name} fail; the output above says how"


def test_formulas_have_a_font_with_all_their_glyphs():
    """Italics of letters that stand alone, and braces in all heights; primes are raised once."""
    for package in ("ziamath", "latex2mathml", "brotli"):
        pytest.importorskip(package, reason="the extra docs is not installed")
    from fontTools.ttLib import TTFont
    from mathml import to_mathml

    formula = to_mathml(r"\Big\{ X_d'X - h \Big\}", display=True)
    assert "<mrow><msub><mi>X</mi><mi>d</mi></msub><mi>′</mi></mrow>" in formula
    text = math_font.characters([f"<p>no $ {formula} no %"])
    assert set(text) == set("{}−ℎ′Xdh𝑋𝑑")
    font = TTFont(io.BytesIO(math_font.subset(text)))
    assert set(map(ord, text)) <= font.getBestCmap().keys()
    assert "braceleft" in font["MATH"].table.MathVariants.VertGlyphCoverage.glyphs


@pytest.mark.skipif(site_browser.BROWSER is None, reason="chromium is not installed")
def test_pages_that_do_not_fit_on_a_phone_are_found(tmp_path):
    for name, width in (("fits", 380), ("wide", 500)):
        style = f"margin:0;min-width:{width}px"
        (tmp_path / f"{name}.html").write_text(f"<!doctype html><body style='{style}'>x")
    assert site_browser.wide_pages(tmp_path, ["fits.html", "wide.html"]) == {"wide.html": 500}
