"""A linear layer that keeps codes and values in place of its weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from pvopt.core.views import MatrixView, plain_view
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme, as_scheme

from .holding import foreign_codes, held, hold, narrowed, offered

__all__ = ["QuantizedLinear"]

Tensors = dict[str, Tensor]


class QuantizedLinear(nn.Module):
    r"""A linear layer whose weight exists as codes and values alone.

    .. math:: y = x\, \mathrm{leave}(\mathrm{decode}(z, v))^\top + b

    Codes are buffers, values are parameters: any optimizer can tune them (and nothing moves the
    codes) without a dense weight, gradient or moment. Codebooks and scalar grids are multiplied
    by :func:`pvopt_kernels.matmul` and :func:`pvopt_kernels.uniform_matmul`; other
    parametrizations are decoded in every call, and once more in the backward pass. Activations
    enter the space of the groups in place of the weight, where the space allows it.

    The result has the dtype of the input, whatever that of the values; under autocast the input is
    cast first, as for ``nn.Linear``. Codes are kept as the parametrization's
    :class:`pvopt.Storage` has them: one or two bytes each for codebooks, their real width for all
    others. A new layer holds zeros: load a state dict, or use :meth:`from_representation`.

    Args:
        scheme: settings of the weight; a parametrization by itself works in the weight's own space.
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether the layer has a bias.
        device: where codes and values go; ``"meta"`` allocates nothing.
        dtype: of the values and the bias; None for torch's default.

    Raises:
        ValueError: if the groups do not fit the weight.

    Example:
        >>> import torch
        >>> from pvopt import AdditiveCodebooks, Permutation, Scheme
        >>> from pvopt.layers import QuantizedLinear
        >>> scheme = Scheme(AdditiveCodebooks(num_codebooks=1, bits=4, in_group=4), Permutation())
        >>> rep = scheme.fit(torch.eye(8))
        >>> layer = QuantizedLinear.from_representation(rep)
        >>> torch.allclose(layer(torch.eye(8)), rep.decode().T)
        True
        >>> list(layer.state_dict())
        ['codes.entries', 'values.codebooks', 'values.scales', 'space.order']
    """

    bias: nn.Parameter | None
    #: How the layer whose place it has stores its weight, and that layer, emptied; if there is one.
    stored_as: MatrixView
    dense_layer: list[nn.Module]

    def __init__(
        self,
        scheme: Scheme | Parametrization,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scheme = as_scheme(scheme)
        self.stored_as, self.dense_layer = plain_view(), []
        self.in_features = in_features
        self.out_features = out_features
        shape = (out_features, in_features)
        parametrization, space = self.scheme.parametrization, self.scheme.space
        self.scheme.check(shape)
        rows, columns = space.inner_shape(shape)
        self.storage = parametrization.storage((rows, columns))
        zeros = {n: s.zeros(device) for n, s in space.streams(shape).items()}

        def empty(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
            return {n: torch.zeros(s, device=device, dtype=dtype) for n, s in shapes.items()}

        self._hold(
            self.storage.empty(device),
            empty(parametrization.value_shapes((rows, columns))),
            zeros,
            empty(space.value_shapes(shape)),
        )
        own = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", own)

    def _hold(
        self, codes: Tensors, values: Tensors, space_codes: Tensors, space_values: Tensors
    ) -> None:
        """Register what the layer consists of, each kind in a module that gives it its name."""
        self.codes, self.values, self.space = nn.Module(), nn.Module(), nn.Module()
        hold(self.codes, codes, {})
        hold(self.values, {}, values)
        hold(self.space, space_codes, space_values)
        self._names = {
            "codes": tuple(codes),
            "values": tuple(values),
            "space": (*space_codes, *space_values),
        }

    def _held(self, kind: str) -> Tensors:
        """Return codes, values, or what the space owns, by name."""
        return held(getattr(self, kind), self._names[kind])

    @property
    def weight(self) -> Tensor:
        """The decoded weight ``[out_features, in_features]``, for models that read it."""
        return self._represent(
            self._held("codes"), self._held("values"), self._held("space")
        ).decode()

    @classmethod
    def from_representation(
        cls,
        representation: Representation,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> QuantizedLinear:
        """Make a layer out of copies of codes and values.

        Args:
            representation: of a weight ``[out_features, in_features]``.
            bias: ``[out_features]``; kept as it is if it is a parameter, None for no bias.
            dtype: of the values; None keeps theirs.

        Raises:
            ValueError: if the representation is not of one matrix, the bias does not fit, or a
                value is beyond the range of the dtype.

        Example:
            >>> import torch
            >>> from pvopt import UniformGrid
            >>> from pvopt.layers import QuantizedLinear
            >>> rep = UniformGrid(bits=4, group_size=8).fit(torch.randn(3, 16))
            >>> layer = QuantizedLinear.from_representation(rep, torch.zeros(3))
            >>> layer(torch.randn(5, 16)).shape, layer.codes.levels.shape
            (torch.Size([5, 3]), torch.Size([3, 8]))
        """
        rep = representation
        if len(rep.shape) != 2 or rep.count != 1 or not rep.view.plain:
            raise ValueError(
                f"representation must be of one matrix [out, in], got {rep.count} of shape "
                f"{list(rep.shape)} in {rep.scheme}"
            )
        rows, columns = rep.shape
        if bias is not None and tuple(bias.shape) != (rows,):
            raise ValueError(f"bias must have shape [{rows}], got {list(bias.shape)}")
        layer = cls(rep.scheme, columns, rows, bias=False, device="meta")
        values, owned = layer._names["values"], rep.owned
        space_values = rep.space.value_shapes(rep.shape)
        layer._hold(
            layer.storage.store(rep.codes),
            narrowed({name: rep.values[name] for name in values}, dtype),
            {name: owned[name].clone() for name in rep.space.streams(rep.shape)},
            narrowed({name: owned[name] for name in space_values}, dtype),
        )
        if bias is not None:
            layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.clone())
        return layer

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._check_codes(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_codes(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Refuse codes that do not exist, before anything of the layer is overwritten.

        Raises:
            TypeError: if codes are of another dtype.
            ValueError: if a code is out of range.
        """
        inside, space = self.storage.shape, self.scheme.space
        streams = space.streams(self._shape)
        packed = offered(held(self.codes, self._names["codes"]), state_dict, f"{prefix}codes.")
        owned = offered(held(self.space, tuple(streams)), state_dict, f"{prefix}space.")
        if packed is None or owned is None:
            return
        with foreign_codes(prefix):
            codes = self.storage.read(packed)
            for name, stream in self.scheme.parametrization.streams(inside).items():
                stream.check(name, codes[name])
            self.scheme.parametrization.check_codes(codes, inside)
            for name, stream in streams.items():
                stream.check(name, owned[name])
            if streams:
                space.check_codes(owned, self._shape)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def representation(self) -> Representation:
        """Return copies of codes and values.

        Example:
            >>> import torch
            >>> from pvopt import SharedValues
            >>> from pvopt.layers import QuantizedLinear
            >>> rep = SharedValues(num_values=3).fit(torch.tensor([[0.0, 1.0, 4.0]]))
            >>> layer = QuantizedLinear.from_representation(rep)
            >>> torch.equal(layer.representation().decode(), rep.decode())
            True
        """
        owned = {name: tensor.detach().clone() for name, tensor in self._held("space").items()}
        values = {name: value.detach().clone() for name, value in self._held("values").items()}
        return self._represent(self._held("codes"), values, owned)

    def _represent(self, stored: Tensors, values: Tensors, owned: Tensors) -> Representation:
        parametrization, space = self.scheme.parametrization, self.scheme.space
        codes = self.storage.read(stored)
        inner = Representation(parametrization, codes, values, self.storage.shape, check=False)
        streams = space.streams(self._shape)
        return inner.within(
            space,
            self._shape,
            {name: owned[name] for name in streams},
            {name: tensor for name, tensor in owned.items() if name not in streams},
            check=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: ``[..., in_features]``, floating.

        Returns:
            ``[..., out_features]`` in the dtype of ``x``, or that of autocast.
        """
        kind = x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        space, owned = self.scheme.space, self._held("space")
        stored, values = self._held("codes"), self._held("values")
        if space.on_activations:
            x = space.enter_inputs(x, owned)
            run = _recomputed if self.storage.decodes else _at_once
            y = run(self.storage.multiply, x, stored, values)
            y = space.leave_outputs(y, owned, self._shape)
        else:
            y = _recomputed(self._multiply_decoded, x, stored, values, owned)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _multiply_decoded(
        self, x: Tensor, stored: Tensors, values: Tensors, owned: Tensors
    ) -> Tensor:
        return linear(x, self._represent(stored, values, owned).decode().to(x.dtype))

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.scheme}"
        )


def _at_once(run: Callable[..., Tensor], x: Tensor, *tensors: Tensors) -> Tensor:
    return run(x, *tensors)


def _recomputed(run: Callable[..., Tensor], x: Tensor, *tensors: Tensors) -> Tensor:
    """Multiply, and decode again in the backward pass: no dense weight is kept for it."""
    every = [x, *(tensor for some in tensors for tensor in some.values())]
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in every):
        return run(x, *tensors)
    # Nothing in it is random; to save and restore the generators would break the graph.
    found = checkpoint(run, x, *tensors, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(found, Tensor)
    return found
