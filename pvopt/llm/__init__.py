"""Language models: loading, texts, distillation losses, perplexity."""

from pvopt.llm.chunked_loss import chunked_cross_entropy, chunked_kl
from pvopt.llm.distillation import distillation_loss, hidden_states, language_loss, output_head
from pvopt.llm.evaluation import PerplexityResult, native_autocast_dtype, perplexity
from pvopt.llm.models import LanguageModel, load_model
from pvopt.llm.output_head import OutputHead
from pvopt.llm.text import TokenBatches, load_text, split_text

__all__ = [
    "LanguageModel",
    "OutputHead",
    "PerplexityResult",
    "TokenBatches",
    "chunked_cross_entropy",
    "chunked_kl",
    "distillation_loss",
    "hidden_states",
    "language_loss",
    "load_model",
    "load_text",
    "native_autocast_dtype",
    "output_head",
    "perplexity",
    "split_text",
]
