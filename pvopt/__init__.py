"""Optimizers for models whose weights are discrete: codes, codebooks, grids.

The flow: :func:`quantize_` makes representations (codes and values) of a model's weights,
:class:`PVOptimizer` tunes them in any training loop, :mod:`pvopt.formats` saves them.
"""

import importlib

import lazy_loader

from pvopt.after_import import after_import

# What ``__init__.pyi`` lists is imported when it is first used: pvopt.convex needs no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"

# ``AutoModelForCausalLM.from_pretrained`` reads checkpoints then; transformers stays optional.
after_import(
    "transformers.quantizers.auto",
    lambda: importlib.import_module("pvopt.llm.transformers_quantizer"),
)
