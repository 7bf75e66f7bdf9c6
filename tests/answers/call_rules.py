"""Rules of tool calls over all versions: tools, the state before an answer, and whether tokens may be one."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from answers.versions import tokenizer_of

from mistral_portable.answers import call_rule, demanded
from mistral_portable.grammar import Grammars
from mistral_portable.sampling import Constraint

__all__ = ["FUNCTIONS", "JSON", "PLACE", "TOOLS", "Calls", "accepts", "constraint", "tool"]

JSON = dict[str, Any]
Calls = Sequence[tuple[str, str, JSON]]
"""Ids, names and arguments."""

PLACE: JSON = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
    "required": ["city"],
    "additionalProperties": False,
}
WORDS: JSON = {"properties": {"words": {"type": "array", "items": {"enum": ["é", "漢", '"}', "[TOOL_CALLS]"]}}}}
NOTHING = None
FUNCTIONS: Mapping[str, JSON | None] = {"weather": PLACE, "weather_words": WORDS, "we": NOTHING}
"""One name begins as another one, and each schema has keywords of its own."""


def tool(name: str, parameters: object) -> JSON:
    function = {"name": name, "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


TOOLS = [tool(name, parameters) for name, parameters in FUNCTIONS.items()]


@cache
def grammars(version: str) -> Grammars:
    return Grammars(tokenizer_of(version), {tokenizer_of(version).eos_id})


def constraint(
    version: str, tools: Sequence[JSON] = TOOLS, choice: Any = "required", *, several: bool = True, thinks: bool = False
) -> Constraint:
    """The state before the first token of an answer to a chat."""
    tokenizer = tokenizer_of(version)
    rule = call_rule(tokenizer, demanded(tools, choice), several=several, thinks=thinks)
    prompt = tokenizer.chat([{"role": "user", "content": "Hi"}])
    return grammars(version).compile_parts("tool_choice", rule.lark, rule.parts).begin(prompt)


@cache
def texts_of(version: str) -> Mapping[bytes, list[int]]:
    """The tokens of a vocabulary by their bytes, special ones left out."""
    tokenizer, found = tokenizer_of(version), dict[bytes, list[int]]()
    for token in range(tokenizer.vocab_size):
        if not tokenizer.is_special(token):
            found.setdefault(tokenizer.token_bytes(token), []).append(token)
    return found


def accepts(version: str, state: Constraint, tokens: Sequence[int]) -> bool:
    """Whether these special tokens, and the texts between them, cut into tokens anyhow, may be the whole answer."""
    tokenizer = tokenizer_of(version)
    for special, group in groupby(tokens, tokenizer.is_special):
        ids = list(group)
        rest = b"" if special else b"".join(map(tokenizer.token_bytes, ids))
        while rest or (special and ids):
            sizes = range(min(len(rest), 64), 0, -1)
            fitting = (
                [ids.pop(0)] if special else (id for size in sizes for id in texts_of(version).get(rest[:size], ()))
            )
            allowed = state.allowed()
            token = next((id for id in fitting if allowed[id]), None)
            if token is None:
                return False
            state.accept(token)
            rest = rest[len(tokenizer.token_bytes(token)) :]
    return bool(state.allowed()[tokenizer.eos_id])
