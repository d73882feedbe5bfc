"""Gather X'X of the inputs of linear layers while a module runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Hessians", "gather_hessians"]


class Hessians(Mapping[str, Tensor]):
    r"""Sums of outer products of the inputs of linear layers, by the layers' names.

    .. math:: H = X'X, \qquad X \in \mathbb{R}^{\text{tokens} \times \text{in}}

    Products are computed in float32 (float64 for float64 inputs) call by call and added up in
    float64. Layers that are given the very same tensor (queries, keys and values; gate and up)
    share one Hessian: which ones do is seen in the first batch.

    Args:
        layers: linear layers, or ``Conv1D`` of transformers, by name.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt.calibration.hessians import gather_hessians
        >>> layer = nn.Linear(2, 3)
        >>> with gather_hessians({"layer": layer}) as hessians:
        ...     _ = layer(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        ...     hessians.end_batch()
        >>> hessians["layer"]
        tensor([[1., 2.],
                [2., 5.]], dtype=torch.float64)
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._mask: Tensor | None = None
        self._weights: Mapping[str, Tensor] = {}
        self._leaders = {name: name for name in layers}
        self._sums = {name: _zeros(layer) for name, layer in layers.items()}
        # Inputs of the first batch, kept until it ends: an id belongs to one tensor for so long.
        self._first: dict[str, list[Tensor]] | None = {name: [] for name in layers}
        # Of the dense pass of this batch, in the order of a layer's calls.
        self._dense: dict[str, list[Tensor]] = {}
        self._in_dense_pass = False
        self._tokens = -1
        self._shifts: dict[str, Tensor] = {}
        self._unpaired: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[self._leaders[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaders)

    def __len__(self) -> int:
        return len(self._leaders)

    def begin_batch(
        self, mask: Tensor | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Say how the tokens of the next batch count.

        Both apply to layers that are given all tokens in order, ``[batch, length, in]`` or
        ``[batch * length, in]``.

        Args:
            mask: ``[batch, length]``, 0 for padding, of which no rows are counted; None for none.
            weights: ``[batch, length]`` of some layers by name, for the same layers in all batches.
                These share their Hessians with no other.
        """
        self._mask = None if mask is None else mask.flatten().bool()
        self._weights = {name: own.flatten() for name, own in (weights or {}).items()}

    @contextmanager
    def dense_pass(self, tokens: int) -> Iterator[None]:
        """Take the inputs inside for those of the full-precision model, before the batch itself.

        Layers that are given all tokens in order then have a :meth:`shift`.

        Args:
            tokens: of the batch, ``batch * length``.
        """
        self._in_dense_pass, self._tokens = True, tokens
        try:
            yield
        finally:
            self._in_dense_pass = False

    def shift(self, name: str) -> Tensor | None:
        """Return ``(X_dense - X)'X``, ``[in, in]`` in float64; None where tokens have no pairs."""
        leader = self._leaders[name]
        return None if leader in self._unpaired else self._shifts.get(leader)

    def add(self, name: str, inputs: Tensor) -> None:
        """Take the inputs ``[..., in]`` of one call of a layer."""
        if self._in_dense_pass:
            if self._first is not None or self._leaders[name] == name:
                self._dense.setdefault(name, []).append(inputs)
        elif self._first is not None:
            self._first[name].append(inputs)
        elif self._leaders[name] == name:
            self._accumulate(name, inputs)

    def _accumulate(self, name: str, inputs: Tensor) -> None:
        rows = self._counted(name, inputs)
        self._sums[name] += rows.T @ rows
        if self._tokens < 0:
            return
        dense = self._dense.get(name)
        count = inputs[..., 0].numel()
        if not dense or count != self._tokens or dense[0].shape != inputs.shape:
            self._unpaired.add(name)
            return
        shift = (self._counted(name, dense.pop(0)) - rows).T @ rows
        self._shifts[name] = self._shifts.get(name, 0) + shift.double()

    def _counted(self, name: str, inputs: Tensor) -> Tensor:
        """Return the rows that count, times the roots of their weights."""
        rows = inputs.detach().flatten(0, -2)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        weights = self._weights.get(name)
        if weights is not None and len(rows) == len(weights):
            rows = rows * weights.sqrt().to(rows)[:, None]
        if self._mask is not None and len(rows) == len(self._mask):
            rows = rows[self._mask.to(rows.device)]
        return rows

    def end_batch(self) -> None:
        """Say that the module has run once; after the first time the sharing is known."""
        if self._first is not None:
            self._share(self._first)
        self._dense.clear()

    def _share(self, first: Mapping[str, list[Tensor]]) -> None:
        leaders: dict[tuple[Any, ...], str] = {}
        for name, calls in first.items():
            key: tuple[Any, ...] = tuple(id(tensor) for tensor in calls)
            if name in self._weights:
                key = (*key, name)
            # A layer without a call (an expert that was not chosen) shares with no other.
            leader = leaders.setdefault(key, name) if key else name
            self._leaders[name] = leader
            if leader != name:
                del self._sums[name]
        self._first = None
        for name in self._sums:
            for tensor in first[name]:
                self._accumulate(name, tensor)


def _zeros(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    # Conv1D of transformers keeps [in, out].
    size = weight.shape[1] if isinstance(layer, nn.Linear) else weight.shape[0]
    return torch.zeros(size, size, dtype=torch.float64, device=weight.device)


@contextmanager
def gather_hessians(layers: Mapping[str, nn.Module]) -> Iterator[Hessians]:
    """Watch the inputs of linear layers.

    Args:
        layers: by name.

    Yields:
        The Hessians, which grow with every call of a layer; call
        :meth:`Hessians.end_batch` after each batch.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt.calibration.hessians import gather_hessians
        >>> first, second = nn.Linear(4, 4), nn.Linear(4, 2)
        >>> with gather_hessians({"first": first, "second": second}) as hessians:
        ...     x = torch.ones(3, 4)
        ...     _ = first(x), second(x)
        ...     hessians.end_batch()
        >>> hessians["first"] is hessians["second"]
        True
    """
    hessians = Hessians(layers)

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hessians.add(name, args[0] if args else next(iter(kwargs.values())))

        return take

    handles = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield hessians
    finally:
        for handle in handles:
            handle.remove()
