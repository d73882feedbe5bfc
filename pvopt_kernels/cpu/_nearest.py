"""The nearest entries of one codebook on CPUs, exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ._arrays import padded_columns, single

__all__ = ["nearest_entries"]

# From here on boxes pay: 16384 Gaussian points of 8 on one core take 18 ms entry by entry and 21 ms
# by boxes for 4096 entries, 61 and 30 ms for 8192.
_MANY_ENTRIES = 8192
# The boxes of 65536 entries of 8 take 4.8 ms to make and 1 us a point to search; entry by entry
# a point takes 40 us.
_MANY_POINTS = 128


def nearest_entries(
    points: Tensor, entries: Tensor, metric: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Return numbers (int64) and squared errors (float32) of the nearest entries.

    Differences are squared and summed as they are, without expanding the square, so that equal
    entries have equal errors; of those the lower number comes first.

    Args:
        points: ``[n, g]`` with ``n`` and ``g`` at least 1.
        entries: ``[K, g]``, or ``[W, K, g]`` for so many runs of ``n / W`` points.
        metric: ``[n, g]`` weights of the squared differences, or None for 1.
        k: how many, at most ``K``.

    Returns:
        ``[n, k]`` each, best first.
    """
    from ._compiled.assign import LANES, boxed_kernel, plain_kernel
    from ._compiled.boxes import LEAF

    n, group_size = points.shape
    stack = entries if entries.dim() == 3 else entries[None]
    each, count = n // len(stack), stack.shape[1]
    targets, books = single(points), single(stack).reshape(stack.shape)
    weights = targets if metric is None else single(metric)
    numbers = torch.empty(n, k, dtype=torch.int64)
    errors = torch.empty(n, k, dtype=torch.float32)
    codes, distances = numbers.view(-1).numpy(), errors.view(-1).numpy()
    # With 256 entries 128 points take 11 us on one thread and 14 on two, 256 take 20 and 18.
    least = max(16, 32768 // count)
    if count < _MANY_ENTRIES or each < _MANY_POINTS:
        columns = padded_columns(books, LANES)
        kernel = plain_kernel(group_size, metric is not None)
        arguments = each, columns.reshape(-1), columns.shape[-1], k
        kernel(targets, weights, *arguments, codes, distances, size=n, least=least)
        return numbers, errors
    kernel = boxed_kernel(group_size, metric is not None)
    for w, book in enumerate(books):
        boxes = _boxes(book)
        arguments = *boxes, len(boxes[1]) // (LANES * LEAF), k
        part = slice(w * each * group_size, (w + 1) * each * group_size)
        out = slice(w * each * k, (w + 1) * each * k)
        inputs = targets[part], weights[part]
        kernel(*inputs, *arguments, codes[out], distances[out], size=each, least=least)
    return numbers, errors


def _boxes(book: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cut entries into boxes of ``LEAF`` by halving along the axis of largest variance.

    Returns:
        What :func:`boxed_kernel` wants to know about them, but for the number of runs.
    """
    from ._compiled.assign import LANES
    from ._compiled.boxes import LEAF, boxes_kernel

    count, group_size = book.shape
    boxes = LANES
    while boxes * LEAF < count:
        boxes *= 2
    total, runs = boxes * LEAF, boxes // LANES
    # Whole boxes are filled up by repeated entries, which are then moved to infinity.
    points = book if total == count else book[np.arange(total) % count]
    points = points.reshape(-1)
    corners = [np.empty(boxes * group_size, np.float32) for _ in range(2)]
    run_corners = [np.empty(group_size * -(-runs // LANES) * LANES, np.float32) for _ in range(2)]
    columns = np.empty(total * group_size, np.float32)
    keys, numbers = np.empty(total, np.int64), np.empty(total, np.int64)
    build = boxes_kernel(group_size)
    build(points, points.view(np.int32), count, keys, columns, numbers, *corners, *run_corners)
    return (columns, numbers, *corners, *run_corners)
