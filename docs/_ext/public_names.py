"""Which names are public, and where each is documented.

What is in a package's ``__all__`` is public. A name has one page, under the first package that
exports it. Packages that appear later need no change here.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

ROOTS = ("pvopt", "pvopt_kernels")


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
    def full(self) -> str:
        """The name under which it is documented."""
        return f"{self.home}.{self.name}"

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


@functools.cache
def _all() -> list[PublicName]:
    homes: dict[tuple[int, str], str] = {}
    found = []
    for package in packages():
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            home = homes.setdefault((id(thing), name), package)
            found.append(PublicName(package, name, thing, home))
    return found


def public_names() -> Iterator[PublicName]:
    """Yield every name in the ``__all__`` of every public package."""
    yield from _all()
