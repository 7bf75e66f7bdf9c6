"""Walks a text through a grammar, token by token, as an answer would."""

from collections.abc import Sequence
from functools import cache

from tokenizer.vocabularies import TINY, from_file

from mistral_portable.grammar import Grammars
from mistral_portable.sampling import Grammar
from mistral_portable.tokenizer import Tokenizer, TokenizerFile, load_tokenizer

TEXT: Sequence[int] = (1, 600)
"""A prompt whose answer continues a text."""
CHAT: Sequence[int] = (1, 3, 600, 4)
"""A prompt whose answer begins a text: [/INST] is its last token."""


@cache
def tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(TokenizerFile(TINY)) if name == "tiny" else from_file(name)


@cache
def grammars(name: str = "tiny") -> Grammars:
    return Grammars(tokenizer(name), {tokenizer(name).eos_id})


@cache
def ids(name: str, begins: bool) -> dict[bytes, list[int]]:
    """The tokens of a vocabulary by the bytes that they add to a text, special ones left out."""
    found: dict[bytes, list[int]] = {}
    for token in range(tokenizer(name).vocab_size):
        if (piece := tokenizer(name).piece(token, begins)) is not None:
            found.setdefault(piece, []).append(token)
    return found


def accepts(
    grammar: Grammar, text: str, prompt: Sequence[int] = TEXT, *, whole: bool = True, name: str = "tiny"
) -> bool:
    """Whether allowed tokens, at each place the longest, make this text, and then may end it.

    whole: whether the text must end there; else it may end amid a token.
    """
    constraint = grammar.begin(prompt)
    rest, begins = text.encode(), tokenizer(name).is_special(prompt[-1])
    while rest:
        allowed = constraint.allowed()
        pieces = ids(name, begins)
        # The space that is dropped at the beginning may be a token of its own.
        sizes = range(min(len(rest), 64), -1 if begins else 0, -1)
        fitting = (token for size in sizes for token in pieces.get(rest[:size], ()) if allowed[token])
        if (token := next(fitting, None)) is None:
            longer = (token for piece, tokens in pieces.items() if piece.startswith(rest) for token in tokens)
            return not whole and any(allowed[token] for token in longer)
        rest = rest[len(tokenizer(name).piece(token, begins) or b"") :]
        begins = False
        constraint.accept(token)
    return not whole or bool(constraint.allowed()[tokenizer(name).eos_id])
