"""Codes and values of one process for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from pvopt.parametrizations.representation import Representation

__all__ = ["broadcast_"]


def broadcast_(
    representations: Mapping[str, Representation], source: int = 0, group: Any = None
) -> None:
    """Overwrite codes and values by those of one process, in every process of a group.

    Args:
        representations: by name, of equal settings everywhere.
        source: rank of the process whose codes and values all are to have.
        group: of processes; None for the default one.

    Raises:
        RuntimeError: without a process group.
        ValueError: in every process, if names, settings or shapes differ; nothing was changed.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("broadcast_ needs torch.distributed.init_process_group")
    own = {
        name: (rep.scheme.name, [(key, list(t.shape), str(t.dtype)) for key, t in rep.tensors()])
        for name, rep in representations.items()
    }
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, own, group=group)
    for rank, theirs in enumerate(everyone):
        wrong = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
        if wrong:
            raise ValueError(f"process {rank} has other weights or settings: {wrong[:8]}")
    for rep in representations.values():
        for _, tensor in rep.tensors():
            whole = tensor.detach().contiguous()
            dist.broadcast(whole.view(-1).view(torch.uint8), src=source, group=group)
            tensor.data.copy_(whole)
