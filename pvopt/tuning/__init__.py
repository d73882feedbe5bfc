"""Tuning of language models from the command line: settings, the loop, records, logs."""

from .optimizers import build_optimizer
from .records import RecordsFile, StepRecord
from .run_folders import (
    check_checkpoint_folder,
    check_run_folder,
    delete_run,
    find_checkpoint,
    holds_run,
)
from .runs import Inputs, load_student, resume_run, start_run
from .settings import TuneSettings, autocast_dtype, computing_dtype
from .signals import StopRequest
from .tensorboard import TensorBoardLog
from .trainer import Trainer
from .weight_errors import relative_error

__all__ = [
    "Inputs",
    "RecordsFile",
    "StepRecord",
    "StopRequest",
    "TensorBoardLog",
    "Trainer",
    "TuneSettings",
    "autocast_dtype",
    "build_optimizer",
    "check_checkpoint_folder",
    "check_run_folder",
    "computing_dtype",
    "delete_run",
    "find_checkpoint",
    "holds_run",
    "load_student",
    "relative_error",
    "resume_run",
    "start_run",
]
