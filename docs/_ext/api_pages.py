"""Write the reference: a page for each public name, and one of tables for each package.

The build fails if a public name is missing.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from public_names import ROOTS, PublicName, packages, public_names
from sphinx.pycode import ModuleAnalyzer
from written import write

from pvopt.cli import main

# Sections of `pvopt` from the most to the least needed; others follow by name.
_FIRST_SECTIONS = (
    "pvopt.optimizer",
    "pvopt.recipes",
    "pvopt.quantization",
    "pvopt.weights",
    "pvopt.parametrizations",
    "pvopt.spaces",
    "pvopt.rules",
    "pvopt.metrics",
    "pvopt.engine",
    "pvopt.core",
)

#: What most people need first, and what those need who add parts of their own.
FIRST = (
    "pvopt.quantize_",
    "pvopt.PVOptimizer",
    "pvopt.QuantizedWeights",
    "pvopt.ste",
    "pvopt.subspace_pv_ste",
    "pvopt.UniformGrid",
    "pvopt.AdditiveCodebooks",
    "pvopt.E8P",
    "pvopt.Trellis",
    "pvopt.parse_scheme",
    "pvopt.calibration.calibrate_",
    "pvopt.formats.save",
    "pvopt.formats.load",
    "pvopt.layers.to_quantized",
)
EXTENDING = (
    "pvopt.Parametrization",
    "pvopt.Space",
    "pvopt.Rounding",
    "pvopt.Subspace",
    "pvopt.Phases",
    "pvopt.ValueOptimizer",
    "pvopt.Metric",
    "pvopt.MetricSource",
    "pvopt.starts.Start",
    "pvopt.formats.Reader",
    "pvopt.formats.Writer",
    "pvopt.Representation",
    "pvopt.CodeStream",
    "pvopt.GroupLayout",
    "pvopt.Query",
    "pvopt.Candidates",
    "pvopt.Draws",
)

# Their --help goes into the page on the command line.
COMMANDS = ("plan", "quantize", "tune", "eval", "generate", "export", "report", "info", "demo")


def package_page(package: str) -> str:
    """Return the page of a package in reStructuredText: its docstring, and tables of its names."""
    names = [n for n in public_names() if n.package == package]
    own = [n for n in names if n.home == package]
    lines = [package, "=" * len(package), "", f".. automodule:: {package}", ""]
    sections: dict[str, list[PublicName]] = {}
    for n in own:
        if n.full not in EXTENDING:
            sections.setdefault(_section(package, n.module), []).append(n)
    for section in sorted(sections, key=_rank):
        if section != package:
            title = _title(section)
            lines += [title, "-" * len(title), ""]
            # Makes :mod:`pvopt.recipes` a link, unless a function has the module's name.
            taken = {f"{package}.{n.name}" for n in own} | set(packages())
            if section not in taken:
                lines += [f".. py:module:: {section}", ""]
        lines += [f".. py:currentmodule:: {package}", ""]
        lines += [*summary(sections[section]), ""]
    others = {
        "For parts of your own": [n for n in own if n.full in EXTENDING],
        "Exported here, too": [n for n in names if n.home != package],
    }
    for title, some in others.items():
        if some:
            lines += [title, "-" * len(title), "", *summary(some), ""]
    return "\n".join(lines)


def name_page(n: PublicName) -> str:
    """Return the page of a public name in reStructuredText."""
    # The title alone, so that who searches for `ste` gets this page first.
    lines = [":orphan:", "", n.name, "=" * len(n.name), ""]
    lines += [f":doc:`API reference <../index>` › :doc:`../packages/{n.home}`", ""]
    if n.directive == "autodata":
        lines += [f".. py:data:: {n.full}", ""]
        return "\n".join([*lines, *(f"   {line}" for line in _comment(n)), ""])
    lines += [f".. {n.directive}:: {n.full}"]
    if n.directive in ("autoclass", "autoexception", "automodule"):
        lines += ["   :members:"]
    if n.directive == "autoclass":
        lines += ["   :show-inheritance:"]
    return "\n".join([*lines, ""])


def summary(names: Iterable[PublicName]) -> list[str]:
    """Return a table of names with the first sentence of each, in reStructuredText."""
    lines = [".. list-table::", "   :class: summary", "   :widths: 30 70", ""]
    for n in names:
        lines += [f"   * - :py:obj:`{n.name} <{n.full}>`", f"     - {_sentence(n)}"]
    return lines


def role_page(full_names: Iterable[str]) -> str:
    """Return a table of names out of several packages."""
    found = {n.full: n for n in public_names()}
    return "\n".join([*summary(found[full] for full in full_names), ""])


def _sentence(n: PublicName) -> str:
    lines = (
        _comment(n) if n.directive == "autodata" else (inspect.getdoc(n.thing) or "").split("\n")
    )
    text = " ".join(lines).strip() if n.directive == "autodata" else "\n".join(lines)
    return text.split("\n\n")[0].replace("\n", " ").strip()


def _comment(n: PublicName) -> list[str]:
    """Return the ``#:`` comment of a constant, from the module below its home that has it."""
    inside = [name for name in sys.modules if f"{name}.".startswith(f"{n.home}.")]
    for name in sorted(inside, key=lambda name: (-name.count("."), name)):
        if vars(sys.modules[name]).get(n.name) is n.thing:
            found = ModuleAnalyzer.for_module(name).find_attr_docs().get(("", n.name))
            if found:
                return found
    return []


def _section(package: str, module: str) -> str:
    """Return the direct submodule of the package that the name comes from, or the package."""
    if not module.startswith(package + "."):
        return package
    return ".".join(module.split(".")[: package.count(".") + 2])


def _rank(section: str) -> tuple[int, str]:
    known = section in _FIRST_SECTIONS
    return (_FIRST_SECTIONS.index(section) if known else len(_FIRST_SECTIONS), section)


def _title(module: str) -> str:
    """Return the first sentence of a module's docstring, without the full stop."""
    text = inspect.getdoc(importlib.import_module(module)) or module
    return text.split("\n\n")[0].replace("\n", " ").removesuffix(".")


def _help(command: str) -> str:
    """Return what ``python -m pvopt COMMAND --help`` prints."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "88", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main([command, "--help"])
    return printed.getvalue().replace("usage: pvopt", "usage: python -m pvopt")


def pages() -> dict[str, str]:
    """Return the text of every file of the reference, by its path below ``docs/api``."""
    found = {f"packages/{package}.rst": package_page(package) for package in packages()}
    for n in public_names():
        if n.home == n.package:
            # Some disks do not tell FORMATS.html from Formats.html.
            kind = ".data" if n.directive == "autodata" else ""
            found[f"names/{n.full}{kind}.rst"] = name_page(n)
    return found | {
        "names/first.txt": role_page(FIRST),
        "names/extending.txt": role_page(EXTENDING),
    }


def _generate(app: Any) -> None:
    folder = Path(app.srcdir) / "api"
    found = pages()
    for name, text in found.items():
        write(folder / name, text)
    for kind in ("packages", "names"):
        for file in (folder / kind).iterdir():
            if f"{kind}/{file.name}" not in found:
                file.unlink()
    for command in COMMANDS:
        write(Path(app.srcdir) / "generated" / f"help-{command}.txt", _help(command))


def _check(app: Any, env: Any) -> None:
    from sphinx.util import logging

    documented = env.get_domain("py").objects
    for n in public_names():
        if n.full not in documented and n.directive != "automodule":
            logging.getLogger(__name__).warning(
                "%s.%s is public but not in the API reference", n.package, n.name
            )


def _resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Find a public name by the module that defines it, where the text says so."""
    target = node.get("reftarget", "")
    if not target.startswith(ROOTS):
        return None
    for n in public_names():
        if target.startswith(n.module) and f"{n.module}.{n.name}" == target:
            domain, place = env.get_domain("py"), node.get("refdoc")
            return domain.resolve_xref(env, place, app.builder, "obj", n.full, node, content)
    return None


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", _generate)
    app.connect("missing-reference", _resolve)
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True}
