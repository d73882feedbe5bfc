"""Parametrizations by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvopt.core.registry import Registry

if TYPE_CHECKING:
    from .contract import Parametrization

__all__ = ["PARAMETRIZATIONS"]

#: What a checkpoint may ask for, and what the command line reads.
PARAMETRIZATIONS: Registry[Parametrization] = Registry("parametrization")
