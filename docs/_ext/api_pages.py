"""Write one reference page per package, from its ``__all__``, and check that no name is missing.

A public name is documented once: under the first package that exports it, in the section of the
submodule that defines it. Packages that appear later need no change here.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOTS = ("pvopt", "pvopt_kernels")

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

# Their --help goes into the page on the command line.
COMMANDS = ("plan", "quantize", "tune", "eval", "generate", "export", "report", "info", "demo")


@dataclass(frozen=True)
class PublicName:
    """A name in a package's ``__all__``.

    Args:
        package: the package that exports it.
        name: the name.
        thing: what it stands for.
        home: the package under which it is documented.
    """

    package: str
    name: str
    thing: Any
    home: str

    @property
    def module(self) -> str:
        """The module that defines it, or the package itself for a constant."""
        # An instance has the module of its class, which is not where the constant is.
        if self.directive == "autodata":
            return self.package
        return getattr(self.thing, "__module__", self.package)

    @property
    def directive(self) -> str:
        """The autodoc directive that documents it."""
        if isinstance(self.thing, ModuleType):
            return "automodule"
        if inspect.isclass(self.thing):
            is_error = issubclass(self.thing, BaseException)
            return "autoexception" if is_error else "autoclass"
        return "autofunction" if inspect.isroutine(self.thing) else "autodata"


def packages() -> list[str]:
    """Return every public package that has an ``__all__``, parents first."""
    found = []
    for root in ROOTS:
        path = importlib.import_module(root).__path__
        below = [m.name for m in pkgutil.walk_packages(path, f"{root}.") if m.ispkg]
        found += [root, *sorted(below)]
    public = [name for name in found if not any(p.startswith("_") for p in name.split("."))]
    return [name for name in public if hasattr(importlib.import_module(name), "__all__")]


def public_names() -> Iterator[PublicName]:
    """Yield every name in the ``__all__`` of every public package."""
    homes: dict[tuple[int, str], str] = {}
    for package in packages():
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            home = homes.setdefault((id(thing), name), package)
            yield PublicName(package, name, thing, home)


def page(package: str) -> str:
    """Return the reference page of a package in reStructuredText."""
    names = [n for n in public_names() if n.package == package]
    own = [n for n in names if n.home == package]
    lines = [package, "=" * len(package), "", f".. automodule:: {package}", ""]
    elsewhere = [n for n in names if n.home != package]
    if elsewhere:
        links = ", ".join(f":py:obj:`{n.name} <{n.home}.{n.name}>`" for n in elsewhere)
        lines += [f"Exported here too, and documented where the link leads: {links}.", ""]
    sections: dict[str, list[PublicName]] = {}
    for n in own:
        sections.setdefault(_section(package, n.module), []).append(n)
    for section in sorted(sections, key=_rank):
        if section != package:
            title = _title(section)
            lines += [title, "-" * len(title), ""]
            # Makes :mod:`pvopt.recipes` a link, unless a function has the module's name.
            taken = {f"{package}.{n.name}" for n in own} | set(packages())
            if section not in taken:
                lines += [f".. py:module:: {section}", f".. py:currentmodule:: {package}", ""]
        for n in sections[section]:
            lines += [f".. {n.directive}:: {package}.{n.name}"]
            if n.directive in ("autoclass", "autoexception", "automodule"):
                lines += ["   :members:"]
            if n.directive == "autoclass":
                lines += ["   :show-inheritance:"]
            lines += [""]
    return "\n".join(lines)


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


def _write(path: Path, text: str) -> None:
    """Write a file if its text changes, so that unchanged pages are not built again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _help(command: str) -> str:
    """Return what ``python -m pvopt COMMAND --help`` prints."""
    run = subprocess.run(
        [sys.executable, "-m", "pvopt", command, "--help"],
        env={**os.environ, "COLUMNS": "88", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.replace("usage: pvopt", "usage: python -m pvopt")


def _generate(app: Any) -> None:
    folder = Path(app.srcdir) / "api" / "generated"
    pages = {f"{package}.rst": page(package) for package in packages()}
    pages |= {f"help-{command}.txt": _help(command) for command in COMMANDS}
    for name, text in pages.items():
        _write(folder / name, text)
    for stale in folder.iterdir():
        if stale.name not in pages:
            stale.unlink()


def _check(app: Any, env: Any) -> None:
    from sphinx.util import logging

    documented = env.get_domain("py").objects
    for n in public_names():
        if f"{n.home}.{n.name}" not in documented and n.directive != "automodule":
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
            return domain.resolve_xref(
                env, place, app.builder, "obj", f"{n.home}.{n.name}", node, content
            )
    return None


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", _generate)
    app.connect("missing-reference", _resolve)
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True}
