"""Language models: loading, texts, distillation losses, perplexity."""

from pvopt.llm.chunked_loss import chunked_cross_entropy, chunked_kl
from pvopt.llm.comparison import Comparison, compare
from pvopt.llm.distillation import distillation_loss, hidden_states, language_loss, output_head
from pvopt.llm.evaluation import PerplexityResult, native_autocast_dtype, perplexity
from pvopt.llm.model_checks import check_length, max_positions
from pvopt.llm.models import LanguageModel, empty_model, load_model, stable_source
from pvopt.llm.output_head import OutputHead
from pvopt.llm.text import PARTS, TextPart, TokenBatches, load_text, split_text

__all__ = [
    "PARTS",
    "Comparison",
    "LanguageModel",
    "OutputHead",
    "PerplexityResult",
    "TextPart",
    "TokenBatches",
    "check_length",
    "chunked_cross_entropy",
    "chunked_kl",
    "compare",
    "distillation_loss",
    "empty_model",
    "hidden_states",
    "language_loss",
    "load_model",
    "load_text",
    "max_positions",
    "native_autocast_dtype",
    "output_head",
    "perplexity",
    "split_text",
    "stable_source",
]
