"""All processes take a step, or none does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .exchange import Channel, Exchange, ProcessesError, Sum
from .finite_check import NonFiniteGradientError

__all__ = ["any_process", "consent"]


def any_process(channels: Sequence[Channel], flags: Sequence[bool]) -> Exchange[list[bool]]:
    """Tell which flags hold in any process.

    Args:
        channels: the processes; none for this one alone.
        flags: as many in every process.
    """
    found = list(flags)
    for channel in channels:
        own = torch.tensor(found, dtype=torch.float64, device=channel.device)
        total: Tensor = yield Sum(channel, own)
        found = (total > 0).tolist()
    return found


def consent(channels: Sequence[Channel], error: Exception | None, changed: bool) -> Exchange[bool]:
    """Let all processes go on, or none.

    Args:
        channels: the processes; none for this one alone.
        error: why this one does not.
        changed: whether a weight of this one may have been changed.

    Returns:
        Whether a weight of any process may have been changed.

    Raises:
        NonFiniteGradientError: if the gradients of another process are not finite.
        ProcessesError: for another error of another process.
    """
    finite = not isinstance(error, NonFiniteGradientError)
    flags = yield from any_process(channels, [not finite, error is not None and finite, changed])
    if error is not None:
        raise error
    if flags[0]:
        raise NonFiniteGradientError(
            "a gradient of another process holds NaN or infinity; weights, codes and state are "
            "unchanged in all of them"
        )
    if flags[1]:
        raise ProcessesError("another process cannot go on; nothing was changed")
    return flags[2]
