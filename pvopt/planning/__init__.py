"""What a tuning run would take, before any weight is read: sizes, memory, time."""

from .memory import TuningMemory, tuning_memory, tuning_passes
from .passes import PassCost, pass_cost
from .probe import Machine, measure_machine, step_spare
from .sizes import StoredSize, formats_of_size

__all__ = [
    "Machine",
    "PassCost",
    "StoredSize",
    "TuningMemory",
    "formats_of_size",
    "measure_machine",
    "pass_cost",
    "step_spare",
    "tuning_memory",
    "tuning_passes",
]
