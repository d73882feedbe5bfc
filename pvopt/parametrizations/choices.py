"""One of several candidates in each of several places: the choices of least sum."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["best_sums", "take_choices"]


def best_sums(errors: Tensor, k: int) -> Tensor:
    r"""Choose one of several candidates in every place, so that the sum is least.

    .. math:: c_1, \dots, c_k = \mathrm{arg\,bottom}_k \sum_p e_{p c(p)}

    Exact for any ``k``: the best choices for the first places extend the best ones for one fewer.

    Args:
        errors: ``[n, places, j]``, ascending in the last dimension; ``inf`` where there is none.
        k: how many choices.

    Returns:
        ``[n, l, places]`` the numbers of the candidates, best first; ``l < k`` only if no more
        choices exist.

    Example:
        >>> import torch
        >>> from pvopt.parametrizations.choices import best_sums
        >>> best_sums(torch.tensor([[[0.0, 3.0], [0.0, 1.0]]]), k=3).tolist()
        [[[0, 0], [0, 1], [1, 0]]]
    """
    n, places, count = errors.shape
    if k == 1:
        return torch.zeros(n, 1, places, dtype=torch.int64, device=errors.device)
    total, back = errors[:, 0], []
    for place in range(1, places):
        sums = (total[:, :, None] + errors[:, place, None]).flatten(1)
        total, order = sums.sort(dim=1, stable=True)
        total, order = total[:, :k], order[:, :k]
        back.append(order)
    kept = min(k, int(total.isfinite().sum(1).min())) if n else 1
    number = torch.arange(kept, device=errors.device).expand(n, -1)
    chosen = []
    for order in reversed(back):
        pair = order.gather(1, number)
        chosen.append(pair % count)
        number = pair.div(count, rounding_mode="floor")
    return torch.stack([number, *reversed(chosen)], dim=2)


def take_choices(items: Tensor, chosen: Tensor) -> Tensor:
    """Return what was chosen in every place.

    Args:
        items: ``[n * places, j, m]``, the candidates of each place.
        chosen: ``[n, l, places]`` their numbers, as :func:`best_sums` returns them.

    Returns:
        ``[n, l, places, m]``

    Example:
        >>> import torch
        >>> from pvopt.parametrizations.choices import take_choices
        >>> items = torch.tensor([[[5], [6]], [[7], [8]]])
        >>> take_choices(items, torch.tensor([[[0, 1]]])).flatten().tolist()
        [5, 8]
    """
    n, _, places = chosen.shape
    table = items.view(n, places, *items.shape[1:])
    index = chosen.transpose(1, 2)[..., None].expand(-1, -1, -1, items.shape[2])
    return table.gather(2, index).transpose(1, 2)
