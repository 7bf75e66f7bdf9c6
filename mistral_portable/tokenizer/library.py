"""LibraryTokenizer: a tokenizer of Hugging Face's library, and a Jinja chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.ends import known_ends
from mistral_portable.tokenizer.piece_bytes import piece_bytes
from mistral_portable.tokenizer.template import ChatTemplate
from mistral_portable.tokenizer.tokenizer import Tokenizer, check_messages, check_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["LibraryTokenizer"]

_ENDS = ("</s>", "<|im_end|>", "<|endoftext|>")


class LibraryTokenizer(Tokenizer):
    """A tokenizer with added tokens, which are split off in texts and in chats, as transformers does.

    So a text that holds the name of an added token, such as `<|im_end|>`, has the token.

    backend: the library's tokenizer. added: id -> text and whether it is hidden when decoding, of each added token.
    adds_bos: whether a text begins with the token `bos_id`. special_tokens: names of tokens: {"bos_token": "<s>", ...}.
    templates: the chat templates by name.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special_tokens: Mapping[str, str],
        templates: Mapping[str, str],
        eos_id: int | None = None,
        ends: Iterable[int] = (),
    ) -> None:
        """special_tokens: names of tokens: {"bos_token": "<s>", ...}. templates: chat templates by name. eos_id: the
        id that ends an answer, if it is not that of "eos_token". ends: further ones.

        Raises TokenizerError if no token ends an answer, or if the bytes of tokens are not known.
        """
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.kind = "library"
        self.version = "jinja"
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.added = {id: (token.content, token.special) for id, token in backend.get_added_tokens_decoder().items()}
        self._bytes = piece_bytes(backend)
        named = {name: vocabulary.get(token) for name, token in special_tokens.items()}
        known = (vocabulary.get(name) for name in _ENDS)
        eos = next((id for id in (eos_id, named.get("eos_token"), *known) if id is not None), None)
        if eos is None:
            raise TokenizerError("no token ends an answer; name it as eos_token in tokenizer_config.json")
        self.eos_id = eos
        bos, pad = named.get("bos_token"), named.get("pad_token")
        self.bos_id = eos if bos is None else bos
        self.pad_id = eos if pad is None else pad
        self.end_ids = frozenset([eos, *ends]) | known_ends(self._added_id)
        self.adds_bos = self.encode("")[:1] == [self.bos_id]
        self.templates = dict(templates)
        self._template = ChatTemplate(templates, special_tokens) if templates else None
        self.chats = self._template is not None

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of a text, in which the names of added tokens are these tokens. bos: whether to put before and
        behind it what the files say; usually `<s>`.

        Raises TokenizerError if the text holds half a surrogate pair, which is no character.
        """
        check_text(text)
        return list(self.backend.encode(text, add_special_tokens=bos).ids)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
    ) -> list[int]:
        """The ids of the text that the model's template makes of a conversation, as `ChatTemplate.render` says.

        Raises TokenizerError without a template, and for what it refuses.
        """
        check_messages(messages)
        effort = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
        if effort and not any("reasoning_effort" in template for template in self.templates.values()):
            raise TokenizerError("the chat template does not know reasoning_effort; leave it out")
        return self.encode(self.template.render(messages, tools, variables=effort), bos=False)

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises TokenizerError if it has none."""
        if self._template is None:
            raise TokenizerError("the model has no chat template: give one (--chat-template FILE), or write the prompt")
        return self._template

    @property
    def fills(self) -> bool:
        """False: no template of these files says how a gap is written."""
        return False

    def fim(self, prompt: str, suffix: str | None = None) -> list[int]:
        """Raise TokenizerError: no template of these files says how a gap is written."""
        raise TokenizerError("suffix: this tokenizer does not say how a gap is filled: continue the prompt alone")

    def control_id(self, name: str) -> int | None:
        """The id of an added token that is hidden when decoding; None if there is none of this name."""
        id = self._added_id(name)
        return id if id is not None and self.added[id][1] else None

    def _added_id(self, name: str) -> int | None:
        id = self.backend.token_to_id(name)
        return id if id in self.added else None

    def is_special(self, token_id: int) -> bool:
        """Whether the token is hidden when decoding: a special one, or an id without a token.

        Raises InputError if it is outside the vocabulary.
        """
        found = self.added.get(self.checked(token_id))
        return self.backend.id_to_token(token_id) is None if found is None else found[1]

    def piece(self, token_id: int, begins_text: bool) -> bytes | None:
        """The bytes that the token adds to a text, or None, as `Tokenizer.piece` says."""
        if self.is_special(token_id):
            return None
        return self._bytes(self.backend.id_to_token(token_id) or "", begins_text)

    def written(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, in which special ones stand by their names."""
        return str(self.backend.decode(list(tokens), skip_special_tokens=False))
