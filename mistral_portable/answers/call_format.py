"""How an answer with tool calls is written, as tokens and text, for grammars that force one (`tool_choice`)."""

from dataclasses import dataclass
from enum import Enum

from mistral_portable.errors import InputError
from mistral_portable.tokenizer import Tokenizer

__all__ = ["CallFormat", "Part", "Slot", "call_format"]


class Slot(Enum):
    """A place that each call fills. NAME: the function's. ARGUMENTS: a JSON object, with white space as `json.dumps`
    writes it. ID: 9 letters and digits."""

    NAME = "name"
    ARGUMENTS = "arguments"
    ID = "id"


Part = int | str | Slot
"""The id of a control token, literal text, or a place."""


@dataclass(frozen=True)
class CallFormat:
    """The form of the calls at the end of an answer: `before`, a `call`, `between` and a `call` for each further one,
    and `after`; then the token that ends the answer.

    reasoning: the ids of [THINK] and [/THINK], between which text may come before all this; None where there are none.

        v2     5 ' [' ({"name": "NAME", "arguments": ARGUMENTS}, ...) ']'
        v3     5 ' [' ({"name": "NAME", "arguments": ARGUMENTS, "id": "ID"}, ...) ']'      v7, too
        v11    (9 NAME 33 ID 32 ARGUMENTS) ...
        v13    (9 NAME 32 ARGUMENTS) ...                                                   v15, too

    Numbers are ids: 5 and, in tekken vocabularies, 9 is [TOOL_CALLS], 33 [CALL_ID], 32 [ARGS]. The space before a list
    is sentencepiece's; tekken has none. Text is cut into tokens as its whole is: a token may lie across the border of
    two texts, none across a control token.
    """

    before: tuple[Part, ...]
    call: tuple[Part, ...]
    between: tuple[Part, ...]
    after: tuple[Part, ...]
    reasoning: tuple[int, int] | None


def call_format(tokenizer: Tokenizer) -> CallFormat:
    """The form of calls of the tokenizer's chat version, as mistral-common writes them, and as `ChatParser` reads them.

    Raises InputError for v1, which has no tool calls, and for models whose chats are not Mistral's.
    """
    marker = tokenizer.control_id("[TOOL_CALLS]")
    if not tokenizer.chats:
        raise InputError("tool calls: the model's chat template is not Mistral's; leave tool_choice out")
    if marker is None:
        raise InputError(f"chat template {tokenizer.version} has no tool calls; leave tool_choice out")
    think, end_think = tokenizer.control_id("[THINK]"), tokenizer.control_id("[/THINK]")
    reasoning = None if think is None or end_think is None else (think, end_think)
    if tokenizer.version in ("v2", "v3", "v7"):
        return _list_format(marker, spaced=tokenizer.kind == "sentencepiece", ids=tokenizer.version != "v2")
    call_id, args = tokenizer.control_id("[CALL_ID]"), tokenizer.control_id("[ARGS]")
    if args is None:
        raise InputError(f"the {tokenizer.version} vocabulary has no [ARGS], so no tool calls; leave tool_choice out")
    ids: tuple[Part, ...] = () if tokenizer.version != "v11" or call_id is None else (call_id, Slot.ID)
    return CallFormat((), (marker, Slot.NAME, *ids, args, Slot.ARGUMENTS), (), (), reasoning)


def _list_format(marker: int, *, spaced: bool, ids: bool) -> CallFormat:
    id: tuple[Part, ...] = (', "id": "', Slot.ID, '"}') if ids else ("}",)
    call = ('{"name": "', Slot.NAME, '", "arguments": ', Slot.ARGUMENTS, *id)
    return CallFormat((marker, " [" if spaced else "["), call, (", ",), ("]",), None)
