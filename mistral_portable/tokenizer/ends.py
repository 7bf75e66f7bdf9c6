"""Tokens that end a turn, by the names that models give them."""

from collections.abc import Callable

__all__ = ["known_ends"]

# ChatML's, Llama 3's, Phi's, OpenChat's, Gemma's and others. llama.cpp, too, ends at such names whatever eos is.
_NAMES = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|EOT|>",
    "<EOT>",
)


def known_ends(control_id: Callable[[str], int | None]) -> frozenset[int]:
    """The ids of tokens that end a turn by their name. control_id: gives the id of an added token, or None."""
    found = map(control_id, _NAMES)
    return frozenset(id for id in found if id is not None)
