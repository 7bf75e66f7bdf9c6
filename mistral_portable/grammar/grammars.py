"""Grammars: compiles schemas, grammars and regular expressions for a model's tokenizer, and keeps the newest."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mistral_portable.errors import InputError
from mistral_portable.forks import make_locks
from mistral_portable.grammar.deep_stack import deep_stack
from mistral_portable.grammar.state import Otherwise, State, contained
from mistral_portable.grammar.texts import MOST_BYTES, Schema, checked_text, schema_text
from mistral_portable.grammar.vocabulary import Vocabulary
from mistral_portable.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["CompiledGrammar", "Grammars"]

_ASCII = "dw"  # classes that are of ASCII alone, as in JavaScript, and so in the patterns of schemas: \d and \w
_KEPT = 32  # compiled grammars
_MOST_TOGETHER = 4 * MOST_BYTES  # of a grammar with schemas


@dataclass(frozen=True, eq=False)
class CompiledGrammar:
    """A rule for any number of answers of one model (`sampling.Grammar`), made by `Grammars.compile`.

    continuing: the state before the first token of an answer that continues a text. beginning: of one that begins one,
    behind a special token, where the tokenizer drops a space.
    """

    name: str
    owner: "Grammars"
    continuing: State
    beginning: State

    def begin(self, prompt_tokens: Sequence[int]) -> State:
        begins = not prompt_tokens or self.owner.tokenizer.is_special(prompt_tokens[-1])
        return (self.beginning if begins else self.continuing).copy()

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Grammars:
    """The grammars of a model. Threads may share it; a call takes the caller's time, not the loop's."""

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int]) -> None:
        """ends: ids that end a text."""
        self.tokenizer = tokenizer
        self._vocabulary: Vocabulary | None = None
        self._ends = frozenset(ends)
        self._kept: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()
        make_locks(self, Grammars._make_locks)

    def _make_locks(self) -> None:
        self._lock = threading.RLock()

    def compile(
        self, *, schema: Schema | None = None, grammar: str | None = None, regex: str | None = None
    ) -> CompiledGrammar:
        """Compile one of three, or find it among those that were compiled last.

        schema: a JSON schema, a mapping, its text or a pydantic model class. grammar: in llguidance's dialect of Lark.
        regex: a regular expression for the whole text, in the syntax of Rust's `regex` crate without look-around and
        anchors; \\d and \\w are ASCII.

        Raises InputError if it is bad, or too large or complex, or uses a feature that llguidance has not: nothing of a
        schema is ignored; BackendError without llguidance.
        """
        rules = {"schema": schema, "grammar": grammar, "regex": regex}
        given = [name for name, rule in rules.items() if rule is not None]
        if len(given) != 1:
            raise InputError(f"{' and '.join(given) or 'no rule'} given: give one of schema, grammar and regex")
        if schema is not None:
            return self._find("schema", schema_text(schema), _of_schema)
        if grammar is not None:
            return self._find("grammar", checked_text("grammar", grammar), _of_lark)
        return self._find("regex", checked_text("regex", regex), _of_regex)

    def compile_parts(self, name: str, grammar: str, parts: Sequence[tuple[str, Schema]]) -> CompiledGrammar:
        """Compile a Lark grammar with JSON schemas in it, or find it: @part0 is the first of `parts`, @part1 the next.

        name: of the whole, for errors. parts: the name and the schema of each. Their white space is that of
        `json.dumps`.

        Raises InputError, as `compile` does, with the name of the part that is bad, and if all together are too large;
        BackendError without llguidance.
        """
        schemas = [schema_text(schema, part) for part, schema in parts]
        text = json.dumps([checked_text(name, grammar), *schemas])
        if len(text) > _MOST_TOGETHER:
            raise InputError(
                f"{name}: all schemas have {len(text)} bytes, the most are {_MOST_TOGETHER}: make them smaller"
            )
        try:
            return self._find(name, text, _of_parts)
        except InputError:
            for (part, _), schema in zip(parts, schemas, strict=True):
                self._made(part, schema, _of_schema)
            raise

    def _find(self, name: str, text: str, rule: Callable[[str], list[Any]]) -> CompiledGrammar:
        key = name, text
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = self._made(name, text, rule)
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def _made(self, name: str, text: str, rule: Callable[[str], list[Any]]) -> CompiledGrammar:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self.tokenizer)
            vocabulary = self._vocabulary
        with contained(name):
            return deep_stack(lambda: self._compile(name, rule(text), vocabulary))

    def _compile(self, name: str, rule: list[Any], vocabulary: Vocabulary) -> CompiledGrammar:
        """Compile llguidance's list of grammars, of which the first one is the rule."""
        continuing = self._state(name, rule, vocabulary)
        first = set(continuing.allowed().nonzero()[0].tolist())
        if not vocabulary.drops_space or first <= set(vocabulary.special_token_ids):
            return CompiledGrammar(name, self, continuing, continuing)
        # The space that is dropped at the beginning belongs to the tokens, not to the text that the rule is for.
        behind = [{"lark_grammar": 'start: " " @body'}, {**rule[0], "name": "body"}, *rule[1:]]
        # A token that is no text, or that keeps its space, is not behind one.
        others = {*vocabulary.special_token_ids, *vocabulary.keeps_space, *self._ends}
        beginning = self._state(name, behind, vocabulary, Otherwise(continuing, others))
        return CompiledGrammar(name, self, continuing, beginning)

    def _state(
        self, name: str, grammars: list[Any], vocabulary: Vocabulary, otherwise: Otherwise | None = None
    ) -> State:
        from llguidance import LLMatcher, LLParserLimits

        # Bounds of memory and of the time of a step: 2 kB a state, 14 fuel a microsecond.
        limits = LLParserLimits(
            max_lexer_states=25_000, max_items_in_row=1_000, max_grammar_size=100_000, verbose_errors=False
        )
        matcher = LLMatcher(vocabulary.form, json.dumps({"grammars": grammars}), log_level=0, limits=limits)
        return State.first(name, matcher, self._ends, otherwise=otherwise)


def _of_schema(text: str) -> list[Any]:
    from llguidance import LLMatcher

    # As llama.cpp's grammars of schemas have it: some models write white space without end where they may.
    defaults: JsonCompileOptions = {"whitespace_pattern": r"\x20|\x0A{1,2}[\x20\x09]{0,20}"}
    grammars: list[Any] = json.loads(LLMatcher.grammar_from_json_schema(text, defaults, _strict()))["grammars"]
    return grammars


def _of_parts(text: str) -> list[Any]:
    from llguidance import LLMatcher

    lark, *schemas = json.loads(text)
    plain: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    grammars = _of_lark(lark)
    for index, schema in enumerate(schemas):
        (part,) = json.loads(LLMatcher.grammar_from_json_schema(schema, None, {**_strict(), **plain}))["grammars"]
        grammars.append({**part, "name": f"part{index}"})
    return grammars


def _strict() -> "JsonCompileOptions":
    """Options that hold whatever the schema's "x-guidance" says."""
    return {"lenient": False, "coerce_one_of": False}


def _of_lark(text: str) -> list[Any]:
    return [{"lark_grammar": text}]


def _of_regex(text: str) -> list[Any]:
    from llguidance import regex_to_lark

    return [{"lark_grammar": f"start: /{regex_to_lark(text, _ASCII)}/"}]
