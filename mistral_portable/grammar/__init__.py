"""Rules that answers keep: JSON schemas, grammars and regular expressions, by llguidance over our tokenizers.

>>> grammars = Grammars(tokenizer, {tokenizer.eos_id})
>>> constraint = grammars.compile(regex="(yes|no)").begin([1, 3, 16127, 4])
"""

from mistral_portable.grammar.grammars import CompiledGrammar, Grammars
from mistral_portable.grammar.texts import Schema

__all__ = ["CompiledGrammar", "Grammars", "Schema"]
