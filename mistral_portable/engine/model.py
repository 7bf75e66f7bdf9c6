"""Model: a loaded checkpoint on a backend, with the calls that users make."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from mistral_portable.answers import ToolChoice, Tools, offered
from mistral_portable.boundary import Program
from mistral_portable.cache import CacheManager, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.engine.adapters import Adapters, Chosen
from mistral_portable.engine.answer_maker import AnswerMaker, Params
from mistral_portable.engine.chunks import CHUNK
from mistral_portable.engine.core import Core
from mistral_portable.engine.drafting import Drafting
from mistral_portable.engine.embedding import Embedding, Pooling
from mistral_portable.engine.generation import Generation
from mistral_portable.engine.loop import Loop
from mistral_portable.engine.prompts import Messages, Prompt, Prompts, is_several
from mistral_portable.engine.request import Scoring
from mistral_portable.engine.session_files import SessionFiles
from mistral_portable.engine.steps import Text
from mistral_portable.engine.stream import Answer, AsyncTextStreamer, TextStreamer
from mistral_portable.errors import InputError
from mistral_portable.grammar import Schema
from mistral_portable.sampling import Grammar, SamplingParams
from mistral_portable.tokenizer import Tokenizer

__all__ = ["Model"]


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
        embeddings: bool = False,
        ends: Iterable[int] = (),
        adapters: Adapters | None = None,
        generation: Mapping[str, Any] | None = None,
        drafting: Drafting | None = None,
        draft_model: "Model | None" = None,
    ) -> None:
        """Made by `load`. embeddings: whether the program has that output. ends: ids that end a text, beside the
        config's and the tokenizer's. adapters: those of its program; None: it has none. generation: the fields of
        generation_config.json. drafting: what steps try. draft_model: is closed with it."""
        self.config = config
        self.backend = backend
        self.core = core
        self.source = source
        self.load_s = load_s
        self.embeddings = embeddings
        """Whether `embed` is possible."""
        self.loop = Loop(core, drafting=drafting)
        size = config.vocab_size
        self._prompts = Prompts(
            tokenizer,
            vocab_size=size,
            max_context=self.max_context,
            longest=config.max_position_embeddings,
            source=source,
        )
        own = frozenset[int]() if tokenizer is None else tokenizer.end_ids
        self.end_tokens = set(config.eos_token_ids) | {id for id in (*own, *ends) if id < size}
        """The ids that end a text: those of config.json and generation_config.json, GGUF's, and the tokenizer's."""
        self.generation = generation or {}
        """The fields of the checkpoint's generation_config.json, which `generate(..., sampling="model")` uses."""
        self._adapters = adapters = Adapters({}, None, config) if adapters is None else adapters
        self._answers = AnswerMaker(
            self._prompts,
            adapters,
            end_tokens=self.end_tokens,
            vocab_size=size,
            max_context=self.max_context,
            load_s=load_s,
            stated=self.generation,
        )
        self._draft_model = draft_model
        self._sessions = SessionFiles(core, self.loop, adapters, backend=backend, vocab_size=size)

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
        return self._prompts.tokenizer

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that it was loaded with."""
        return self._adapters.names

    def digest(self, adapter: Chosen = None) -> str:
        """32 hexadecimal digits that name what computes an answer: the weights, and the adapters of a call with their
        weights. adapter: as calls have it. Raises InputError for an adapter that is not there."""
        return self._adapters.digest(self.manager.model, self._adapters.weights(adapter))

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be given and is returned; else token ids only."""
        return self._prompts.has_tokenizer

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
        temperature=0`, which replace those of `params`; `sampling="model"`: fields that are left out are those of the
        model's generation_config.json (`stated_sampling`); `tools`, `tool_choice`, `parallel_tool_calls` and `chat`, as
        `answer` has them; `reasoning_effort`, for messages, as `chat` has it;
        `priority` (0; among requests of several threads the higher one comes first); `user` (""; users share the steps
        alike); `cache_salt` (""; what others have asked is found in the cache by those with the same one only, so that
        nobody learns of it by how fast an answer begins); `adapter` (the name of one of `adapters`, weights of several
        by name, {} for none; None: what `load` was told); `draft` ("auto": as `load` was told; "off": none; a number:
        at most so many tokens in a step); `prediction` (a text, or ids, much of which the answer will repeat, such as
        the file that it changes: it comes sooner then, and is the same); one of
        `schema`, `grammar` and `regex`, which the answer then keeps (`compile_grammar`).

        Raises InputError for an empty or too long prompt, an id outside the vocabulary, a bad sampling value or rule,
        CapacityError if the cache does not fit into memory, NumericsError for logits that are not finite, ClosedError
        after `close`, BusyError if `lane` holds every lane.
        """
        answers = self._answers.make_all(prompt, params, n, options)
        by_request = {answer.completion: answer for answer in answers}
        with closing(self.loop.run(list(by_request))) as made:
            for completion in made:
                self._advance(by_request[completion])
        return _arranged([answer.generation for answer in answers], is_several(prompt), n)

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
        answers = self._answers.make_all(prompt, params, n, options)
        by_request = {answer.completion: answer for answer in answers}
        async with aclosing(self.loop.arun(list(by_request))) as made:
            async for completion in made:
                self._advance(by_request[completion])
        return _arranged([answer.generation for answer in answers], is_several(prompt), n)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> TextStreamer:
        """Continue `prompt`, yielding pieces of text as they are ready (TextStreamer). Errors: those of `generate`."""
        return TextStreamer(self.loop, self.answer(prompt, params, **options))

    def astream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> AsyncTextStreamer:
        """`stream` for coroutines: `async for piece in model.astream(prompt)`, or, for the tool calls and the reasoning
        of a chat's answer, too, `async for delta in model.astream(messages, tools=tools).deltas()`."""
        return AsyncTextStreamer(self.loop, self.answer(prompt, params, **options))

    def chat(
        self,
        messages: Messages | str,
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        reasoning_effort: str | None = None,
        **options: Any,
    ) -> Generation:
        """Answer the last message; a text is one message, the user's.

        tools: function schemas, as in OpenAI's and Mistral's API; the functions that the answer calls are in
        `Generation.tool_calls`. reasoning_effort: how much the model is to reason, in a word that it knows, such as
        "high". tool_choice, options: those of `answer` and `generate`.
        """
        shown = offered(tools, tool_choice)
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        tokens = self.tokenizer.chat(said, tools=shown, reasoning_effort=reasoning_effort)
        generation: Generation = self.generate(
            tokens, params, chat=True, tools=tools, tool_choice=tool_choice, **options
        )
        return generation

    @overload
    def logits(
        self, token_ids: Sequence[int], chunk: int | None = None, *, adapter: Chosen = None
    ) -> NDArray[np.float32]: ...
    @overload
    def logits(
        self, token_ids: Sequence[Sequence[int]], chunk: int | None = None, *, adapter: Chosen = None
    ) -> list[NDArray[np.float32]]: ...
    def logits(
        self,
        token_ids: Sequence[int] | Sequence[Sequence[int]],
        chunk: int | None = None,
        *,
        adapter: Chosen = None,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Teacher-forced logits, float32 [T, vocab_size]: row t predicts token t + 1.

        A list of sequences gives a list of arrays, run as one ragged batch. `chunk` is the number of tokens per
        sequence and step (default: 512); the result does not depend on it, except for rounding where the program is not
        `batch_invariant`. adapter: as `generate` takes it. Raises InputError for ids or chunks out of range, and the
        errors of `generate`.
        """
        spec, weights = self.manager.spec, self._adapters.weights(adapter)
        if chunk is not None and not (isinstance(chunk, int) and 1 <= chunk <= spec.max_chunk):
            raise InputError(f"chunk={chunk!r} must be an integer from 1 to {spec.max_chunk}")
        nested = isinstance(token_ids, Sequence | np.ndarray) and len(token_ids) > 0
        several = nested and isinstance(token_ids[0], Sequence | np.ndarray) and not isinstance(token_ids[0], str)
        if several:
            sequences = [self._prompts.checked(ids) for ids in cast(Sequence[Sequence[int]], token_ids)]
        else:
            sequences = [self._prompts.checked(token_ids)]
        parts: dict[Scoring, list[NDArray[np.float32]]] = {
            Scoring(ids, chunk=chunk or CHUNK, adapters=weights): [] for ids in sequences
        }
        with closing(self.loop.run(list(parts))) as made:
            for scoring in made:
                parts[scoring].append(scoring.next())
        found = [np.concatenate(some) for some in parts.values()]
        return found if several else found[0]

    def logits_parts(
        self, token_ids: Sequence[int], *, first: int = 0, adapter: Chosen = None
    ) -> Iterator[NDArray[np.float32]]:
        """`logits` behind the tokens from index `first` on, float32 [rows, vocab_size], a step's rows at a time: those
        of a long text need not be in memory together. Raises the errors of `logits`."""
        tokens = self._prompts.checked(token_ids)
        if not (isinstance(first, int) and 0 <= first < len(tokens)):
            raise InputError(f"first={first!r} must be an index of the {len(tokens)} tokens")
        scoring = Scoring(tokens, first=first, chunk=CHUNK, adapters=self._adapters.weights(adapter))
        with closing(self.loop.run([scoring])) as made:
            for _ in made:
                yield scoring.next()

    def embed(
        self, prompts: Sequence[Prompt], *, pooling: Pooling = "last", adapter: Chosen = None
    ) -> NDArray[np.float32]:
        """Make a vector of length 1 of each prompt, float32 [prompts, hidden_size]; they run together.

        It is the hidden state after the final norm, of which logits are made: the last token's, or with "mean" the mean
        of all tokens', divided by its Euclidean length. Models that were trained for embeddings say which they want;
        others give vectors of little use. adapter: as `generate` takes it.

        Raises InputError if the model was loaded without `embeddings=True`, and the errors of `logits`.
        """
        embeddings = self._embeddings(prompts, pooling, adapter)
        with closing(self.loop.run(list(embeddings))) as made:
            for scoring in made:
                embeddings[scoring].add(scoring.next())
        return np.stack([embedding.vector for embedding in embeddings.values()])

    async def aembed(
        self, prompts: Sequence[Prompt], *, pooling: Pooling = "last", adapter: Chosen = None
    ) -> NDArray[np.float32]:
        """`embed` for coroutines."""
        embeddings = self._embeddings(prompts, pooling, adapter)
        async with aclosing(self.loop.arun(list(embeddings))) as made:
            async for scoring in made:
                embeddings[scoring].add(scoring.next())
        return np.stack([embedding.vector for embedding in embeddings.values()])

    def _embeddings(self, prompts: Sequence[Prompt], pooling: Pooling, adapter: Chosen) -> dict[Scoring, Embedding]:
        if not self.embeddings:
            raise InputError("this model was loaded without embeddings: load(..., embeddings=True), serve --embeddings")
        if isinstance(prompts, str) or not len(prompts):
            raise InputError(f"prompts={prompts!r:.40} must be a list of one prompt or more")
        size, weights = self.config.vocab_size, self._adapters.weights(adapter)
        made = [Embedding(self.encode(prompt), pooling, size, weights) for prompt in prompts]
        return {embedding.scoring: embedding for embedding in made}

    def save_session(
        self,
        path: str | Path,
        prompt: Prompt | None = None,
        *,
        messages: Messages | None = None,
        adapter: Chosen = None,
    ) -> int:
        """Write the longest known beginning of a prompt, its keys and values, to a file; return its number of tokens.

        prompt: text, token ids or messages; None: of the text, prompt and answer, that ended last. Texts with a
        `cache_salt` are not saved. messages: a chat, to be kept in the file. adapter: that the prompt was read with, as
        `generate` takes it; without a prompt it is that of the text. The file is replaced as a whole: a process
        that dies here leaves the old one. It holds the text, readable by whoever may read the file.

        Raises InputError if nothing is known of the prompt or the file cannot be written, ClosedError after `close`,
        BusyError if every lane is taken, CapacityError if there is no memory for the copy.
        """
        if prompt is None and adapter is not None:
            raise InputError(f"adapter={adapter!r:.40} is of a prompt: give the prompt, too, or leave it out")
        wanted = None if prompt is None else Text(self.encode(prompt), self._adapters.weights(adapter))
        return self._sessions.save(path, wanted, messages)

    def load_session(self, path: str | Path) -> int:
        """Read a file of `save_session`; return the number of its tokens that are known from now on.

        Prompts that begin with them need not read them again. They may be fewer than were saved: `cache_bytes` limits
        them. Prompts find them with the adapters that they were saved with.

        Raises InputError if there is no such file or it is no session; CacheError, an InputError, if it is one of other
        weights, adapters or settings, or damaged; ClosedError after `close`, BusyError if every lane is taken,
        CapacityError if there is no memory for it.
        """
        return self._sessions.load(path)

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
        if self._draft_model is not None:
            self._draft_model.close()

    def __repr__(self) -> str:
        return (
            f"<Model {self.source} on {self.backend}: {self.config.num_hidden_layers} layers of "
            f"{self.config.hidden_size}, {self.config.vocab_size} tokens, context {self.max_context}>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def compile_grammar(
        self, *, schema: Schema | None = None, grammar: str | None = None, regex: str | None = None
    ) -> Grammar:
        """Compile one of three rules for `SamplingParams(grammar=...)`; the newest are kept, and need not be again.

        schema: a JSON schema: a mapping, its text, or a pydantic model class. grammar: in llguidance's dialect of Lark.
        regex: a regular expression (Rust's) for the whole answer.

        Raises InputError for a rule that is bad, too large or too complex, or that cannot be kept to the letter,
        also for a checkpoint without a tokenizer; BackendError without llguidance.
        """
        return self._answers.compile_grammar(schema=schema, grammar=grammar, regex=regex)

    def answer(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Answer:
        """Make a request of one prompt for `loop.run`. options: those of `generate`, and:

        tools: the functions that may be called, beside messages, or ids that show them. tool_choice: "auto"; "none" to
        leave the tools out of the prompt; "required" (also "any") if the answer must call one, or
        {"type": "function", "function": {"name": NAME}} if it must call that one: then its arguments keep the
        function's `parameters`. parallel_tool_calls: whether it may call several; else it ends behind the first one.
        chat: whether the prompt is a chat's, in whose answer tool calls and reasoning are told from content; None: if
        it is messages. True is for ids that `Tokenizer.chat` has made.

        Raises the errors of `generate` that are about its arguments.
        """
        [answer] = self.answers(prompt, params, **options)
        return answer

    def answers(self, prompt: Prompt, params: SamplingParams | None = None, n: int = 1, **options: Any) -> list[Answer]:
        """Make `n` requests of one prompt, which is encoded once. Arguments and errors: those of `answer`. With a seed,
        request i (from 0 on) has seed + i."""
        return self._answers.make(prompt, params, n, **options)

    def encode(self, prompt: Prompt, tools: Tools | None = None) -> list[int]:
        """The ids of a prompt, as `generate` reads it. tools: beside messages only.

        Raises InputError if it is empty, too long or no prompt, TokenizerError for a chat that the template refuses.
        """
        return self._prompts.encode(prompt, tools)

    def _advance(self, answer: Answer) -> None:
        answer.take()
        if answer.done:
            self.loop.leave(answer.completion)


def _arranged(
    generations: list[Generation], several: bool, n: int | None
) -> Generation | list[Generation] | list[list[Generation]]:
    """The answers as the caller wants them: of one prompt or several, one or `n` to each."""
    if n is None:
        return generations if several else generations[0]
    groups = [generations[begin : begin + n] for begin in range(0, len(generations), n)]
    return groups if several else groups[0]
