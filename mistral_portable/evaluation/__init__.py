"""How well a model does on text that it has not seen: `perplexity`, `accuracy`."""

from mistral_portable.evaluation.perplexity import Perplexity, perplexity
from mistral_portable.evaluation.questions import Accuracy, Question, accuracy, read_questions

__all__ = ["Accuracy", "Perplexity", "Question", "accuracy", "perplexity", "read_questions"]
