"""CallRule: the grammar of an answer that must call a tool, in llguidance's dialect of Lark."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mistral_portable.answers.call_format import CallFormat, Part, Slot, call_format
from mistral_portable.errors import InputError
from mistral_portable.tokenizer import Tokenizer

__all__ = ["CallRule", "call_rule"]

_MOST_FUNCTIONS = 128  # OpenAI's limit, too


@dataclass(frozen=True)
class CallRule:
    """lark: the grammar; @part0 is in it the first of `parts`, @part1 the second, and so on. parts: what each is, for
    errors, and its JSON schema: the arguments of a function."""

    lark: str
    parts: tuple[tuple[str, Mapping[str, Any]], ...]


def call_rule(tokenizer: Tokenizer, functions: Sequence[Mapping[str, Any]], *, several: bool, thinks: bool) -> CallRule:
    """The rule of an answer that calls one of these functions, whose arguments keep its `parameters`.

    Reasoning may come before, where the version has it; its length is bounded by the answer's alone. functions: those
    of `demanded`. several: whether further calls may follow. thinks: whether the answer begins amid reasoning.

        start: (<[34]> TEXT? <[35]>)? (call0) ( (call0))*         v13; v2: start: <[5]> " [" (call0) (", " (call0))* "]"
        TEXT: /(?s:.)+/
        call0: <[9]> "weather" <[32]> @part0

    Raises InputError for more than 128 functions, parameters that are no object's, and where there are no tool calls.
    """
    if len(functions) > _MOST_FUNCTIONS:
        raise InputError(f"tools: a call can be demanded of up to {_MOST_FUNCTIONS}, not of {len(functions)}")
    form = call_format(tokenizer)
    calls = [f"call{index}" for index in range(len(functions))]
    any_call = "(" + " | ".join(calls) + ")"
    more = [f"({_written(form.between)} {any_call})*"] if several else []
    start = [*_reasoning(form, thinks), _written(form.before), any_call, *more, _written(form.after)]
    lines = [f"start: {' '.join(filter(None, start))}"]
    if form.reasoning is not None:
        lines.append("TEXT: /(?s:.)+/")
    for index, (call, function) in enumerate(zip(calls, functions, strict=True)):
        lines.append(f"{call}: {_written(form.call, function['name'], f'@part{index}')}")
    return CallRule("\n".join(lines), tuple(map(_part, functions)))


def _reasoning(form: CallFormat, thinks: bool) -> list[str]:
    if form.reasoning is None:
        return []
    think, end_think = form.reasoning
    return [f"TEXT? <[{end_think}]>" if thinks else f"(<[{think}]> TEXT? <[{end_think}]>)?"]


def _written(parts: Sequence[Part], name: str = "", arguments: str = "") -> str:
    """Parts of the form in Lark. Neighbouring texts are one: a lexer that finds the longest then knows where it is."""
    pieces, text = list[str](), ""
    for part in parts:
        if isinstance(part, str) or part is Slot.NAME:
            text += part if isinstance(part, str) else name
            continue
        pieces += [json.dumps(text)] if text else []
        text = ""
        match part:
            case Slot.ARGUMENTS:
                pieces.append(arguments)
            case Slot.ID:
                pieces.append("/[a-zA-Z0-9]{9}/")
            case _:
                pieces.append(f"<[{part}]>")
    return " ".join([*pieces, *([json.dumps(text)] if text else [])])


def _part(function: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The rule that a function's arguments keep. Without `parameters` it takes none, as OpenAI says."""
    label = f'tools: the parameters of "{function["name"]}"'
    schema = function.get("parameters")
    if schema is None:
        return label, {"type": "object", "additionalProperties": False}
    if not isinstance(schema, Mapping):
        raise InputError(f"{label}: {schema!r:.80} is no JSON schema; give an object")
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InputError(f"{label}: type={kind!r:.80}, but arguments are an object")
    return label, {**schema, "type": "object"}
