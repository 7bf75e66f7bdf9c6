"""ChatTemplate: a Jinja template of a model, which makes the text of a chat."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.content import read_content
from mistral_portable.tokenizer.mend import in_plain_order, name_results
from mistral_portable.tokenizer.template_process import RefusedError, TemplateProcess

__all__ = ["ChatTemplate"]

_REASONING = ("reasoning_content", "thinking", "reasoning")
# transformers marks the end of a message that is continued with this; its last space shows whether the template strips.
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """One template, or several by their names: "tool_use" is for chats with tools, "default" for all others.

    special_tokens: the names of tokens that templates use: {"bos_token": "<s>", ...}.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._templates = {name: (text, TemplateProcess(text)) for name, text in templates.items()}
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        goes_on: bool | None = None,
        asks: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, as transformers' `apply_chat_template` makes it.

        goes_on: whether the last message is continued, so that nothing ends it (`continue_final_message`); None: if it
        is an assistant's without calls. asks: whether the text ends where the model answers (`add_generation_prompt`);
        None: if the last message is not continued. variables: more names and values for the template.

        A chat that the template refuses is written in a plainer order (`in_plain_order`), if it takes that. A result of
        a tool without a name has that of its call.

        Raises TokenizerError for what the template refuses, for malformed messages, and beyond the limits of
        `TemplateProcess`.
        """
        if not messages:
            raise TokenizerError("the conversation is empty; pass at least one message")
        read = name_results([_read(message, f"message {index}") for index, message in enumerate(messages)])
        if goes_on is None:
            goes_on = read[-1]["role"] == "assistant" and not read[-1].get("tool_calls")
        text, process = self._chosen(bool(tools))
        filled = {
            **self._special_tokens,
            "documents": None,
            **(variables or {}),
            "tools": [dict(tool) for tool in tools] if tools else None,
            "add_generation_prompt": not goes_on if asks is None else asks,
        }

        def write(chat: Sequence[Mapping[str, Any]]) -> str:
            variables = {**filled, "messages": [dict(message) for message in chat]}
            return _continued(process, variables, text) if goes_on else process.render(variables)

        try:
            return write(read)
        except RefusedError:
            if (plain := in_plain_order(read)) == read:
                raise
            with contextlib.suppress(RefusedError):
                return write(plain)
            raise

    def _chosen(self, tools: bool) -> tuple[str, TemplateProcess]:
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            names = ", ".join(sorted(self._templates))
            raise TokenizerError(f"the model has the chat templates {names}, and no default: choose one by its name")
        return self._templates[name]


def _continued(process: TemplateProcess, variables: dict[str, Any], template: str) -> str:
    """The text up to the end of the last message's content, which the template may strip."""
    last = variables["messages"][-1]
    content = last.get("content", "")
    if "content" not in template:
        raise TokenizerError("the chat template writes no content, so no answer can be continued")
    last["content"] = content + _MARK
    text = process.render(variables)
    if _MARK.strip() not in text or content.strip() not in text:
        raise TokenizerError("the chat template does not write the last message as it is, so it cannot be continued")
    at = text.rindex(_MARK.strip())
    return text[:at] if text[at : at + len(_MARK)] == _MARK else text[:at].rstrip()


def _read(message: object, where: str) -> dict[str, Any]:
    """A message in the form that templates read: content as one text, arguments of calls as mappings, nothing null.

    Raises TokenizerError for a malformed message, and for images and audio.
    """
    if not isinstance(message, Mapping):
        raise TokenizerError(f"{where} is {message!r:.80}; pass a mapping with role and content")
    role = message.get("role")
    if not isinstance(role, str):
        raise TokenizerError(f"{where} has the role {role!r:.80}; pass a string")
    found = {key: value for key, value in message.items() if value is not None}
    found["role"] = "system" if role == "developer" else role
    content, thoughts = read_content(message.get("content"), where, joint="\n")
    if content is not None:
        found["content"] = content
    reasoning = next((found[name] for name in _REASONING if name in found), thoughts)
    if reasoning:
        found = {"thinking": reasoning, **found, "reasoning_content": reasoning}
    if calls := found.get("tool_calls"):
        if not isinstance(calls, Sequence) or not all(isinstance(call, Mapping) for call in calls):
            raise TokenizerError(f"{where} has the tool_calls {calls!r:.80}; pass a list of mappings")
        found["tool_calls"] = [_with_arguments(call) for call in calls]
    return found


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call whose arguments are a mapping, as templates expect; OpenAI's clients send it as a text."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return dict(call)
    if not isinstance(arguments, dict):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}
