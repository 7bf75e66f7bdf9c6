"""AnswerMaker: makes requests for the loop from prompts and the options of `Model.generate`."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, replace
from functools import cache
from inspect import Parameter, signature
from typing import Any, cast

from mistral_portable.answers import (
    ChatParser,
    Parser,
    PlainText,
    ToolChoice,
    Tools,
    call_rule,
    demanded,
    leaves_thinking,
    offered,
)
from mistral_portable.engine.adapters import Adapters, Chosen
from mistral_portable.engine.drafting import MOST_DRAFTED
from mistral_portable.engine.prompts import Prompt, Prompts, is_chat, is_several
from mistral_portable.engine.request import Completion
from mistral_portable.engine.stream import Answer
from mistral_portable.errors import InputError
from mistral_portable.grammar import CompiledGrammar, Grammars, Schema
from mistral_portable.sampling import Grammar, SamplingParams, stated_sampling
from mistral_portable.spelling import nearest

__all__ = ["AnswerMaker", "Params"]

Params = SamplingParams | Sequence[SamplingParams]
"""For all prompts, or one for each."""


class AnswerMaker:
    """Makes the answers to prompts, none of whose tokens is there yet."""

    def __init__(
        self,
        prompts: Prompts,
        adapters: Adapters,
        *,
        end_tokens: Set[int],
        vocab_size: int,
        max_context: int,
        load_s: float,
        stated: Mapping[str, Any],
    ) -> None:
        """end_tokens: ids that end a text. load_s: seconds, for the timings. stated: the fields of the model's
        generation_config.json."""
        self._prompts = prompts
        self._adapters = adapters
        self._grammars = Grammars(prompts.tokenizer, end_tokens) if prompts.has_tokenizer else None
        self._end_tokens = end_tokens
        self._vocab_size = vocab_size
        self._max_context = max_context
        self._load_s = load_s
        self._stated = stated
        self._piece = cache(self._bytes_of) if prompts.has_tokenizer else None

    def make_all(
        self, prompt: Prompt | Sequence[Prompt], params: Params | None, n: int | None, options: Mapping[str, Any]
    ) -> list[Answer]:
        """Make `n` answers to each prompt, one after the other. Arguments and errors: those of `Model.generate`."""
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise InputError(f"n={n!r} must be an integer from 1 on")
        prompts = prompt if is_several(prompt) else [cast(Prompt, prompt)]
        listed = isinstance(params, Sequence) and not isinstance(params, str)
        each = list(cast(Sequence[SamplingParams], params)) if listed else [cast(SamplingParams, params)] * len(prompts)
        if len(each) != len(prompts):
            raise InputError(f"{len(each)} SamplingParams for {len(prompts)} prompts: give one, or one for each")
        return [
            answer for some, own in zip(prompts, each, strict=True) for answer in self.make(some, own, n, **options)
        ]

    def make(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        n: int | None = None,
        /,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        chat: bool | None = None,
        schema: Schema | None = None,
        grammar: str | Grammar | None = None,
        regex: str | None = None,
        priority: int = 0,
        user: str = "",
        cache_salt: str = "",
        adapter: Chosen = None,
        sampling: str | None = None,
        draft: str | int = "auto",
        prediction: str | Sequence[int] | None = None,
        reasoning_effort: str | None = None,
        **fields: Any,
    ) -> list[Answer]:
        """Make `n` answers to one prompt, which is encoded once. Arguments and errors: those of `Model.answer`."""
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise InputError(f"priority={priority!r} must be an integer")
        for name, value in (("user", user), ("cache_salt", cache_salt)):
            if not isinstance(value, str):
                raise InputError(f"{name}={value!r} must be a string")
        drafts = _most_drafted(draft)
        if grammar is not None and not isinstance(grammar, str) and schema is regex is None:
            fields["grammar"] = grammar
        elif not schema is grammar is regex is None:
            fields["grammar"] = self.compile_grammar(schema=schema, grammar=cast(str, grammar), regex=regex)
        params = self._params(params, self._of_model(params, sampling) | fields)
        weights = self._adapters.weights(adapter)
        answers_chat = is_chat(prompt) if chat is None else chat
        if tools and not answers_chat:
            raise InputError("tools need a prompt of messages: give messages instead of a text or ids")
        shown = offered(tools, tool_choice)
        tokens = self._prompts.encode(prompt, shown if is_chat(prompt) else None, reasoning_effort)
        functions = demanded(tools, tool_choice)
        if functions:
            params = self._calling(params, tokens, functions, several=parallel_tool_calls)
        predicted = () if prediction is None else self._predicted(prediction)
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else self._end_tokens)
        answers = list[Answer]()
        for number in range(n or 1):
            seed = params.seed if params.seed is None else params.seed + number
            completion = Completion(
                tokens,
                replace(params, seed=seed) if number else params,
                ends=ends,
                max_context=self._max_context,
                priority=priority,
                user=user,
                cache_salt=cache_salt,
                adapters=weights,
                drafts=drafts,
                prediction=predicted,
                piece=self._piece,
            )
            parser = self._parser(tokens, answers_chat)
            answers.append(Answer(completion, ends, parser, self._load_s, one_call=not parallel_tool_calls))
        return answers

    def compile_grammar(self, *, schema: Schema | None, grammar: str | None, regex: str | None) -> Grammar:
        """See `Model.compile_grammar`."""
        if self._grammars is None:
            raise InputError("schemas, grammars and regular expressions need a tokenizer, and this checkpoint has none")
        return self._grammars.compile(schema=schema, grammar=grammar, regex=regex)

    def _predicted(self, prediction: str | Sequence[int]) -> list[int]:
        try:
            return self._prompts.continuation(prediction)
        except InputError as error:
            raise InputError(f"prediction: {error}") from error

    def _calling(
        self, params: SamplingParams, prompt: Sequence[int], functions: Sequence[Mapping[str, Any]], *, several: bool
    ) -> SamplingParams:
        """The params with the rule that the answer calls one of the functions. several: or more."""
        if params.grammar is not None:
            raise InputError(
                "tool_choice: an answer that must call a tool keeps no other rule: leave out the one or the other"
            )
        tokenizer = self._prompts.tokenizer
        rule = call_rule(tokenizer, functions, several=several, thinks=leaves_thinking(tokenizer, prompt))
        assert self._grammars is not None  # there is a tokenizer
        return replace(params, grammar=self._grammars.compile_parts("tool_choice", rule.lark, rule.parts))

    def _of_model(self, params: SamplingParams | None, sampling: str | None) -> dict[str, Any]:
        """The fields that the option `sampling` stands for: for "model" those of the model's generation_config.json."""
        if sampling is None:
            return {}
        if sampling != "model":
            raise InputError(f"sampling={sampling!r:.40}: 'model' is the only choice; leave it out for the defaults")
        if params is not None:
            raise InputError("sampling='model' beside params: pass the fields that you change as options")
        return stated_sampling(self._stated)

    def _params(self, params: SamplingParams | None, sampling: Mapping[str, Any]) -> SamplingParams:
        if not isinstance(params, SamplingParams | None):
            raise InputError(f"params={params!r:.40} must be SamplingParams")
        for name in sampling:
            if name not in _FIELDS:
                meant = nearest(name, [*_FIELDS, *_OPTIONS])
                raise InputError(f"{name} is no option" + (f": is it {meant}?" if meant else " of generate or chat"))
        params = replace(params or SamplingParams(), **sampling)
        if isinstance(params.grammar, CompiledGrammar) and params.grammar.owner is not self._grammars:
            raise InputError(
                f"grammar={params.grammar!r} is another model's: compile it with this one's compile_grammar"
            )
        params.check_vocab(self._vocab_size)
        if params.stop and not self._prompts.has_tokenizer:
            raise InputError("stop strings need a tokenizer, and this checkpoint has none: use stop_token_ids")
        return params

    def _bytes_of(self, token: int) -> bytes:
        """The bytes of any id, of a special token its name: what `dry_sequence_breakers` are looked for in."""
        tokenizer = self._prompts.tokenizer
        if token >= tokenizer.vocab_size:
            return b""
        return tokenizer.written([token]).encode() if tokenizer.is_special(token) else tokenizer.token_bytes(token)

    def _parser(self, prompt: Sequence[int], chat: bool) -> Parser | None:
        """Makes deltas of the answer's tokens; None without a tokenizer."""
        if not self._prompts.has_tokenizer:
            return None
        tokenizer = self._prompts.tokenizer
        return ChatParser(tokenizer, prompt) if chat and tokenizer.chats else PlainText(tokenizer.stream(prompt))


def _most_drafted(draft: object) -> int:
    """Return how many tokens a step may try, by the option `draft`."""
    if isinstance(draft, int) and not isinstance(draft, bool) and draft >= 0:
        return draft
    if draft not in ("auto", "off"):
        raise InputError(
            f'draft={draft!r:.40} must be "auto", "off" or a number of tokens; load(draft=...) says what drafts'
        )
    return MOST_DRAFTED if draft == "auto" else 0


_FIELDS = tuple(field.name for field in fields(SamplingParams))
_OPTIONS = tuple(
    name for name, own in signature(AnswerMaker.make).parameters.items() if own.kind is Parameter.KEYWORD_ONLY
)
"""The names that `generate` takes besides those."""
