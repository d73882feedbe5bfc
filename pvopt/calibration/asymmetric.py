"""Calibrate layers towards the outputs of the full-precision model, on what quantized ones give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.validation import check_number
from pvopt.core.views import MatrixView

__all__ = ["AsymmetricCalibration"]


@dataclass(frozen=True, kw_only=True)
class AsymmetricCalibration:
    r"""Let layers make good for a share of the error of the inputs they are given.

    .. math:: \min_{W_q} \big\|X W_q' - X_a W'\big\|_F^2, \qquad X_a = X + a\,(X_d - X)

    for inputs ``X`` of a layer behind quantized blocks and ``X_d`` of the same layer in the
    full-precision model. Its start gets the dense weight that does so best in place of ``W``,

    .. math:: W + a\, W (X_d - X)'X \,(X'X + \lambda I)^{-1}, \qquad
        \lambda = \mathrm{damping} \cdot \overline{\operatorname{diag}(X'X)} .

    A share of 0 is plain calibration, of 1 the method of the reference. At 2 bits inputs are so
    far from the original's that regression shrinks every layer; half of the way does better there.

    Block-wise fine-tuning aims as far: at outputs of the block that are ``a`` of the way from those
    on its own inputs to those of the full-precision model.

    Costs a second forward pass of every block and the memory of a second set of hidden states.
    Experts, and layers that are not given all tokens in order, keep their targets.

    Args:
        share: ``a``, 0 to 1.
        damping: how strongly targets are kept near ``W``, positive.

    Raises:
        TypeError: if an argument is no number.
        ValueError: if it is out of range.

    Example:
        >>> import torch
        >>> from pvopt import MatrixView
        >>> from pvopt.calibration import AsymmetricCalibration
        >>> inputs, dense_inputs = torch.tensor([[1.0]]), torch.tensor([[3.0]])
        >>> hessian, shift = inputs.T @ inputs, (dense_inputs - inputs).T @ inputs
        >>> half = AsymmetricCalibration(share=0.5, damping=1e-6)
        >>> target = half.target(torch.tensor([[1.0]]), MatrixView(), hessian, shift)
        >>> round(float(target), 4)
        2.0

    References:
        GPTAQ (arXiv 2504.02692), section 3, for a share of 1; the share is ours.
    """

    share: float = 0.5
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_number("share", self.share, 0.0)
        check_number("damping", self.damping, 0.0, above=True)
        if self.share > 1:
            raise ValueError(f"share must be at most 1, got {self.share}")

    def target(self, weight: Tensor, view: MatrixView, hessian: Tensor, shift: Tensor) -> Tensor:
        """Return the dense weight to quantize in place of another.

        Args:
            weight: ``[*shape]``, one matrix in the view.
            view: how it holds it.
            hessian: ``X'X``, ``[in, in]``.
            shift: ``(X_d - X)'X``, ``[in, in]``.
        """
        (matrix,) = view.matrices(weight)
        damped = hessian.double().clone()
        damped.diagonal().add_(self.damping * damped.diagonal().mean())
        change = torch.linalg.solve(damped, (matrix.flatten(1).double() @ shift.double()).mT).mT
        moved = matrix + (self.share * change).view(matrix.shape).to(matrix)
        return view.join([moved])
