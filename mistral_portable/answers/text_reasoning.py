"""Reasoning between markers that are text, at the beginning of an answer: <think> ... </think>, then content.

Magistral 2506 writes it so, as its system prompt asks
(https://huggingface.co/mistralai/Magistral-Small-2506/blob/main/SYSTEM_PROMPT.txt), and so do models that others have
trained further. Later versions have tokens for it, [THINK] and [/THINK].
"""

from collections.abc import Collection, Sequence

from mistral_portable.answers.deltas import Content, Delta, Reasoning
from mistral_portable.answers.sections import ContentSection
from mistral_portable.tokenizer import THINK_MARKERS, Tokenizer

__all__ = ["TextReasoningSection", "text_reasoning"]

_BEGIN, _END = THINK_MARKERS
_MOST_TOKENS = 4096  # of a system message that are looked at


def text_reasoning(tokenizer: Tokenizer, prompt: Sequence[int]) -> "TextReasoningSection | None":
    """The section that begins an answer if the prompt's system message spells both markers, and the vocabulary has no
    [THINK]; else None, also if the prompt ends with a beginning of the answer that is content.

    v2 and v3 write the system message into the last one of the user, which is therefore looked at as a whole.
    """
    if tokenizer.control_id("[THINK]") is not None:
        return None
    system = tokenizer.decode(_system_message(tokenizer, prompt))
    if not (_BEGIN in system and _END in system):
        return None
    turn = {tokenizer.control_id("[/INST]"), tokenizer.control_id("[/TOOL_RESULTS]")}
    begun = tokenizer.decode(_behind_last(prompt, turn))
    if begun.strip():
        return TextReasoningSection(opened=True) if _BEGIN in begun and _END not in begun else None
    return TextReasoningSection()


class TextReasoningSection(ContentSection):
    """Takes the text between the markers as reasoning, if the answer begins with the first one; else all is content.

    White space around the markers belongs to neither. A marker may be split over any number of pieces.
    """

    def __init__(self, *, opened: bool = False) -> None:
        """opened: whether the first marker is there already."""
        self._held = ""  # text of which it is not certain yet what it is
        self._part = "opened" if opened else "beginning"  # then "reasoning", "closed", "content"

    def take(self, text: str) -> list[Delta]:
        """Take more text; return what is certain now."""
        self._held += text
        found = list[Delta]()
        if self._part == "beginning":
            self._begin(self._held.lstrip())
        if self._part == "opened":
            self._skip_space("reasoning")
        if self._part == "reasoning":
            found += self._reason()
        if self._part == "closed":
            self._skip_space("content")
        if self._part == "content" and self._held:
            found.append(Content(self._held))
            self._held = ""
        return found

    def end(self) -> list[Delta]:
        """Return what was held back and is no marker."""
        held, self._held = self._held, ""
        if not held or self._part in ("opened", "closed"):
            return []
        return [Reasoning(held) if self._part == "reasoning" else Content(held)]

    def _begin(self, text: str) -> None:
        """Decide whether the answer begins with the first marker, as soon as that is certain."""
        if text.startswith(_BEGIN):
            self._part, self._held = "opened", text.removeprefix(_BEGIN)
        elif not _BEGIN.startswith(text):
            self._part = "content"

    def _skip_space(self, part: str) -> None:
        self._held = self._held.lstrip()
        self._part = part if self._held else self._part

    def _reason(self) -> list[Delta]:
        """Take reasoning out of what is held, up to the second marker, or to what may become one."""
        before, marker, after = self._held.partition(_END)
        if marker:
            self._part = "closed"
        else:
            before = before[: len(before) - _begun(before)]
        shown = before.rstrip()
        self._held = after if marker else self._held[len(shown) :]
        return [Reasoning(shown)] if shown else []


def _system_message(tokenizer: Tokenizer, prompt: Sequence[int]) -> list[int]:
    """The ids of the first system message, or of the last message of the user that holds it."""
    if tokenizer.version in ("v2", "v3"):
        return _behind_last(prompt, {tokenizer.control_id("[INST]")})[:_MOST_TOKENS]
    begin, end = tokenizer.control_id("[SYSTEM_PROMPT]"), tokenizer.control_id("[/SYSTEM_PROMPT]")
    if begin is None or begin not in prompt:
        return []
    place = prompt.index(begin) + 1
    part = list(prompt[place : place + _MOST_TOKENS])
    return part[: part.index(end)] if end in part else part


def _behind_last(prompt: Sequence[int], tokens: Collection[int | None]) -> list[int]:
    """The ids behind the last one of some; none if there is none of these."""
    place = next((at for at in reversed(range(len(prompt))) if prompt[at] in tokens), len(prompt))
    return list(prompt[place + 1 :])


def _begun(text: str) -> int:
    """The length of the longest end of the text with which the second marker may begin."""
    sizes = range(min(len(text), len(_END) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(_END[:size])), 0)
