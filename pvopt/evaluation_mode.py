"""Training and evaluation mode of a model, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluation_mode"]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation mode meanwhile, then put each of its modules back.

    Args:
        model: any module.

    Example:
        >>> from torch import nn
        >>> from pvopt.evaluation_mode import evaluation_mode
        >>> model = nn.Sequential(nn.Dropout())
        >>> with evaluation_mode(model):
        ...     model[0].training
        False
        >>> model[0].training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Module by module: a model in training may hold frozen parts in evaluation mode.
        for module, training in modes:
            module.training = training
