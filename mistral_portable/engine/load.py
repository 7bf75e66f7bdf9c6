"""load(): checkpoint -> graph -> passes -> program -> Model."""

import os
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from mistral_portable.boundary import BACKEND_QUANTIZE, ExecutorOptions, Program, check_options, prepare
from mistral_portable.boundary.registry import select
from mistral_portable.cache import CacheBudget, CacheManager, CacheSpec
from mistral_portable.config import Window
from mistral_portable.engine.adapters import Chosen
from mistral_portable.engine.chunks import spec_of_plans
from mistral_portable.engine.core import Core
from mistral_portable.engine.drafting import Drafting, DraftSource
from mistral_portable.engine.model import Model
from mistral_portable.engine.model_drafting import ModelDrafting
from mistral_portable.engine.opening import Opening
from mistral_portable.engine.same_vocabulary import require_same_vocabulary
from mistral_portable.engine.stages import choose_cuts, start_stages
from mistral_portable.engine.suffix_drafting import SuffixDrafting
from mistral_portable.errors import InputError, MistralPortableError
from mistral_portable.spelling import checks_names
from mistral_portable.tokenizer import Tokenizer, TokenizerSource, load_tokenizer
from mistral_portable.tokenizer.open_common import UnknownVersionError

__all__ = ["load"]

_KEPT_BYTES = 2 * 2**30  # 16,384 tokens of Mistral 7B in float16
_KEPT_SHARE = 8  # at most this part of the machine's memory: an eighth


@checks_names
def load(
    model: str | Path = "tiny",
    *,
    backend: str = "auto",
    dtype: str | None = None,
    quantize: str | None = None,
    kv_cache: str | None = None,
    device: str | None = None,
    attention: str | None = None,
    tensor_parallel: int | None = None,
    stages: int | None = None,
    ray: str | None = None,
    window: Window | Literal["config"] = "config",
    max_context: int | None = None,
    max_lanes: int = 8,
    cache_bytes: int | None = None,
    threads: int | None = None,
    revision: str | None = None,
    embeddings: bool = False,
    chat_template: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    adapter: Chosen = None,
    draft: str | Path | Model = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> Model:
    """Open a checkpoint and make it ready to run.

    model: "tiny" (the embedded model), a folder, a .gguf file, or a hub id (`owner/name`, `owner/name:file.gguf`).
    backend: "auto" takes the best one that can run here.
    dtype: the float type of the arithmetic, or "int8" (linears over quantized weights take int8 inputs, everything
    else is float32); the executor's choice if None.
    quantize: "q4_0", "q4_1", "q5_0", "q5_1" or "q8_0": float matrices become such ggml blocks as they are read, as
    `quantize` makes them; "nf4", "fp4" or "int8": bitsandbytes' types, of the torch executor.
    kv_cache: the type of cached keys and values ("float32", "float16", "q8_0"); the executor's choice if None.
    device, attention: where the torch executor runs ("cuda", "cuda:1", "mps", "cpu") and its attention kernel
    ("triton", "flash_attn", "varlen", "flex", "sdpa", "eager"); the best one if None.
    tensor_parallel: number of processes, started by torchrun, that share the model on the torch executor. 1 or None:
    this one alone. Of several only the first one returns; the others follow it until it closes the model or ends, and
    raise SystemExit then.
    stages: number of processes that each have a part of the layers, with their weights and cache (docs/scaling.md);
    scripts then need `if __name__ == "__main__":`. They take turns with all CPUs, or, if `threads` are given, those of
    each, work on several sequences at a time. ray: the address of a Ray cluster that runs the stages, in actors, at the
    same time; "local": one that is started here.
    window: "config" keeps the checkpoint's, None is full attention, an int replaces it in every layer.
    max_context: tokens a sequence may reach; the model's own limit if None. max_lanes: sequences that run at a time,
    further ones wait; lanes take memory only when used. cache_bytes: limit of keys and values of all lanes, and of
    texts that have ended, which are kept so that a prompt that begins alike is not read again; 0 keeps none; None
    keeps up to 2 GiB, or an eighth of the machine's memory, and lanes take what they need. threads: CPU threads; by
    default the physical cores that this process may use. revision: branch, tag or commit of a hub id.
    embeddings: make `Model.embed` possible; each step then also returns the hidden states of its rows.
    chat_template: in place of the model's: a file with a Jinja template, the template itself, the name of one of the
    model's, or "mistral" for Mistral's.
    adapters: paths of low-rank adapters (LoRA), by names of your choice, that calls may ask for (docs/adapters.md).
    adapter: what calls have that ask for none: a name of these, or weights of several by name.
    draft: "auto": where a text repeats itself, steps try several tokens on executors whose bits do not depend on the
    batch (`Program.batch_invariant`); "suffix": on any; "off": never. A model with the same vocabulary, or what `model`
    may be: it says what the text may go on with; loaded on the same backend, with the same `dtype`, `kv_cache`,
    `device`, `threads` and `cache_bytes` (as much again). A loaded one lends its lanes, two for each text, but for one.
    The text is the same (docs/drafts.md).
    progress: called as (what, done, total), in any unit, while files are downloaded, weights read and kernels compiled.

    Things that the user should know (an inferred window, say) are issued as warnings.
    Raises MistralPortableError: CheckpointError, ConfigError, TokenizerError, InputError, BackendError;
    CapacityError if the model does not fit into memory.
    """
    begin = time.perf_counter()
    chosen = select(backend)
    for name, value, least in (
        ("max_context", max_context, 1),
        ("max_lanes", max_lanes, 1),
        ("cache_bytes", cache_bytes, 0),
        ("threads", threads, 1),
        ("tensor_parallel", tensor_parallel, 1),
        ("stages", stages, 1),
    ):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InputError(f"{name}={value!r} must be an integer from {least} on")
    processes = tensor_parallel or 1
    if progress is not None and not callable(progress):
        raise InputError(f"progress={progress!r:.40} must be a function of (what, done, total)")
    own, blocks = (quantize, None) if quantize in BACKEND_QUANTIZE else (None, quantize)
    options = ExecutorOptions(
        dtype=dtype,
        threads=threads,
        progress=progress,
        kv_cache=kv_cache,
        device=device,
        attention=attention,
        quantize=own,
        tensor_parallel=processes,
    )
    check_options(chosen, options)
    if not isinstance(embeddings, bool):
        raise InputError(f"embeddings={embeddings!r:.40} must be True or False")
    if not isinstance(draft, str | Path | Model):
        raise InputError(f'draft={draft!r:.40} must be "auto", "suffix", "off" or a model')
    if draft not in ("auto", "suffix", "off") and processes > 1:
        raise InputError(f"draft={str(draft)!r:.40} does not go with tensor_parallel: say 'suffix', or leave it out")
    if adapters and processes > 1:
        raise InputError("adapters and tensor_parallel do not go together: leave out one of them, or merge the adapter")
    if stages is not None and processes > 1:
        raise InputError("stages and tensor_parallel do not go together: leave out one of them")
    if ray is not None and stages is None:
        raise InputError(f"ray={ray!r:.60} is where stages run: give stages, too, the number of them")
    opening = Opening(
        model=model,
        revision=revision,
        backend=chosen.name,
        options=options,
        quantize=blocks,
        window=window,
        max_context=max_context,
        max_lanes=max_lanes,
        embeddings=embeddings,
        adapters={} if adapters is None else adapters,
        adapter=adapter,
    )
    opened = opening.open()
    checkpoint, config = opened.checkpoint, opened.config
    for notice in checkpoint.notices:
        warnings.warn(notice, stacklevel=3)
    cuts = None if stages is None else choose_cuts(opened, stages)
    with ExitStack() as closing:
        with ThreadPoolExecutor(1, "mistral_portable-tokenizer") as aside:
            reading = aside.submit(_read_tokenizer, checkpoint.tokenizer, chat_template)
            if checkpoint.format == "gguf":  # the first step unpacks rows of the embedding table: 0.1 s
                aside.submit(import_module, "gguf")
            options = replace(options, progress=partial(_report, progress, reading))
            lent = draft if isinstance(draft, Model) else None
            draft_model = None
            if lent is None and draft not in ("auto", "suffix", "off"):
                same: dict[str, Any] = {"dtype": dtype, "kv_cache": kv_cache, "device": device, "threads": threads}
                # Lanes for each text and its draft; one stays free.
                same |= {"backend": chosen.name, "cache_bytes": cache_bytes, "max_lanes": 2 * max_lanes + 1}
                draft_model = closing.enter_context(_draft_model(draft, progress, same))
            drafter = lent or draft_model
            if drafter is not None:
                require_same_vocabulary(config.vocab_size, reading.result()[0], drafter)
            elif processes > 1 or cuts is not None:
                reading.result()  # before other processes are met or started: they would wait
            program = (
                prepare(chosen, opened.graph, opened.tensors, opened.spec, options)
                if cuts is None
                else start_stages(opening, opened, chosen, cuts, ray)
            )
            closing.callback(program.close)
            tokenizer, notice = reading.result()
        if notice:
            warnings.warn(notice, stacklevel=3)
        source = _draft_source(drafter or draft, program.batch_invariant)
        spec = spec_of_plans(opened.spec, program, limited=bool(cache_bytes))
        budget = _budget(program, spec, cache_bytes)
        manager = CacheManager(spec, model=opened.fingerprint, budget=budget)
        closing.pop_all()
    return Model(
        config=config,
        backend=chosen.name,
        core=Core(program, manager, given=opened.graph.given),
        tokenizer=tokenizer,
        source=str(checkpoint.path),
        load_s=time.perf_counter() - begin,
        embeddings=embeddings,
        ends=checkpoint.ends,
        adapters=opened.adapters,
        generation=checkpoint.generation,
        drafting=None if source is None else Drafting(source, vocab_size=config.vocab_size),
        draft_model=draft_model,
    )


_Tokenizer = tuple[Tokenizer | None, str]
"""A tokenizer, or why there is none, where the model can be used without."""


def _read_tokenizer(source: TokenizerSource | None, chat_template: str | Path | None) -> _Tokenizer:
    if source is None:
        return None, ""
    try:
        return load_tokenizer(source, chat_template), ""
    except UnknownVersionError as error:
        return None, f"{error}. Until then give token ids instead of text."


def _report(
    progress: Callable[[str, int, int], None] | None, reading: Future[_Tokenizer], what: str, done: int, total: int
) -> None:
    """Report that weights are read, or raise the error of the tokenizer, for which they are read in vain."""
    if reading.done():
        reading.result()
    if progress is not None:
        progress(what, done, total)


def _draft_model(
    draft: str | Path | Model, progress: Callable[[str, int, int], None] | None, options: Mapping[str, Any]
) -> Model:
    """Load a draft model. Raises the errors of `load`, which say whose they are."""
    try:
        return load(cast(str | Path, draft), draft="off", progress=progress, **options)
    except MistralPortableError as error:
        raise type(error)(f'draft={str(draft)!r:.60} must be "auto", "suffix", "off" or a model ({error})') from error


def _draft_source(draft: str | Path | Model, by_default: bool) -> DraftSource | None:
    """Choose what proposes drafts. by_default: whether "auto" does: the bits of answers do not depend on the batch."""
    if isinstance(draft, Model):
        return ModelDrafting(draft.core)
    return SuffixDrafting() if draft == "suffix" or (draft == "auto" and by_default) else None


def _budget(program: Program, spec: CacheSpec, cache_bytes: int | None) -> CacheBudget | None:
    if cache_bytes == 0:
        return None
    slot_bytes = tuple(program.slot_bytes(group) for group in range(len(spec.groups)))
    if cache_bytes is not None:
        return CacheBudget(cache_bytes, slot_bytes, strict=True)
    return CacheBudget(min(_KEPT_BYTES, _memory_bytes() // _KEPT_SHARE), slot_bytes)


def _memory_bytes() -> int:
    """The machine's memory; 8 GiB where the system does not tell (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30
