"""Infers mistral-common's chat version of a vocabulary that does not state it."""

import re
from collections.abc import Collection

__all__ = ["infer_version"]


def infer_version(control_tokens: Collection[str], chat_template: str | None = None) -> str:
    """The chat version, "v1" to "v15", by the control tokens and, if there is one, a GGUF file's chat template.

    The newest control token that the chats use names the version:

        [MODEL_SETTINGS] v15     [ARGS] v13, but v11 with [CALL_ID] and without [THINK]
        [SYSTEM_PROMPT]  v7      [INST] v3, but v2 with [control_8], which v3 renamed to [IMG]
        none of them     v1

    Vocabularies may have control tokens that their chats do not use: mistral-common gives every tekken file a
    [SYSTEM_PROMPT], even v3. So a token counts only if the template contains it, too. llama.cpp's converter may store a
    name in place of a template, such as "mistral-v3-tekken" (its `conversion/mistral.py`), and that name decides.

    v2 and v3 differ in tool calls only, and so do v7, v11 and v13: a plain chat survives a wrong guess.
    """
    if named := re.fullmatch(r"mistral-(v\d+)(-tekken)?", chat_template or ""):
        return named[1]

    def uses(token: str) -> bool:
        return token in control_tokens and (chat_template is None or token in chat_template)

    if uses("[MODEL_SETTINGS]"):
        return "v15"
    if uses("[ARGS]"):
        return "v11" if uses("[CALL_ID]") and not uses("[THINK]") else "v13"
    if uses("[SYSTEM_PROMPT]"):
        return "v7"
    if "[INST]" in control_tokens:
        return "v2" if "[control_8]" in control_tokens else "v3"
    return "v1"
