"""Measures of a model's quality: `perplexity` on a text, `accuracy` on questions."""

from mistral_portable.evaluation.perplexity import Perplexity, perplexity
from mistral_portable.evaluation.questions import Accuracy, Question, accuracy, read_questions

__all__ = ["Accuracy", "Perplexity", "Question", "accuracy", "perplexity", "read_questions"]
