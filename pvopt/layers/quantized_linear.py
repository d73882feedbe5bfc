"""A linear layer that keeps codes and values in place of its weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvopt.parametrizations import Parametrization, Representation

from .code_storage import storage_of

__all__ = ["QuantizedLinear"]


class QuantizedLinear(nn.Module):
    r"""A linear layer whose weight exists as codes and values alone.

    .. math:: y = x\, \mathrm{decode}(z, v)^\top + b

    Codes are a buffer, values are parameters: any optimizer can tune them (and nothing moves the
    codes) without a dense weight, gradient or moment. Codebooks and scalar grids are multiplied
    by :func:`pvopt_kernels.matmul` and :func:`pvopt_kernels.uniform_matmul`, with the activations
    rotated in place of an :class:`pvopt.Incoherent` weight; other parametrizations are decoded in
    every call, and once more in the backward pass.

    The result has the dtype of the input, whatever that of the values; under autocast the input is
    cast first, as for ``nn.Linear``. Codes of codebooks take one or two bytes each, all others
    their real width. A new layer holds zeros: load a state dict, or use
    :meth:`from_representation`.

    Args:
        parametrization: settings of the weight.
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether the layer has a bias.
        device: where codes and values go; ``"meta"`` allocates nothing.
        dtype: of the values and the bias; None for torch's default.

    Raises:
        ValueError: if the groups do not fit the weight.

    Example:
        >>> from pvopt import AdditiveCodebooks
        >>> rep = AdditiveCodebooks(num_codebooks=1, bits=4, in_group=4).fit(torch.eye(8))
        >>> layer = QuantizedLinear.from_representation(rep)
        >>> torch.allclose(layer(torch.eye(8)), rep.decode().T)
        True
        >>> sorted(layer.state_dict())
        ['codes', 'values.codebooks', 'values.scales']
    """

    codes: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        parametrization: Parametrization,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.parametrization = parametrization
        self.in_features = in_features
        self.out_features = out_features
        self.storage = storage_of(parametrization, (out_features, in_features))
        options = {"device": device, "dtype": dtype}
        self.register_buffer("codes", self.storage.empty(device))
        self.values = nn.Module()  # a ParameterDict refuses the name "values"
        for name, shape in parametrization.value_shapes(self.storage.shape).items():
            self.values.register_parameter(name, nn.Parameter(torch.zeros(shape, **options)))
        empty = nn.Parameter(torch.zeros(out_features, **options)) if bias else None
        self.register_parameter("bias", empty)

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
            ValueError: if the weight is no matrix, or the bias does not fit.

        Example:
            >>> from pvopt import UniformGrid
            >>> rep = UniformGrid(bits=4, group_size=8).fit(torch.randn(3, 16))
            >>> layer = QuantizedLinear.from_representation(rep, torch.zeros(3))
            >>> layer(torch.randn(5, 16)).shape, layer.codes.shape
            (torch.Size([5, 3]), torch.Size([3, 8]))
        """
        if len(representation.shape) != 2:
            raise ValueError(
                f"representation must be of a matrix, got shape {list(representation.shape)}"
            )
        rows, columns = representation.shape
        if bias is not None and tuple(bias.shape) != (rows,):
            raise ValueError(f"bias must have shape [{rows}], got {list(bias.shape)}")
        layer = cls(representation.parametrization, columns, rows, bias=False, device="meta")
        layer.codes = layer.storage.store(representation.codes)
        for name, value in representation.values.items():
            value = value.detach().to(dtype or value.dtype, copy=True)
            layer.values.register_parameter(name, nn.Parameter(value))
        if bias is not None:
            layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.clone())
        return layer

    def representation(self) -> Representation:
        """Return copies of codes and values.

        Example:
            >>> from pvopt import SharedValues
            >>> rep = SharedValues(num_values=3).fit(torch.tensor([[0.0, 1.0, 4.0]]))
            >>> layer = QuantizedLinear.from_representation(rep)
            >>> torch.equal(layer.representation().codes, rep.codes)
            True
        """
        values = {name: value.detach().clone() for name, value in self.values.named_parameters()}
        codes = self.storage.read(self.codes)
        return Representation(self.parametrization, codes, values, self.storage.shape)

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
        y = self.storage.multiply(x, self.codes, dict(self.values.named_parameters()))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Describe the layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.parametrization}"
        )
