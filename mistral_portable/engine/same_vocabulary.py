"""same_vocabulary: whether the ids of two models mean the same."""

from mistral_portable.engine.model import Model
from mistral_portable.errors import InputError
from mistral_portable.tokenizer import Tokenizer

__all__ = ["require_same_vocabulary"]


def require_same_vocabulary(vocab_size: int, tokenizer: Tokenizer | None, draft: Model) -> None:
    """Raise InputError if a draft model's ids are others than those of the model with this vocabulary.

    Where one of the two has no tokenizer, their number alone is compared.
    """
    size = draft.config.vocab_size
    if size != vocab_size:
        raise InputError(f"draft={draft.source!r} has {size} token ids, and the model has {vocab_size}: take another")
    if tokenizer is None or not draft.has_tokenizer:
        return
    other = draft.tokenizer
    for token in range(min(size, tokenizer.vocab_size, other.vocab_size)):
        one, two = tokenizer.piece(token, False), other.piece(token, False)
        if one != two:
            raise InputError(
                f"draft={draft.source!r}: its token {token} is {two!r}, and the model's is {one!r}: "
                "take a draft model with the same tokenizer"
            )
