"""Names of settings: for files, losslessly, and short ones for people, losslessly too."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

__all__ = ["Registry", "ShortForm"]

T = TypeVar("T")
Class = TypeVar("Class", bound=type)  # the decorated class keeps its own constructor
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True, kw_only=True)
class ShortForm(Generic[T]):
    """How the settings of a class are written for people.

    Args:
        form: what the user may write, such as ``"grid:B[gN][s]"``.
        meaning: one line for the list of forms.
        example: one or two names that can be parsed.
        pattern: regular expression that the whole name matches, without settings in brackets.
        settings: returns the settings, by name, that the groups of the match stand for.
        write: returns the short name. It need not hold every setting: those that it leaves out
            follow in brackets, as in ``"grid:2g64[symmetric=True]"``. A name that ends with that
            of other settings holds all of its own, as brackets belong to the last name.
    """

    form: str
    meaning: str
    example: str
    pattern: str
    settings: Callable[..., Mapping[str, Any]]
    write: Callable[[T], str]

    @staticmethod
    def word(word: str, meaning: str, *, example: str | None = None) -> ShortForm[Any]:
        """Return a form of one word, without numbers: settings follow it in brackets.

        Args:
            word: the short name.
            meaning: one line for the list of forms.
            example: names that can be parsed; None for the word alone.
        """
        return ShortForm(
            form=word,
            meaning=meaning,
            example=example or word,
            pattern=re.escape(word),
            settings=dict,
            write=lambda settings: word,
        )


class Registry(Generic[T]):
    r"""Classes of settings by name; each registers itself, in its own file.

    Args:
        kind: what the classes are, for messages, such as ``"space"``.

    Example:
        >>> from dataclasses import dataclass
        >>> from pvopt.core.registry import Registry, ShortForm
        >>> shapes = Registry("shape")
        >>> square = ShortForm(
        ...     form="square:N", meaning="a square", example="square:2", pattern=r"square:(\d+)",
        ...     settings=lambda n: dict(side=int(n)), write=lambda s: f"square:{s.side}",
        ... )
        >>> @shapes.register(square)
        ... @dataclass(frozen=True, kw_only=True)
        ... class Square:
        ...     side: int
        ...     colour: str = "red"
        >>> shapes.parse("square:3"), shapes.name(Square(side=2, colour="blue"))
        (Square(side=3, colour='red'), "square:2[colour='blue']")
        >>> shapes.from_json(shapes.to_json(Square(side=2)))
        Square(side=2, colour='red')
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}
        self._forms: dict[str, ShortForm[T]] = {}
        self._nested: list[Registry[Any]] = [self]

    def register(self, short: ShortForm[Any] | None = None) -> Callable[[Class], Class]:
        """Return a decorator that makes a class known by its name, and by a short form.

        Without a short form, people write the name of the class and all settings:
        ``"Powers[base=2, group_size=64]"``.

        A class of the same name and module takes the place of an older one, so that a module can
        be loaded again.

        Raises:
            TypeError: if the class is not a dataclass.
            ValueError: if another class has the name.
        """

        def add(cls: Class) -> Class:
            name = cls.__name__
            if not hasattr(cls, "__dataclass_fields__"):
                raise TypeError(f"{name}: only dataclasses can be registered as a {self.kind}")
            known = self._classes.get(name)
            if known is not None and known.__module__ != cls.__module__:
                raise ValueError(
                    f"a {self.kind} of the name {name} is registered already, by {known.__module__}"
                )
            self._classes[name] = cls  # type: ignore[assignment]
            if short is not None:
                self._forms[name] = short
            return cls

        return add

    def forget(self, cls: type[T]) -> None:
        """Take a class out of the registry again."""
        self._classes.pop(cls.__name__, None)
        self._forms.pop(cls.__name__, None)

    def nests(self, other: Registry[Any]) -> None:
        """Let settings of another registry occur inside settings of this one."""
        self._nested.append(other)

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __contains__(self, cls: object) -> bool:
        """Tell whether a class, or one of a name, is registered."""
        return cls in self._classes or cls in self._classes.values()

    @property
    def forms(self) -> tuple[ShortForm[T], ...]:
        """The short forms, in the order of their registration."""
        return tuple(self._forms.values())

    def to_json(self, settings: T) -> dict[str, Any]:
        """Describe settings by the name of their class and all of their values.

        Args:
            settings: fields are numbers, strings, bools, None, tuples of these, or settings that
                are registered themselves.

        Returns:
            ``{"class": NAME, SETTING: VALUE, ...}``

        Raises:
            ValueError: if the class is not registered or a setting is of another kind.
        """
        name = type(settings).__name__
        if self._classes.get(name) is not type(settings):
            raise ValueError(f"{name} is not registered as a {self.kind}; known are {list(self)}")
        found = {f.name: getattr(settings, f.name) for f in fields(settings)}  # type: ignore[arg-type]
        return {"class": name, **{k: self._plain(f"{name}.{k}", v) for k, v in found.items()}}

    def _plain(self, where: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return [self._plain(where, item) for item in value]
        if isinstance(value, _PLAIN):
            return value
        for registry in self._nested:
            if type(value) in registry:
                return {"of": registry.kind, **registry.to_json(value)}
        raise ValueError(
            f"{where}: only numbers, strings, bools, None and registered settings can be saved, "
            f"got {value!r}"
        )

    def from_json(self, description: Any) -> T:
        """Rebuild settings from their description.

        Args:
            description: as :meth:`to_json` returns it. A setting that is not there takes the
                class's default.

        Raises:
            ValueError: if the class is unknown or the settings do not fit it.
        """
        if not isinstance(description, Mapping):
            raise ValueError(f"a {self.kind} must be described by an object, got {description!r}")
        name = description.get("class")
        cls = self._classes.get(name) if isinstance(name, str) else None
        if cls is None:
            raise ValueError(f"unknown {self.kind} {name!r}; known are {sorted(self)}")
        settings = {
            key: self._settings(value)
            for key, value in description.items()
            if key not in ("class", "of")
        }
        names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        needed = {
            f.name
            for f in fields(cls)  # type: ignore[arg-type]
            if f.default is MISSING and f.default_factory is MISSING
        }
        unknown, missing = settings.keys() - names, needed - settings.keys()
        if unknown or missing:
            what, wrong = ("unknown", unknown) if unknown else ("missing", missing)
            raise ValueError(f"{name}: {what} settings {sorted(wrong)}")
        try:
            return cls(**settings)
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from error

    def _settings(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self._settings(item) for item in value)
        if not isinstance(value, Mapping):
            return value
        for registry in self._nested:
            if registry.kind == value.get("of"):
                return registry.from_json(value)
        raise ValueError(f"unknown kind of settings {value.get('of')!r}")

    def name(self, settings: T) -> str:
        """Return the short name of settings; the inverse of :meth:`parse`.

        Raises:
            ValueError: if the class is not registered.
        """
        cls = type(settings)
        if cls not in self:
            raise ValueError(f"{cls.__name__} is not registered as a {self.kind}")
        form = self._forms.get(cls.__name__)
        text = cls.__name__ if form is None else form.write(settings)
        plain = None if form is None else _build(cls, form, text)
        more = [
            f"{f.name}={getattr(settings, f.name)!r}"
            for f in fields(settings)  # type: ignore[arg-type]
            if plain is None or getattr(settings, f.name) != getattr(plain, f.name)
        ]
        return text + (f"[{', '.join(more)}]" if more else "")

    def matches(self, text: str) -> bool:
        """Tell whether a text is written as one of the short forms are, whatever its numbers."""
        text = _brackets(text, self._value)[0]
        fits = any(re.fullmatch(form.pattern, text) for form in self._forms.values())
        return fits or text in self._classes.keys() - self._forms.keys()

    def parse(self, text: str) -> T:
        """Make settings of their short name.

        Raises:
            ValueError: if no form fits, or a setting is out of range.
        """
        text = text.strip()
        failed: ValueError | None = None
        # Brackets belong to the last of several names; to the whole only where that fails.
        for plain, settings in ((text, {}), _brackets(text, self._value)):
            for name, form in self._forms.items():
                if re.fullmatch(form.pattern, plain):
                    try:
                        return _with(_build(self._classes[name], form, plain), settings)
                    except (TypeError, ValueError) as error:
                        words = f"{self.kind} {text!r} ({form.form}): {error}"
                        failed = failed or ValueError(words)
            if plain in self._classes.keys() - self._forms.keys():
                return self.from_json({"class": plain, **settings})
        if failed is not None:
            raise failed
        examples = [word for form in self.forms for word in form.example.split(", ")]
        near = get_close_matches(text, examples, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        forms = ", ".join(form.form for form in self.forms)
        raise ValueError(f"{self.kind} {text!r} is unknown{hint}; the forms are {forms}")

    def _value(self, node: ast.expr) -> Any:
        """Return a literal, or the registered settings that a call of their class describes."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            for registry in self._nested:
                if node.func.id in registry:
                    settings = {str(k.arg): registry._value(k.value) for k in node.keywords}
                    return registry.from_json({"class": node.func.id, **settings})
        return ast.literal_eval(node)


def _build(cls: type[T], form: ShortForm[T], text: str) -> T:
    match = re.fullmatch(form.pattern, text)
    if match is None:
        raise ValueError(f"{text!r} does not have the form {form.form}")
    return cls(**form.settings(*match.groups()))


def _with(found: T, settings: Mapping[str, Any]) -> T:
    """Return settings with some of them replaced."""
    known = [f.name for f in fields(found)]  # type: ignore[arg-type]
    unknown = settings.keys() - set(known)
    if unknown:
        raise ValueError(f"has no setting {min(unknown)!r}, only {', '.join(known)}")
    return replace(found, **settings) if settings else found  # type: ignore[type-var]


def _brackets(
    text: str, value: Callable[[ast.expr], Any] = ast.literal_eval
) -> tuple[str, dict[str, Any]]:
    """Return a short name without the settings in brackets at its end, and these."""
    if not text.endswith("]"):
        return text, {}
    depth = place = 0
    for place in range(len(text) - 1, -1, -1):
        depth += {"]": 1, "[": -1}.get(text[place], 0)
        if depth == 0:
            break
    inside = text[place + 1 : -1]
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("settings need names")
        found = {str(k.arg): value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ValueError(f"settings {inside!r} of {text!r} must be NAME=VALUE, ...") from error
    return text[:place], found
