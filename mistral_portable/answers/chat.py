"""ChatParser: the parser of answers to chats, by the markers of the tokenizer's version."""

from collections.abc import Callable, Sequence

from mistral_portable.answers.call_list import CallList
from mistral_portable.answers.deltas import Delta
from mistral_portable.answers.marked_call import MarkedCall
from mistral_portable.answers.numbering import Numbering
from mistral_portable.answers.sections import ContentSection, ReasoningSection, Section
from mistral_portable.answers.text_reasoning import text_reasoning
from mistral_portable.tokenizer import Tokenizer

__all__ = ["ChatParser", "leaves_thinking"]

_LISTS = ("v2", "v3", "v7")


class ChatParser:
    """Splits an answer at its markers, which are told from text by their token ids.

        [THINK] reasoning [/THINK] content [TOOL_CALLS] calls

    v1 has no markers; v2, v3 and v7 write calls as `CallList` says, later versions as `MarkedCall` does. [THINK] counts
    where the vocabulary has it; where it has not, and the prompt asks for them, an answer may begin with markers that
    are text (`TextReasoningSection`). Any other text that spells a marker is text, and other special tokens stand for
    nothing.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        """prompt: the ids behind which the answer stands. If its last turn leaves a [THINK] open, the answer begins
        with reasoning."""
        self._text = tokenizer.stream(() if _ends_turn_in_text(tokenizer, prompt) else prompt)
        self._think = tokenizer.control_id("[THINK]")
        self._end_think = tokenizer.control_id("[/THINK]")
        self._tool_calls = tokenizer.control_id("[TOOL_CALLS]")
        self._begin_call = _call_sections(tokenizer, Numbering(prompt))
        self._section: Section = text_reasoning(tokenizer, prompt) or ContentSection()
        if leaves_thinking(tokenizer, prompt):
            self._section = ReasoningSection()

    def push(self, token_id: int) -> list[Delta]:
        """Take the next token; return what is certain now. Raises InputError for an id outside the vocabulary."""
        text = self._text.push(token_id)
        found = self._section.take(text) if text else []
        if token_id in (self._tool_calls, self._think, self._end_think):
            return found + self._change(token_id)
        return found + self._section.mark(token_id)

    def flush(self) -> list[Delta]:
        """Return the rest, as no token follows."""
        text = self._text.flush()
        return [*(self._section.take(text) if text else []), *self._section.end()]

    def _change(self, marker: int) -> list[Delta]:
        """End the section at a marker and begin the next."""
        thinks = isinstance(self._section, ReasoningSection)
        if thinks == (marker == self._think) and marker != self._tool_calls:
            return []  # [THINK] again, or [/THINK] of nothing
        found = self._section.end()
        if marker == self._tool_calls:
            self._section = self._begin_call()
        else:
            self._section = ReasoningSection() if marker == self._think else ContentSection()
        return found


def leaves_thinking(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether the last turn of a prompt leaves a [THINK] open, so that the answer begins with reasoning."""
    think = tokenizer.control_id("[THINK]")
    turn = {think, *map(tokenizer.control_id, ("[/THINK]", "[/INST]", "[/TOOL_RESULTS]"))}
    last = next((token for token in reversed(prompt) if token in turn), None)
    return last is not None and last == think


def _ends_turn_in_text(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether a v1 prompt ends with [/INST], which is text there: the answer then begins a text of its own."""
    return tokenizer.version == "v1" and tokenizer.decode(prompt[-8:]).endswith("[/INST]")


def _call_sections(tokenizer: Tokenizer, numbering: Numbering) -> Callable[[], Section]:
    """A function that begins the section behind [TOOL_CALLS]."""
    if tokenizer.version in _LISTS:
        return lambda: CallList(numbering)
    call_id, args = tokenizer.control_id("[CALL_ID]"), tokenizer.control_id("[ARGS]")
    return lambda: MarkedCall(numbering, call_id=call_id, args=args)
