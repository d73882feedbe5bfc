"""Which extra brings a package that is not installed."""

from __future__ import annotations

__all__ = ["missing_package"]

_EXTRAS = {
    "llm": (
        "transformers",
        "tokenizers",
        "huggingface_hub",
        "accelerate",
        "gguf",
        "safetensors",
        "filelock",
        "tqdm",
    ),
    "cpu": ("numba", "llvmlite"),
    "kernels": ("triton",),
    "report": ("altair", "vl_convert"),
    "tensorboard": ("tensorboard",),
}
_OTHERS = ("datasets", "lm_eval")


def missing_package(error: BaseException) -> str | None:
    """Return in one sentence what to install, or None if no package of an extra is missing.

    Args:
        error: a failed import.

    Example:
        >>> from pvopt.commands.packages import missing_package
        >>> missing_package(ModuleNotFoundError("no tqdm", name="tqdm"))
        "needs the package tqdm, which is not installed: pip install 'pvopt[llm]'"
    """
    if not isinstance(error, ImportError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return _sentence(package, f"'pvopt[{extra}]'")
    return _sentence(package, package) if package in _OTHERS else None


def _sentence(package: str, install: str) -> str:
    return f"needs the package {package}, which is not installed: pip install {install}"
