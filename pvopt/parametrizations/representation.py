"""One quantized weight: its settings, codes and values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout
from pvopt.core.streams import CodeStream
from pvopt.core.views import MatrixView, plain_view
from pvopt.spaces.contract import Space
from pvopt.spaces.identity import identity

from .scheme import SPACE, Scheme
from .view_memory import ViewMemory

if TYPE_CHECKING:
    from .contract import Parametrization

__all__ = ["Representation"]


@dataclass(eq=False)
class Representation:
    r"""The discrete codes and continuous values that stand for one dense weight.

    .. math:: w = \mathrm{leave}(\mathrm{decode}(z, v))

    Optimizers change codes and values in place, so a representation that was given to one always
    shows the current state. What a space owns is among the codes and values, under names that
    begin with ``space.``.

    Several weights of one shape may lie one below the other in common tensors (:meth:`stack`):
    parametrizations then work on all of them at once.

    Args:
        parametrization: the settings that say how codes and values are to be read.
        codes: integers by stream, as the parametrization and the space define them.
        values: continuous tensors by name, alike.
        shape: of the dense weight.
        space: where the groups live.
        count: number of weights; each tensor is ``count`` times as long as that of one.
        view: how the tensor of a weight holds matrices. Parametrization and space know matrices
            only, those of :attr:`matrices`.
        check: whether codes are looked at; False where they have been.

    Attributes:
        inner_shape: shape of one matrix in its space.
        layout: how one matrix is cut into groups there.
        streams: the streams of codes of one weight, of the parametrization and of the space.
        value_shapes: the shapes of the values of one weight, alike.
        moving: codes per group of each stream that moves, by its name, in order.

    Raises:
        TypeError: if codes are not integers.
        ValueError: if names or shapes do not fit, a code is out of range, or ``count`` is not
            positive.

    Example:
        >>> import torch
        >>> from pvopt import SharedValues
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> rep.decode()
        tensor([[0., 1.],
                [1., 0.]])
    """

    parametrization: Parametrization
    codes: dict[str, Tensor]
    values: dict[str, Tensor]
    shape: tuple[int, ...]
    space: Space = field(default_factory=identity)
    count: int = 1
    view: MatrixView = field(default_factory=plain_view)
    check: InitVar[bool] = True
    # Set once and for all; no cached properties, whose locks torch.compile does not enter.
    inner_shape: tuple[int, ...] = field(init=False, repr=False)
    layout: GroupLayout = field(init=False, repr=False)
    streams: dict[str, CodeStream] = field(init=False, repr=False)
    value_shapes: dict[str, tuple[int, ...]] = field(init=False, repr=False)
    moving: dict[str, int] = field(init=False, repr=False)
    _num_matrices: int = field(init=False, repr=False)
    # By a function, as torch.compile knows: it does not trace calls of a class that nothing names.
    _views: ViewMemory = field(init=False, repr=False, default_factory=lambda: ViewMemory())

    def __post_init__(self, check: bool) -> None:
        self.shape = tuple(self.shape)
        scheme = self.scheme
        self.inner_shape = self.space.inner_shape(self.view.matrix_shape(self.shape))
        self._num_matrices = self.count * self.view.count(self.shape)
        self.layout = self.parametrization.layout(self.inner_shape)
        self.streams = scheme.streams(self.shape)
        self.value_shapes = scheme.value_shapes(self.shape)
        self.moving = {name: s.shape[2] for name, s in self.streams.items() if s.moves}
        if self.count < 1:
            raise ValueError(f"count must be positive, got {self.count}")
        for name, codes in self.codes.items():
            if codes.is_floating_point() or codes.dtype == torch.bool:
                raise TypeError(f"codes must be integer tensors, got {codes.dtype} for {name!r}")
        self._compare("codes", self.codes, {n: s.shape for n, s in self.streams.items()})
        self._compare("values", self.values, self.value_shapes)
        if check and not torch.compiler.is_compiling():
            for name, stream in self.streams.items():
                if type(self.codes[name]) is Tensor:  # others, traced ones, have no numbers
                    stream.check(name, self.codes[name])

    def __getstate__(self) -> dict[str, Any]:
        # The copy of a weight does not bring along the stack that it lies in.
        own = {what: _unshared(self.__dict__[what]) for what in ("codes", "values")}
        return self.__dict__ | own | {"_views": ViewMemory()}

    def _compare(
        self, what: str, found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]
    ) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        expected = {name: (self.count * s[0], *s[1:]) for name, s in wanted.items()}
        if shapes != expected:
            raise ValueError(f"{what} must be tensors of shapes {expected}, got {shapes}")

    @property
    def num_groups(self) -> int:
        """Number of groups, of all weights."""
        return self._num_matrices * self.layout.num_groups

    @property
    def matrices(self) -> Representation:
        """The same codes and values as a stack of matrices; what is changed there is changed here.

        A parametrization is to be called with these; the representation itself where the tensors
        of weights are the matrices.
        """
        if self.view.plain:
            return self
        return Representation(
            self.parametrization,
            self.codes,
            self.values,
            self.view.matrix_shape(self.shape),
            self.space,
            self._num_matrices,
            check=False,
        )

    @property
    def together(self) -> bool:
        """Whether the parametrization can work on all matrices at once."""
        return self.space.trivial and (self.parametrization.stacks or self._num_matrices == 1)

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the values, and so of the decoded weight."""
        return next(iter(self.values.values())).dtype

    @property
    def device(self) -> torch.device:
        """Where codes and values are."""
        return next(iter(self.values.values())).device

    def group_codes(self, groups: Tensor | None = None) -> Tensor:
        """Return the codes of groups that may move, those of all streams side by side.

        Args:
            groups: ``[n]`` int64 group numbers; None stands for all in order.

        Returns:
            ``[n, codes_per_group]`` integers; a view where there is one stream and no ``groups``.
        """
        parts = [self._rows_of(name, width) for name, width in self.moving.items()]
        if groups is not None:
            parts = [part.index_select(0, groups) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat([p.int() for p in parts], dim=1)

    def write_codes_(self, groups: Tensor | None, codes: Tensor) -> None:
        """Let groups take codes, in place.

        Args:
            groups: ``[n]`` distinct group numbers, or None for all in order.
            codes: ``[n, codes_per_group]``, those of all streams side by side.
        """
        widths = list(self.moving.values())
        parts = [codes] if len(widths) == 1 else codes.split(widths, dim=1)
        for (name, width), part in zip(self.moving.items(), parts, strict=True):
            stream = self._rows_of(name, width)
            if groups is None:
                stream.copy_(part)
            else:
                stream.index_copy_(0, groups, part.to(stream.dtype))

    def _rows_of(self, name: str, width: int) -> Tensor:
        """Return a stream of codes, those of a group in a row, a view."""
        stream = self.codes[name]
        return self._viewed(f"codes.{name}", stream, (stream.numel() // width, width))

    def codes_of_each(self, name: str) -> Tensor:
        """Return a stream of codes as ``[count, *shape of one weight's]``, a view."""
        return self._of_each(f"codes.{name}", self.codes[name])

    def values_of_each(self, name: str) -> Tensor:
        """Return a value as ``[count, *shape of one weight's]``, a view."""
        return self._of_each(f"values.{name}", self.values[name])

    def _of_each(self, name: str, tensor: Tensor) -> Tensor:
        shape = (self.count, len(tensor) // self.count, *tensor.shape[1:])
        return self._viewed(name, tensor, shape)

    def _viewed(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self._views.get((name, shape), [tensor], lambda: tensor.view(shape))

    def numbers(self, groups: Tensor) -> Tensor:
        """Return the numbers of groups among those of all matrices, ``[matrices * n]``.

        Args:
            groups: ``[matrices, n]`` int64, numbers in each matrix.
        """
        if self._num_matrices == 1:
            return groups.flatten()
        size, device = self.layout.num_groups, groups.device
        ends = 0, self.num_groups, size

        def first() -> Tensor:
            return torch.arange(*ends, device=device)[:, None]

        return (groups + self._views.get(("first", device), [], first)).flatten()

    def pieces(self, most: int, unit: int = 1) -> Sequence[Representation]:
        """Return the weights of a stack in nearly equal pieces, as views.

        Args:
            most: units of a piece.
            unit: weights that stay together.
        """
        units = self.count // unit
        number = -(-units // most)
        if number == 1:
            return [self]
        ends = [units * piece // number * unit for piece in range(number + 1)]

        def cut() -> list[Representation]:
            return [self.narrow(a, b - a) for a, b in itertools.pairwise(ends)]

        return self._views.get(("pieces", number), [t for _, t in self.tensors()], cut)

    def check_codes(self, codes: Mapping[str, Tensor] | None = None) -> None:
        """Raise unless every code exists.

        Args:
            codes: to check in place of the representation's own.

        Raises:
            ValueError: if a code does not exist; the message names its stream.
        """
        codes = self.codes if codes is None else codes
        for name, stream in self.streams.items():
            stream.check(name, codes[name])
        self.parametrization.check_codes(codes, self.inner_shape)
        owned, matrix = self._owned(codes), self.view.matrix_shape(self.shape)
        for place in range(self._num_matrices if owned else 0):
            own = {name: tensor.chunk(self._num_matrices)[place] for name, tensor in owned.items()}
            self.space.check_codes(own, matrix)

    def _owned(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what belongs to the space, by the space's own names."""
        return {n.removeprefix(SPACE): t for n, t in tensors.items() if n.startswith(SPACE)}

    @property
    def owned(self) -> dict[str, Tensor]:
        """Codes and values of the space, by the space's own names."""
        return self._owned({**self.codes, **self.values})

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor by name: ``codes.NAME`` and ``values.NAME``."""
        for name, codes in self.codes.items():
            yield f"codes.{name}", codes
        for name, value in self.values.items():
            yield f"values.{name}", value

    def split(self, weight: Tensor) -> Tensor:
        """Map a dense weight to its groups: enter the space, then cut.

        Args:
            weight: ``[*shape]``, floating; of a representation of one weight.

        Returns:
            ``[num_groups, group_size]``; may share the weight's memory.
        """
        if not self.view.plain:
            pairs = zip(self.matrices.members(), self.view.matrices(weight), strict=True)
            return torch.cat([member.split(matrix) for member, matrix in pairs])
        return self.layout.split(self.space.enter(weight, self.owned))

    def merge(self, groups: Tensor) -> Tensor:
        """Map groups back to the dense weight ``[*shape]``, the inverse of :meth:`split`."""
        if not self.view.plain:
            pairs = zip(self.matrices.members(), groups.split(self.layout.num_groups), strict=True)
            return self.view.join([member.merge(own) for member, own in pairs])
        return self.space.leave(self.layout.merge(groups), self.owned, self.shape)

    def decode(self) -> Tensor:
        """Return the dense weight ``[*shape]``, differentiable in the values."""
        if not self.view.plain:
            return self.view.join([matrix.decode() for matrix in self.matrices.members()])
        return self.merge(self.parametrization.decode_groups(self))

    def pull(self, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        r"""Pull dense gradients back to the values by the chain rule through decode.

        .. math:: \nabla_v = \Big(\frac{\partial\,\mathrm{decode}(z, v)}{\partial v}\Big)'
            \nabla_w

        A shared value receives the sum of the gradients of its members.

        Args:
            gradients: ``[*shape]``, with respect to each dense weight.

        Returns:
            One gradient for each value, of its shape and dtype.
        """
        if not self.view.plain:
            return self.matrices.pull(self.view.all_matrices(gradients))
        if self.together:
            return self.parametrization.pull(self, gradients)
        parts = []  # one weight at a time: a gradient in the space is a dense tensor
        for member, gradient in zip(self.members(), gradients, strict=True):
            gradient, owned = gradient.to(self.dtype), member.owned
            found = member.parametrization.pull(member, [self.space.pull(gradient, owned)])
            if self.space.value_shapes(self.shape):
                inner = self.layout.merge(self.parametrization.decode_groups(member))
                own = self.space.pull_values(gradient, inner, owned)
                found = found | {SPACE + name: tensor for name, tensor in own.items()}
            parts.append(found)
        return {name: torch.cat([part[name] for part in parts]) for name in self.values}

    @property
    def scheme(self) -> Scheme:
        """The parametrization, space and view."""
        return Scheme(self.parametrization, self.space, self.view)

    def within(
        self,
        space: Space,
        shape: tuple[int, ...],
        codes: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        *,
        check: bool = True,
    ) -> Representation:
        """Return the representation of the weight that this one stands for in a space.

        Args:
            space: the space; this representation's own must be the identity.
            shape: of the weight outside of the space.
            codes: of the space, by its own names.
            values: of the space, by its own names.
            check: whether codes are looked at; False where they have been.
        """
        return Representation(
            self.parametrization,
            self.codes | {SPACE + name: tensor for name, tensor in codes.items()},
            self.values | {SPACE + name: tensor for name, tensor in values.items()},
            shape,
            space,
            self.count,
            check=check,
        )

    @staticmethod
    def joined(
        matrices: Sequence[Representation], view: MatrixView, shape: tuple[int, ...]
    ) -> Representation:
        """Return the representation of a weight whose matrices these ones stand for.

        Args:
            matrices: representations of one matrix each, of equal settings.
            view: of the weight.
            shape: of the weight.
        """
        first = matrices[0]
        return Representation(
            first.parametrization,
            {name: torch.cat([m.codes[name] for m in matrices]) for name in first.codes},
            {name: torch.cat([m.values[name] for m in matrices]) for name in first.values},
            shape,
            first.space,
            view=view,
            check=False,
        )

    def bits_per_weight(
        self, *, value_bits: int | None = None, shape: tuple[int, ...] | None = None
    ) -> float:
        """Return the bits it takes per weight: packed codes and values.

        Args:
            value_bits: bits of one value; None counts values at their present dtype.
            shape: of the weight with all of its rows, where these are some of them.
        """
        own = 8 * self.dtype.itemsize
        return self.scheme.bits_per_weight(
            shape or self.shape, value_bits=own if value_bits is None else value_bits
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Representation:
        """Return a copy on ``device`` with values of ``dtype`` (codes keep theirs)."""
        return self._with(
            {n: c.to(device=device, copy=True) for n, c in self.codes.items()},
            {n: v.to(device=device, dtype=dtype, copy=True) for n, v in self.values.items()},
        )

    def clone(self) -> Representation:
        """Return an independent copy."""
        return self.to()

    def with_values(self, values: dict[str, Tensor]) -> Representation:
        """Return a representation with the same codes, the very tensors, and other values."""
        found = self._with(self.codes, values)
        found._views = self._views.copy()
        return found

    def _with(self, codes: dict[str, Tensor], values: dict[str, Tensor]) -> Representation:
        return Representation(
            self.parametrization,
            codes,
            values,
            self.shape,
            self.space,
            self.count,
            self.view,
            check=False,
        )

    def copy_(self, other: Representation) -> Representation:
        """Overwrite codes and values in place with those of a representation of equal settings."""
        if (other.scheme, other.shape, other.count) != (self.scheme, self.shape, self.count):
            raise ValueError(
                f"other must be {self.scheme} of shape {list(self.shape)}, "
                f"got {other.scheme} of shape {list(other.shape)}"
            )
        theirs = dict(other.tensors())
        for name, mine in self.tensors():
            mine.copy_(theirs[name])
        return self

    def keep_rows_(self, first: int, count: int) -> None:
        """Become the representation of some rows of the weight, in place.

        Args:
            first: of them, a multiple of the rows of a group.
            count: how many, alike.

        Raises:
            ValueError: if rows depend on each other.
        """
        common = self.parametrization.common_values
        if common is None or not (self.space.trivial and self.view.plain and self.count == 1):
            raise ValueError(f"rows of {self.scheme} depend on each other")
        rows, whole = slice(first, first + count), self.shape[0]

        def part(tensor: Tensor) -> Tensor:
            start, end = (len(tensor) * row // whole for row in (rows.start, rows.stop))
            return tensor[start:end].clone()

        self.codes |= {name: part(codes) for name, codes in self.codes.items()}
        self.values |= {n: part(value) for n, value in self.values.items() if n not in common}
        self.shape = (count, *self.shape[1:])
        self._views = ViewMemory()
        self.__post_init__(check=False)

    @staticmethod
    def stack(members: Sequence[Representation]) -> Representation:
        """Move weights of one shape and scheme into common tensors, one below the other.

        The members' own tensors become views of these, so that they show every change.

        Args:
            members: representations of one weight each, of equal settings, shape, dtype, device.

        Returns:
            The representation of all of them.
        """
        first = members[0]
        if len(members) == 1:
            return first
        codes = {n: torch.cat([m.codes[n] for m in members]) for n in first.codes}
        values = {n: torch.cat([m.values[n] for m in members]) for n in first.values}
        for place, member in enumerate(members):
            for own, common in ((member.codes, codes), (member.values, values)):
                for name, tensor in common.items():
                    own[name] = tensor.chunk(len(members))[place]
        size = (first.shape, first.space, len(members), first.view)
        return Representation(first.parametrization, codes, values, *size, check=False)

    def narrow(self, start: int, count: int) -> Representation:
        """Return some neighbouring weights of a stack, as views."""
        if (start, count) == (0, self.count):
            return self

        def part(tensor: Tensor) -> Tensor:
            size = len(tensor) // self.count
            return tensor[start * size : (start + count) * size]

        return Representation(
            self.parametrization,
            {name: part(codes) for name, codes in self.codes.items()},
            {name: part(value) for name, value in self.values.items()},
            self.shape,
            self.space,
            count,
            self.view,
            check=False,
        )

    def members(self) -> Iterator[Representation]:
        """Yield the weights of a stack one by one, as views."""
        for place in range(self.count):
            yield self.narrow(place, 1)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whose memory is their own: copies of those that are part of a larger one."""
    return {
        name: t.clone() if t.untyped_storage().nbytes() > t.nbytes else t
        for name, t in tensors.items()
    }
