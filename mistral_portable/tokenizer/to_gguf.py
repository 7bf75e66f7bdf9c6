"""gguf_vocabulary: any tokenizer as a GGUF file stores it, with added tokens, ends and chat template."""

from dataclasses import replace

from mistral_portable.tokenizer.common import CommonTokenizer
from mistral_portable.tokenizer.folder import read_templates
from mistral_portable.tokenizer.gguf import CONTROL
from mistral_portable.tokenizer.json_vocabulary import json_vocabulary
from mistral_portable.tokenizer.library import LibraryTokenizer
from mistral_portable.tokenizer.load import load_tokenizer
from mistral_portable.tokenizer.settings_template import settings_template
from mistral_portable.tokenizer.source import GGUFVocabulary, TokenizerFile, TokenizerSource
from mistral_portable.tokenizer.vocabulary import to_vocabulary

__all__ = ["differing_text", "gguf_vocabulary"]

_USER_DEFINED, _ADDED_SCORE = 4, -1000.0  # the score that llama.cpp's conversion gives to added tokens


def gguf_vocabulary(source: TokenizerSource) -> GGUFVocabulary:
    """The vocabulary of a tokenizer: added tokens that are hidden when decoding are CONTROL, others USER_DEFINED.

    Raises TokenizerError if the tokenizer cannot be read, or has no counterpart in GGUF.
    """
    if isinstance(source, GGUFVocabulary):
        return source
    tokenizer = load_tokenizer(source)
    if isinstance(source, TokenizerFile):
        folder = None if source.content is not None else source.path.parent
        template = read_templates(folder).get("default") if folder else None
        if isinstance(tokenizer, CommonTokenizer):
            return to_vocabulary(source, template or settings_template(source, tokenizer.mistral))
        assert isinstance(tokenizer, LibraryTokenizer)
        base = to_vocabulary(source)
    else:
        template = read_templates(source.path).get("default")
        assert isinstance(tokenizer, LibraryTokenizer)
        base = json_vocabulary(tokenizer.backend)
    return replace(_with_added(base, tokenizer), chat_template=template)


def differing_text(source: TokenizerSource, vocabulary: GGUFVocabulary) -> str | None:
    """A text that the tokenizer of a GGUF file encodes otherwise than its source; None if none was found.

    GGUF has no place for the rules of added tokens (white space that they take, whole words), nor for a space that the
    first text alone begins with (Metaspace's "first").
    """
    tokenizer = load_tokenizer(source)
    if not isinstance(tokenizer, LibraryTokenizer):
        return None
    again = load_tokenizer(vocabulary)
    texts = ["a b", *(probe for text, _ in tokenizer.added.values() for probe in (f"a {text} b", f"a{text}b{text}"))]
    return next((text for text in texts if again.encode(text) != tokenizer.encode(text)), None)


def _with_added(base: GGUFVocabulary, tokenizer: LibraryTokenizer) -> GGUFVocabulary:
    """The vocabulary with the added tokens: new ones behind it, and those that were in it under their new names."""
    tokens, types, scores = list(base.tokens), list(base.types), list(base.scores)
    for id in range(len(tokens), tokenizer.vocab_size):
        tokens.append(b"[UNUSED_%d]" % id)
        types.append(CONTROL)
        scores.append(_ADDED_SCORE)
    for id, (text, special) in tokenizer.added.items():
        tokens[id] = text.encode()
        if special:
            types[id] = CONTROL
        elif id >= len(base.tokens):
            types[id] = _USER_DEFINED
    if base.unknown_token_id is not None:
        types[base.unknown_token_id] = base.types[base.unknown_token_id]
    return replace(
        base,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=tuple(scores) if base.scores else (),
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        add_bos=tokenizer.adds_bos,
        ends=tuple(sorted(tokenizer.end_ids - {tokenizer.eos_id})),
    )
