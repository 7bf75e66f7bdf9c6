"""is_mistrals: whether a chat template is Mistral's own, so that mistral-common writes the same chats."""

import re

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.common import CommonTokenizer
from mistral_portable.tokenizer.template import ChatTemplate

__all__ = ["is_mistrals"]

_ASKED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
_WITH_SYSTEM = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]


def is_mistrals(template: str | None, common: CommonTokenizer) -> bool:
    """Whether a template writes two short chats as mistral-common does, up to white space.

    None and llama.cpp's names, such as "mistral-v7", are. So are Mistral's templates of all versions, whose texts
    differ from one repository to the next: some refuse a system message, which is no difference; some put a system
    message of their own before a chat without one. Llama 2's is not: it writes a system message in another way.
    """
    if template is None or re.fullmatch(r"mistral-v\d+(-tekken)?", template):
        return True
    if "[INST]" not in template:  # not even run
        return False
    rendered = ChatTemplate({"default": template}, {"bos_token": "<s>", "eos_token": "</s>"})
    equal = 0
    for messages in (_WITH_SYSTEM, _ASKED):
        try:
            theirs = _joined(rendered.render(messages))
        except TokenizerError:
            continue
        ours = _joined(_text(common, common.chat(messages)))
        own_system = messages is _ASKED and theirs.endswith(ours.removeprefix("<s>")) and "[/SYSTEM_PROMPT]" in theirs
        if theirs not in (ours, ours.removeprefix("<s>")) and not own_system:
            return False
        equal += 1
    return equal > 0


def _text(common: CommonTokenizer, tokens: list[int]) -> str:
    """The text of a chat, in which special tokens stand by their names."""
    parts = [common.written([id]).encode() if common.is_special(id) else common.token_bytes(id) for id in tokens]
    return b"".join(parts).decode()


def _joined(text: str) -> str:
    return re.sub(r"\s", "", text)
