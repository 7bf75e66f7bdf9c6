"""Vocabulary: one of our tokenizers in the form that llguidance takes."""

import re

from mistral_portable.errors import BackendError
from mistral_portable.tokenizer import Tokenizer

__all__ = ["Vocabulary"]

_BEFORE = "\n"  # seldom joined to what follows


class Vocabulary:
    """The bytes of each token, and how a text is cut into tokens: what llguidance's TokenizerWrapper reads.

    A special token stands for no text: only a Lark grammar that names it, <TOOL_CALLS> for [TOOL_CALLS], allows it.
    drops_space: whether a text that begins loses a space of its first token. keeps_space: ids of tokens that begin with
    a space and lose none. form: what llguidance has made of all this.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes 0.1 s for 32,768 tokens. Raises BackendError without llguidance, with the command that installs it."""
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError as error:
            install = "pip install 'mistral-portable[server]'"
            raise BackendError(f"schemas and grammars need llguidance ({error}): {install}") from error
        self._tokenizer = tokenizer
        ids = range(tokenizer.vocab_size)
        self.special_token_ids = [id for id in ids if tokenizer.is_special(id)]
        self._special = set(self.special_token_ids)
        self.tokens = [tokenizer.token_bytes(id) for id in ids]
        for id in self.special_token_ids:
            name = tokenizer.decode([id], skip_special_tokens=False)
            self.tokens[id] = re.sub(r"^\[(.*)\]$", r"<\1>", name).encode()
        spaces = [id for id in ids if self.tokens[id].startswith(b" ")]
        self.keeps_space = [id for id in spaces if tokenizer.token_bytes(id, begins_text=True) == self.tokens[id]]
        self.drops_space = len(self.keeps_space) < len(spaces)
        self._bytes = {text[0]: id for id, text in enumerate(self.tokens) if len(text) == 1}
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.form = LLTokenizer(TokenizerWrapper(self))

    def __call__(self, text: str) -> list[int]:
        """Cut a text that continues another one into tokens, whose bytes are exactly those of the text.

        sentencepiece puts a space before each text: the tokens of that and of a line break are left away.
        """
        if self._tokenizer.kind == "tekken":
            return self._tokenizer.encode(text, bos=False)
        tokens = self._tokenizer.encode(_BEFORE + text, bos=False)
        data = text.encode()
        extra = sum(len(self.tokens[token]) for token in tokens) - len(data)
        while extra > 0:
            extra -= len(self.tokens[tokens.pop(0)])
        whole = b"".join(self.tokens[token] for token in tokens) == data
        if whole and self._special.isdisjoint(tokens):
            return tokens
        # U+2581 is sentencepiece's own way to write a space, and `<|im_end|>` the name of an added token.
        return [self._bytes[byte] for byte in data]
