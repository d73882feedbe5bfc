"""How much the model's loss depends on each token of a layer: weights for its X'X."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pvopt.core.validation import check_number
from pvopt.evaluation_mode import evaluation_mode
from pvopt.llm import language_loss

__all__ = ["EndLoss"]


@dataclass(frozen=True, kw_only=True)
class EndLoss:
    r"""Weigh tokens by the gradient of the model's loss with respect to a layer's outputs.

    .. math:: H = \sum_t s_t\, x_t x_t', \qquad
        s_t \propto \Big(\frac{1}{n} \sum_{j=1}^n
        \Big(\frac{\partial L}{\partial y_{tj}}\Big)^2\Big)^p

    with outputs :math:`y_t` of the layer and the cross-entropy ``L`` of the text. An error of the
    outputs costs what it adds to the loss, in place of its own square. With p = 1 this is the
    diagonal of the Fisher information, averaged over outputs, and needs many tokens: gradients
    have heavy tails, so that few tokens decide. The square root, p = 1/2, does with fewer.

    Costs one forward and one backward pass over the text, and the memory of the activations of one
    batch in the whole model. Experts in one tensor keep plain X'X.

    Args:
        power: ``p``, 0 to 1; 0 weighs all tokens alike.

    Raises:
        TypeError: if the power is no number.
        ValueError: if it is out of range.

    Example:
        >>> import torch
        >>> from pvopt.calibration import EndLoss
        >>> from pvopt.llm import load_model
        >>> model = load_model("tiny-llama").model
        >>> layers = {"q": model.model.layers[0].self_attn.q_proj}
        >>> weights = EndLoss().token_weights(model, torch.arange(20).view(1, 2, 10), layers)
        >>> weights["q"].shape, round(float(weights["q"].mean()), 4)
        (torch.Size([1, 2, 10]), 1.0)

    References:
        GuidedQuant (arXiv 2505.07004), section 3, with one group of outputs; the root is ours.
    """

    power: float = 0.5

    def __post_init__(self) -> None:
        check_number("power", self.power, 0.0)
        if self.power > 1:
            raise ValueError(f"power must be at most 1, got {self.power}")

    def token_weights(
        self,
        model: nn.Module,
        batches: Tensor,
        layers: Mapping[str, nn.Module],
        masks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return ``s`` for layers that are given all tokens in order, with mean 1 over tokens.

        Args:
            model: a causal language model; its parameters get no gradients.
            batches: ``[batches, batch, length]`` token ids.
            layers: whose outputs count, by name.
            masks: the shape of the tokens, 0 for padding, which gets weight 0; None for none.

        Returns:
            Weights of the shape of the tokens by name, float32. A layer is missing if it is given
            tokens in another order or number, or no gradient reaches it.
        """
        squares = {name: torch.zeros(batches.shape) for name in layers}
        device = next(model.parameters()).device
        with torch.enable_grad(), evaluation_mode(model), _outputs_alone(model):
            for number, ids in enumerate(batches):
                mask = None if masks is None else masks[number].to(device)
                with _watched(layers, {name: own[number] for name, own in squares.items()}):
                    mean = language_loss(model, ids.to(device), mask=mask)
                    targets = ids[:, 1:].numel() if mask is None else int((mask[:, 1:] != 0).sum())
                    (mean * targets).backward()
        found = {name: own.pow_(self.power) for name, own in squares.items()}
        if masks is not None:
            found = {name: own * (masks != 0).cpu() for name, own in found.items()}
        count = batches.numel() if masks is None else int((masks != 0).sum())
        return {name: own * (count / own.sum()) for name, own in found.items() if own.any()}


@contextmanager
def _outputs_alone(model: Any) -> Iterator[None]:
    """Let gradients flow through the model, from its embeddings on, to no parameter."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def begin(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    handle = model.get_input_embeddings().register_forward_hook(begin)
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        handle.remove()
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _watched(layers: Mapping[str, nn.Module], sums: Mapping[str, Tensor]) -> Iterator[None]:
    """Add the mean squared gradients ``[batch, length]`` of the layers' outputs to sums."""

    def hook(total: Tensor) -> Callable[..., None]:
        def add(gradient: Tensor) -> None:
            squares = gradient.detach().float().square().mean(-1)
            if squares.numel() == total.numel():
                total.add_(squares.view(total.shape).cpu())

        def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(add)

        return watch

    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(hook(sums[name]))
            stack.callback(handle.remove)
        yield
