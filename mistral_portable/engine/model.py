"""Model: a loaded checkpoint on a backend, with the calls that users make."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, closing
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from mistral_portable.answers import ChatParser, Parser, PlainText
from mistral_portable.boundary import Program, SavedLane
from mistral_portable.cache import CacheManager, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.engine.core import Core
from mistral_portable.engine.generation import Generation
from mistral_portable.engine.loop import Loop
from mistral_portable.engine.request import Completion, Scoring
from mistral_portable.engine.session import Session, read_session, write_session
from mistral_portable.engine.stream import Answer, AsyncTextStreamer, TextStreamer
from mistral_portable.errors import CacheError, InputError, TokenizerError
from mistral_portable.sampling import SamplingParams
from mistral_portable.tokenizer import Tokenizer

__all__ = ["Messages", "Model", "Prompt"]

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | NDArray[np.integer[Any]] | Messages
"""Text, token ids, or chat messages (`{"role": "user", "content": "..."}`)."""
Tools = Sequence[Mapping[str, Any]]
"""Function schemas, as in OpenAI's and Mistral's API."""
Params = SamplingParams | Sequence[SamplingParams]
"""For all prompts, or one for each."""


class Model:
    """A loaded checkpoint, made by `load`. Calls from any number of threads and coroutines run together, as many as
    `load(max_lanes=...)` in a step; the others wait.

    `config`, `backend` (its name), `core` (program, cache manager and lock), `loop` (runs the steps), `source` (the
    checkpoint's path) and `load_s` (seconds) are for reading.
    """

    def __init__(
        self,
        *,
        config: MistralConfig,
        backend: str,
        core: Core,
        tokenizer: Tokenizer | None,
        source: str,
        load_s: float,
        lockstep: bool = False,
    ) -> None:
        """Made by `load`. lockstep: as `Loop` takes it."""
        self.config = config
        self.backend = backend
        self.core = core
        self.source = source
        self.load_s = load_s
        self._lockstep = lockstep
        self._tokenizer = tokenizer
        self.loop = Loop(core, lockstep=lockstep)

    @property
    def program(self) -> Program:
        """The executor's program."""
        return self.core.program

    @property
    def manager(self) -> CacheManager:
        """The cache's integers."""
        return self.core.manager

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises TokenizerError if it has none."""
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self.source} has no tokenizer: put tokenizer.model or tekken.json beside the weights, "
                f"or pass token ids instead of text"
            )
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be given and is returned; else token ids only."""
        return self._tokenizer is not None

    @property
    def end_tokens(self) -> set[int]:
        """The ids that end a text: the config's and the tokenizer's."""
        own = {self._tokenizer.eos_id} if self._tokenizer else set()
        return own | set(self.config.eos_token_ids)

    @property
    def max_context(self) -> int:
        """Tokens that a sequence, prompt and answer together, may reach."""
        return self.core.max_context

    @overload
    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, n: None = None, **options: Any
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, n: int, **options: Any
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompt: Sequence[Prompt], params: Params | None = None, *, n: None = None, **options: Any
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompt: Sequence[Prompt], params: Params | None = None, *, n: int, **options: Any
    ) -> list[list[Generation]]: ...
    def generate(
        self, prompt: Prompt | Sequence[Prompt], params: Params | None = None, *, n: int | None = None, **options: Any
    ) -> Generation | list[Generation] | list[list[Generation]]:
        """Continue a prompt, or each of a list of prompts: they run together.

        Each answer is the one that the prompt gets alone; on executors other than `numba` but for rounding, which may
        turn a close choice.

        params: for all prompts, or one for each. n: answers to each prompt, which is read once; they come as a list,
        and with a seed, answer i (from 0 on) has seed + i. options: fields of SamplingParams, such as `max_tokens=64,
        temperature=0`, which replace those of `params`; `tools`, `tool_choice` and `chat`, as `answer` has them;
        `priority` (0; among requests of several threads the higher one comes first); `user` (""; users share the steps
        alike); `cache_salt` (""; what others have asked is found in the cache by those with the same one only, so that
        nobody learns of it by how fast an answer begins).

        Raises InputError for an empty or too long prompt, an id outside the vocabulary or a bad sampling value,
        CapacityError if the cache does not fit into memory, NumericsError for logits that are not finite, ClosedError
        after `close`, BusyError if `lane` holds every lane.
        """
        answers = self._answers(prompt, params, n, options)
        by_request = {answer.completion: answer for answer in answers}
        with closing(self.loop.run(list(by_request))) as made:
            for completion in made:
                self._advance(by_request[completion])
        return _arranged([answer.generation for answer in answers], _is_several(prompt), n)

    @overload
    async def agenerate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, n: None = None, **options: Any
    ) -> Generation: ...
    @overload
    async def agenerate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, n: int, **options: Any
    ) -> list[Generation]: ...
    @overload
    async def agenerate(
        self, prompt: Sequence[Prompt], params: Params | None = None, *, n: None = None, **options: Any
    ) -> list[Generation]: ...
    @overload
    async def agenerate(
        self, prompt: Sequence[Prompt], params: Params | None = None, *, n: int, **options: Any
    ) -> list[list[Generation]]: ...
    async def agenerate(
        self, prompt: Prompt | Sequence[Prompt], params: Params | None = None, *, n: int | None = None, **options: Any
    ) -> Generation | list[Generation] | list[list[Generation]]:
        """`generate` for coroutines: any number of them run together. One that is cancelled gives its lanes back."""
        answers = self._answers(prompt, params, n, options)
        by_request = {answer.completion: answer for answer in answers}
        async with aclosing(self.loop.arun(list(by_request))) as made:
            async for completion in made:
                self._advance(by_request[completion])
        return _arranged([answer.generation for answer in answers], _is_several(prompt), n)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> TextStreamer:
        """Continue `prompt`, yielding pieces of text as they are ready (TextStreamer). Errors: those of `generate`."""
        return TextStreamer(self.loop, self.answer(prompt, params, **options))

    def astream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> AsyncTextStreamer:
        """`stream` for coroutines: `async for piece in model.astream(prompt)`, or, for the tool calls and the reasoning
        of a chat's answer, too, `async for delta in model.astream(messages, tools=tools).deltas()`."""
        return AsyncTextStreamer(self.loop, self.answer(prompt, params, **options))

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: str = "auto",
        **options: Any,
    ) -> Generation:
        """Answer the last message. `tools` are function schemas, as in OpenAI's and Mistral's API; the functions that
        the answer calls are in `Generation.tool_calls`. tool_choice: "auto", or "none" to leave the tools out of the
        prompt. options: those of `generate`."""
        tokens = self.tokenizer.chat(messages, tools=_offered(tools, tool_choice))
        generation: Generation = self.generate(tokens, params, chat=True, **options)
        return generation

    @overload
    def logits(self, token_ids: Sequence[int], chunk: int | None = None) -> NDArray[np.float32]: ...
    @overload
    def logits(self, token_ids: Sequence[Sequence[int]], chunk: int | None = None) -> list[NDArray[np.float32]]: ...
    def logits(
        self, token_ids: Sequence[int] | Sequence[Sequence[int]], chunk: int | None = None
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Teacher-forced logits, float32 [T, vocab_size]: row t predicts token t + 1.

        A list of sequences gives a list of arrays, run as one ragged batch. `chunk` is the number of tokens per
        sequence and step (default: as many as the cache takes); the result does not depend on it, except for rounding
        where the program is not `batch_invariant`. Raises InputError for ids or chunks out of range, and the errors of
        `generate`.
        """
        spec = self.manager.spec
        if chunk is not None and not (isinstance(chunk, int) and 1 <= chunk <= spec.max_chunk):
            raise InputError(f"chunk={chunk!r} must be an integer from 1 to {spec.max_chunk}")
        nested = isinstance(token_ids, Sequence | np.ndarray) and len(token_ids) > 0
        several = nested and isinstance(token_ids[0], Sequence | np.ndarray) and not isinstance(token_ids[0], str)
        if several:
            sequences = [self._checked(ids) for ids in cast(Sequence[Sequence[int]], token_ids)]
        else:
            sequences = [self._checked(token_ids)]
        parts: dict[Scoring, list[NDArray[np.float32]]] = {Scoring(ids, chunk=chunk): [] for ids in sequences}
        with closing(self.loop.run(list(parts))) as made:
            for scoring in made:
                parts[scoring].append(scoring.next())
        found = [np.concatenate(some) for some in parts.values()]
        return found if several else found[0]

    def logits_parts(self, token_ids: Sequence[int], *, first: int = 0) -> Iterator[NDArray[np.float32]]:
        """`logits` behind the tokens from index `first` on, float32 [rows, vocab_size], a step's rows at a time: those
        of a long text need not be in memory together. Raises the errors of `logits`."""
        tokens = self._checked(token_ids)
        if not (isinstance(first, int) and 0 <= first < len(tokens)):
            raise InputError(f"first={first!r} must be an index of the {len(tokens)} tokens")
        scoring = Scoring(tokens, first=first)
        with closing(self.loop.run([scoring])) as made:
            for _ in made:
                yield scoring.next()

    def save_session(self, path: str | Path, prompt: Prompt | None = None, *, messages: Messages | None = None) -> int:
        """Write the longest known beginning of a prompt, its keys and values, to a file; return its number of tokens.

        prompt: text, token ids or messages; None: of the text, prompt and answer, that ended last. Texts with a
        `cache_salt` are not saved. messages: a chat, to be kept in the file. The file is replaced as a whole: a process
        that dies here leaves the old one. It holds the text, readable by whoever may read the file.

        Raises InputError if nothing is known of the prompt or the file cannot be written, ClosedError after `close`,
        BusyError if every lane is taken, CapacityError if there is no memory for the copy.
        """
        file = self._session_file(path)
        wanted = None if prompt is None else self._encode(prompt)

        def take() -> tuple[Sequence[int], SavedLane]:
            tokens = self.loop.last_text if wanted is None else wanted
            return tokens, self.core.save_known(tokens)

        tokens, lane = self.loop.between_steps(take)
        count = int(lane.integers["length"])
        if not count:
            fault = "this text is not in the cache: generate from it first, or raise cache_bytes"
            raise InputError(f"{path}: nothing to save: {fault if tokens else 'generate a text first'}")
        write_session(file, Session(tokens[:count], lane, messages), self._session_settings())
        return count

    def load_session(self, path: str | Path) -> int:
        """Read a file of `save_session`; return the number of its tokens that are known from now on.

        Prompts that begin with them need not read them again. They may be fewer than were saved: `cache_bytes` limits
        them.

        Raises InputError if there is no such file or it is no session; CacheError, an InputError, if it is one of other
        weights or settings, or damaged; ClosedError after `close`, BusyError if every lane is taken, CapacityError if
        there is no memory for it.
        """
        session = read_session(self._session_file(path), self._session_settings(), self.config.vocab_size)
        try:
            return self.loop.between_steps(lambda: self.core.make_known(session.lane, session.tokens))
        except CacheError as error:
            raise CacheError(f"{path}: {str(error)[:400]}, or name another file") from error

    def _session_file(self, path: str | Path) -> Path:
        if not isinstance(path, str | Path):
            raise InputError(f"path={path!r:.40} must be a string or a Path")
        if self._lockstep:
            raise InputError("several processes share this model (tensor_parallel): a session is of one process")
        if not self.manager.keeps:
            raise InputError("nothing is kept with cache_bytes=0: load the model with another value to use sessions")
        return Path(path)

    def _session_settings(self) -> dict[str, str]:
        """All that keys and values depend on, beside the tokens."""
        precision = {name: str(value) for name, value in asdict(self.program.precision).items()}
        return {"model": self.manager.model, "backend": self.backend, **precision}

    def lane(self) -> AbstractContextManager[int]:
        """A lane of the cache for the duration of a `with` block. Raises BusyError if all are taken."""
        return self.core.lane()

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run one step: logits float32 [R, vocab_size] of the rows that the chunks request.

        If it fails, all sequences are as they were before it.
        """
        return self.core.step(chunks)

    def close(self) -> None:
        """Release the executor's threads and memory; later calls raise ClosedError."""
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advance(self, answer: Answer) -> None:
        answer.take()
        if answer.done:
            self.loop.leave(answer.completion)

    def _answers(
        self, prompt: Prompt | Sequence[Prompt], params: Params | None, n: int | None, options: Mapping[str, Any]
    ) -> list[Answer]:
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise InputError(f"n={n!r} must be an integer from 1 on")
        prompts = cast(Sequence[Prompt], prompt) if _is_several(prompt) else [cast(Prompt, prompt)]
        listed = isinstance(params, Sequence) and not isinstance(params, str)
        each = list(cast(Sequence[SamplingParams], params)) if listed else [cast(SamplingParams, params)] * len(prompts)
        if len(each) != len(prompts):
            raise InputError(f"{len(each)} SamplingParams for {len(prompts)} prompts: give one, or one for each")
        answers = list[Answer]()
        for some, own in zip(prompts, each, strict=True):
            first = self.answer(some, own, **options)
            answers.append(first)
            sampler = first.completion.sampler.params
            for number in range(1, n or 1):
                seed = None if sampler.seed is None else sampler.seed + number
                answers.append(self.answer(some, own, **{**options, "seed": seed}))
        return answers

    def answer(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        tools: Tools | None = None,
        tool_choice: str = "auto",
        chat: bool | None = None,
        priority: int = 0,
        user: str = "",
        cache_salt: str = "",
        **sampling: Any,
    ) -> Answer:
        """Make a request of one prompt for `loop.run`.

        tools: the functions that may be called, beside messages. tool_choice: "auto", or "none" to leave the tools out
        of the prompt. chat: whether the prompt is a chat's, in whose answer tool calls and reasoning are told from
        content; None: if it is messages. True is for ids that `Tokenizer.chat` has made.

        Raises the errors of `generate` that are about its arguments.
        """
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise InputError(f"priority={priority!r} must be an integer")
        for name, value in (("user", user), ("cache_salt", cache_salt)):
            if not isinstance(value, str):
                raise InputError(f"{name}={value!r} must be a string")
        if not isinstance(params, SamplingParams | None):
            raise InputError(f"params={params!r:.40} must be SamplingParams")
        try:
            params = replace(params or SamplingParams(), **sampling)
        except TypeError as error:
            raise InputError(f"unknown sampling option: {error}") from error
        params.check_vocab(self.config.vocab_size)
        if params.stop and self._tokenizer is None:
            raise InputError("stop strings need a tokenizer, and this checkpoint has none: use stop_token_ids")
        tokens = self._encode(prompt, _offered(tools, tool_choice))
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else self.end_tokens)
        answers_chat = _is_chat(prompt) if chat is None else chat
        completion = Completion(
            tokens,
            params,
            ends=ends,
            max_context=self.max_context,
            priority=priority,
            user=user,
            cache_salt=cache_salt,
        )
        return Answer(completion, ends, self._parser(tokens, answers_chat), self.load_s)

    def _parser(self, prompt: Sequence[int], chat: bool) -> Parser | None:
        """Makes deltas of the answer's tokens; None without a tokenizer."""
        if self._tokenizer is None:
            return None
        if chat and self._tokenizer.chats:
            return ChatParser(self._tokenizer, prompt)
        return PlainText(self._tokenizer.stream(prompt))

    def _encode(self, prompt: Prompt, tools: Tools | None = None) -> list[int]:
        if _is_chat(prompt):
            return self._checked(self.tokenizer.chat(cast(Messages, prompt), tools=tools))
        if tools:
            raise InputError("tools need a prompt of messages: give messages instead of a text or ids")
        if isinstance(prompt, str):
            if not prompt:
                raise InputError("the prompt is empty: give some text")
            return self._checked(self.tokenizer.encode(prompt))
        return self._checked(prompt)

    def _checked(self, token_ids: Any) -> list[int]:
        """Token ids as ints, within the vocabulary and the context."""
        wrong = isinstance(token_ids, str | bytes | bytearray) or getattr(token_ids, "ndim", 1) != 1
        if wrong or not isinstance(token_ids, Sequence | np.ndarray):
            raise InputError(f"a prompt is text, a list of token ids, or a list of messages, not {token_ids!r:.40}")
        if not len(token_ids):
            raise InputError("the prompt is empty: give at least one token")
        if len(token_ids) > self.max_context:
            raise InputError(
                f"the prompt has {len(token_ids)} tokens, the context holds {self.max_context}: "
                f"shorten it or raise max_context"
            )
        for token in token_ids:
            if isinstance(token, bool) or not isinstance(token, int | np.integer):
                raise InputError(f"token id {token!r} is not an integer")
            if not 0 <= token < self.config.vocab_size:
                raise InputError(f"token id {token} is outside the vocabulary of {self.config.vocab_size}")
        return [int(token) for token in token_ids]


def _offered(tools: Tools | None, tool_choice: str) -> Tools | None:
    """The tools that the prompt shows the model."""
    if tool_choice not in ("auto", "none"):
        raise InputError(f'tool_choice={tool_choice!r:.80} must be "auto" or "none"')
    return None if tool_choice == "none" else tools


def _is_chat(prompt: Any) -> bool:
    """Whether it is a list of messages."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _is_several(prompt: Any) -> bool:
    """Whether it is a list of prompts: texts, lists of ids or lists of messages; not one of these itself."""
    if isinstance(prompt, str | bytes | bytearray) or not isinstance(prompt, Sequence) or not len(prompt):
        return False
    return isinstance(prompt[0], str | Sequence | np.ndarray)


def _arranged(
    generations: list[Generation], several: bool, n: int | None
) -> Generation | list[Generation] | list[list[Generation]]:
    """The answers as the caller wants them: of one prompt or several, one or `n` to each."""
    if n is None:
        return generations if several else generations[0]
    groups = [generations[begin : begin + n] for begin in range(0, len(generations), n)]
    return groups if several else groups[0]
