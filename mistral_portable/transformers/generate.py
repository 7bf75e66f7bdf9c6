"""Generates: `generate` and what belongs to it, for the causal LM."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.engine.drafting import MOST_DRAFTED
from mistral_portable.errors import InputError
from mistral_portable.transformers.arrays import Library, as_numpy, integers, library_of
from mistral_portable.transformers.batch import Batch, read_batch
from mistral_portable.transformers.beams import Beam, Beams, search
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.checks import number, whole_number
from mistral_portable.transformers.decoder import MOST_ROWS, Outputs
from mistral_portable.transformers.generate_call import (
    Call,
    allowed_ids,
    checked_config,
    criteria_of,
    custom_rules,
    drawing,
    most_new,
    prompt_of,
)
from mistral_portable.transformers.generation import continue_rows, inferred_mask, require_room
from mistral_portable.transformers.generation_config import GenerationConfig
from mistral_portable.transformers.guidance import Guidance
from mistral_portable.transformers.logits_rules import logits_rules
from mistral_portable.transformers.new_caches import DynamicCache, StaticCache
from mistral_portable.transformers.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from mistral_portable.transformers.pretrained_model import MistralPreTrainedModel
from mistral_portable.transformers.seeds import fresh_seed
from mistral_portable.transformers.stepwise import Record, Rules, advance, draw_rows
from mistral_portable.transformers.transition_scores import transition_scores
from mistral_portable.transformers.watch import Watch, checked_streamer

__all__ = ["Generates"]


class Generates(MistralPreTrainedModel):
    """A model that continues texts."""

    def generate(
        self,
        inputs: Any = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Callable[[int, Any], Any] | None = None,
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: Any = None,
        negative_prompt_ids: Any = None,
        negative_prompt_attention_mask: Any = None,
        custom_generate: Any = None,
        *,
        input_ids: Any = None,
        inputs_embeds: Any = None,
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        tokenizer: Any = None,
        seed: int | None = None,
        **options: Any,
    ) -> Any:
        """Continue each row: int64 [B * num_return_sequences, T + new]; rows that end early are padded on the right.

        inputs (or input_ids): integers [B, T], with the attention_mask of their padding; without one, a padding token
        that is no end token is padding wherever it is, as in transformers. inputs_embeds: floats [B, T, hidden_size] in
        their place; the result is then int64 [B * num_return_sequences, new].
        generation_config: a GenerationConfig; options: its fields, which come first, also those that are None. What
        both leave open is as the model's `generation_config` says.
        seed: row r draws with seed + r. tokenizer: of the model, for `stop_strings`.
        logits_processor, prefix_allowed_tokens_fn: rules of the caller's for the next token, for all rows at once, or
        of the allowed ids behind a row. stopping_criteria: functions that end rows. streamer: is given tokens as they
        are made. past_key_values (newer: cache): holds the beginning of the rows, and then also the answers; `inputs`
        are all ids, or, with a mask of all, those that follow. assistant_model: a smaller model, whose tokens are
        tried; it changes no token. negative_prompt_ids and their mask: for guidance_scale.

        Fields: max_new_tokens (20), max_length (with the prompt's columns), min_new_tokens, min_length, max_time
        (seconds), stop_strings, eos_token_id, pad_token_id (by default the config's; else the first end token pads);
        do_sample, temperature, top_k (50), top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff; repetition_penalty,
        no_repeat_ngram_size, encoder_repetition_penalty, encoder_no_repeat_ngram_size, bad_words_ids, suppress_tokens,
        begin_suppress_tokens, sequence_bias, forced_bos_token_id, forced_eos_token_id,
        exponential_decay_length_penalty, remove_invalid_values, renormalize_logits, guidance_scale; num_beams,
        num_return_sequences, length_penalty, early_stopping; prompt_lookup_num_tokens: steps try what the text
        suggests, which changes no token; return_dict_in_generate, for a GenerateDecoderOnlyOutput, with output_scores,
        output_logits, output_attentions, output_hidden_states and use_cache. Others are taken with values that ask for
        nothing.

        Raises InputError (a ValueError) for arguments that do not fit or are not supported, NumericsError for logits
        that are NaN or infinite, ClosedError if the model is closed, CapacityError without memory for even one row,
        BusyError if a cache or beams need more rows than are left, and what the caller's functions raise.
        """
        given = [prompt for prompt in (inputs, input_ids, inputs_embeds) if prompt is not None]
        if len(given) != 1:
            raise InputError("generate takes one of inputs and input_ids, token ids [batch, tokens], or inputs_embeds")
        refused = {"synced_gpus": synced_gpus, "custom_generate": custom_generate}
        if not isinstance(assistant_model, Generates | None):
            raise InputError(f"assistant_model={assistant_model!r:.60}: pass a MistralForCausalLM of this package")
        config = checked_config({**refused, **options}, generation_config, self.generation_config)
        library = library_of(given[0])
        past = past_key_values if cache is None else cache
        self.require_own(past)
        prompt = as_numpy("input_ids", given[0], 2) if inputs_embeds is None else as_numpy("inputs_embeds", given[0], 3)
        ends = self._ends(config)
        pad = self.config.pad_token_id if config.pad_token_id is None else config.pad_token_id
        pad = None if pad is None else int(integers("pad_token_id", pad, ()))
        mask = None if attention_mask is None else as_numpy("attention_mask", attention_mask, 2)
        if mask is None and inputs_embeds is None:
            mask = inferred_mask(prompt, pad, ends)
        copies = 1 if config.num_beams > 1 else config.num_return_sequences
        prompt, mask = np.repeat(prompt, copies, 0), None if mask is None else np.repeat(mask, copies, 0)
        new = past if isinstance(past, DynamicCache) and past.is_new else None
        begun = past if new is None else None
        batch = self._unread(prompt, mask, begun)
        most = most_new(config, prompt.shape[1], self.decoder.config.max_position_embeddings)
        ids = np.zeros((len(prompt), 0), np.int64) if prompt.ndim == 3 else prompt.astype(np.int64)
        require_room(batch, [0] * len(ids) if begun is None else list(map(len, begun.columns)), most, self._context)
        if isinstance(past, StaticCache):
            past.require_room(batch.shape[1] + most - 1)
        prompts = [prompt_of(row, mask, number, copies) for number, row in enumerate(ids)]
        allowed = None if prefix_allowed_tokens_fn is None else allowed_ids(prefix_allowed_tokens_fn, library)
        rules = [
            logits_rules(config, one, ends=ends, most=most, vocab_size=self._vocab_size, allowed=allowed)
            for one in prompts
        ]
        criteria = criteria_of(config, stopping_criteria, tokenizer, library)
        watches = bool(criteria) or checked_streamer(streamer) is not None
        if streamer is not None and config.num_beams > 1:
            raise InputError("streamer: beams have no text before they end: leave it out, or pass num_beams=1")
        custom = custom_rules(logits_processor, library)
        scale = 1.0 if config.guidance_scale is None else number("guidance_scale", config.guidance_scale)
        with ExitStack() as closing:
            guidance = None
            if scale != 1:
                negative = self._negative(ids, negative_prompt_ids, negative_prompt_attention_mask, copies)
                other = self.decoder.new_cache(len(ids))
                closing.callback(other.close)
                guidance = Guidance(self.decoder, other, negative, scale)
            call = Call(
                config,
                ids,
                batch,
                prompts,
                ends,
                next(iter(ends), 0) if pad is None else pad,
                most,
                drawing(config, most, fresh_seed() if seed is None else seed),
                Rules(rules, guidance, custom),
                Watch(ids, library, streamer, criteria),
                watches,
                begun,
                new,
                library,
            )
            if config.num_beams > 1:
                return self._beams(call)
            by_step = bool(allowed or custom or guidance or config.remove_invalid_values)
            made = self._rows(call, assistant_model, steps=by_step)
        call.watch.end()
        return made

    def compute_transition_scores(
        self, sequences: Any, scores: Any, beam_indices: Any = None, normalize_logits: bool = False
    ) -> Any:
        """Return the score of each generated token, float32 [B, new], an array of the scores' library.

        sequences, scores, beam_indices: of an output of `generate`. normalize_logits: whether to make each step's
        scores logarithms of probabilities first. Behind the end of a beam the score is 0.

        Raises InputError for arrays that do not fit together.
        """
        made = [as_numpy("scores", step, 2) for step in scores]
        if not made:
            raise InputError("scores are empty: pass those of return_dict_in_generate=True, output_scores=True")
        rows = None if beam_indices is None else integers("beam_indices", beam_indices)
        found = transition_scores(integers("sequences", sequences), made, rows, normalize_logits)
        return library_of(scores[0]).make(found)

    @property
    def _context(self) -> int:
        return self.decoder.config.max_position_embeddings

    @property
    def _vocab_size(self) -> int:
        return self.decoder.config.vocab_size

    def _ends(self, config: GenerationConfig) -> list[int]:
        if config.eos_token_id is None:
            return list(self.decoder.config.eos_token_ids)
        return [int(end) for end in integers("eos_token_id", config.eos_token_id).ravel()]

    def _unread(self, prompt: NDArray[Any], mask: NDArray[Any] | None, past: Cache | None) -> Batch:
        """The part of a prompt that is not in the cache; one as wide as its mask begins with what is in there."""
        if past is None:
            return read_batch(prompt, mask, None, [np.zeros(0, np.intp)] * len(prompt), 0, self.decoder.config)
        if len(past) != len(prompt):
            raise InputError(f"past_key_values have {len(past)} rows, and inputs {len(prompt)}: copy rows with take")
        past.require_open()
        known = past.get_seq_length()
        if mask is None or mask.shape[1] == prompt.shape[1]:
            if prompt.shape[1] <= known:
                raise InputError(
                    f"inputs have {prompt.shape[1]} columns, and past_key_values {known}: pass all ids and more, "
                    "or those that follow with the attention_mask of all"
                )
            prompt = prompt[:, known:]
        return read_batch(prompt, mask, None, past.columns, known, self.decoder.config)

    def _negative(self, ids: NDArray[np.int64], negative: Any, mask: Any, copies: int) -> Batch:
        """The prompts that guidance moves away from: by default the last token of each row."""
        prompt = ids[:, -1:] if negative is None else as_numpy("negative_prompt_ids", negative, 2)
        kept = None if mask is None else as_numpy("negative_prompt_attention_mask", mask, 2)
        if negative is not None:
            prompt, kept = np.repeat(prompt, copies, 0), None if kept is None else np.repeat(kept, copies, 0)
        if len(prompt) != len(ids) or not prompt.size:
            raise InputError(f"negative_prompt_ids have {len(prompt)} rows: pass one, not empty, for each prompt")
        return read_batch(prompt, kept, None, [np.zeros(0, np.intp)] * len(prompt), 0, self.decoder.config)

    def _rows(self, call: Call, assistant: "Generates | None", *, steps: bool) -> Any:
        """Continue each row: in the engine's loop, or, where a cache or what steps make is wanted, step by step."""
        config, returns = call.config, bool(call.config.return_dict_in_generate)
        column = call.watch if call.watches else None
        given = call.past is not None or call.new is not None
        if not (steps or returns or given):
            drafts = whole_number("prompt_lookup_num_tokens", config.prompt_lookup_num_tokens)
            loop = self.decoder.loop
            if assistant is not None:
                loop, drafts = self.decoder.loop_beside(assistant.decoder), MOST_DRAFTED
            rules, common = call.rules.rows, (call.ends, call.pad)
            after = continue_rows(
                self.decoder, loop, call.batch, call.params, rules, *common, drafts=drafts, column=column
            )
            return call.library.make(np.concatenate([call.ids, after], axis=1))
        record = call.record()
        cache = self.decoder.new_cache(len(call.ids), call.new) if call.past is None else call.past
        keeps = given or (returns and config.use_cache)
        try:
            after = draw_rows(
                self.decoder,
                call.batch,
                cache,
                call.ids,
                call.prompts,
                call.rules,
                call.params,
                call.ends,
                call.pad,
                record,
                normalize=bool(config.renormalize_logits),
                column=column,
            )
        except BaseException:
            keeps = given
            if call.new is not None:
                call.new.forget()
            raise
        finally:
            if not keeps:
                cache.close()
        sequences = call.library.make(np.concatenate([call.ids, after], axis=1))
        if not returns:
            return sequences
        past = cache if config.use_cache else None
        return GenerateDecoderOnlyOutput(sequences, past_key_values=past, **_recorded(record, call.library))

    def _beams(self, call: Call) -> Any:
        """Search the best texts of each prompt, of as many prompts at a time as there are lanes for."""
        config = call.config
        if call.rules.guidance is not None:
            raise InputError("guidance_scale: beams have one prompt each: pass num_beams=1")
        together = call.rules.custom is not None or config.return_dict_in_generate or call.past is not None
        size = len(call.ids) if together else max(1, MOST_ROWS // (config.num_beams + 1))
        found = list[list[Beam]]()
        for first in range(0, len(call.ids), size):
            part = call.take(range(first, min(first + size, len(call.ids))))
            record = part.record()
            cache, searches = self._search(part, record)
            found += [one.best(config.num_return_sequences) for one in searches]
            if not (config.return_dict_in_generate and config.use_cache):
                cache.close()
        texts, origins, sums = _side_by_side(found, config.num_return_sequences, call.pad)
        before = np.repeat(call.ids, config.num_return_sequences, axis=0)
        sequences = call.library.make(np.concatenate([before, texts], axis=1))
        if not config.return_dict_in_generate:
            return sequences
        return GenerateBeamDecoderOnlyOutput(
            sequences,
            sequences_scores=call.library.make(sums) if config.output_scores else None,
            beam_indices=call.library.make(origins),
            past_key_values=cache if config.use_cache else None,
            **_recorded(record, call.library),
        )

    def _search(self, call: Call, record: Record) -> tuple[Cache, list[Beams]]:
        """Run the searches of a call; the cache, whose rows are those of the last step, is the caller's to close."""
        config, width, rows = call.config, call.config.num_beams, len(call.ids)
        ends, columns = np.array(call.ends, np.int64), call.ids.shape[1]
        first = self.decoder.new_cache(rows) if call.past is None else call.past.take(range(rows))
        with ExitStack() as closing:
            closing.callback(first.close)
            logits, outputs = advance(self.decoder, call.batch, first, record.exposed)
            cache = first.take(np.repeat(np.arange(rows), width).tolist())
            closing.callback(cache.close)
            first.close()
            searches = [
                Beams(
                    row * width,
                    width,
                    call.most,
                    length_penalty=number("length_penalty", config.length_penalty),
                    early_stopping=config.early_stopping,
                    candidates=max(2, 1 + len(ends)) * width,
                )
                for row in range(rows)
            ]

            def ended(texts: NDArray[np.int64], scores: Any) -> NDArray[np.bool_]:
                long = np.full(len(texts), texts.shape[1] - columns >= call.most)
                return long | np.isin(texts[:, -1], ends) | call.watch.ended(texts, scores)

            search(
                self.decoder,
                np.repeat(logits, width, axis=0),
                cache,
                call.ids,
                call.prompts,
                replace(call.rules, rows=[rules for rules in call.rules.rows for _ in range(width)]),
                call.params,
                searches,
                width,
                ended,
                record,
                {name: np.repeat(array, width, axis=0) for name, array in outputs.items()},
                draws=config.do_sample,
                least_kept=1 + max(1, len(ends)),
                normalize=bool(config.renormalize_logits),
            )
            closing.pop_all()
        return cache, searches


def _side_by_side(
    found: Sequence[Sequence[Beam]], count: int, pad: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Texts [P * count, longest], their origins and scores; where a search has fewer, empty texts of the score -1e9."""
    none = Beam((), (), np.float32(-1e9))
    beams = [beam for some in found for beam in [*some, *[none] * (count - len(some))]]
    width = max(len(beam.tokens) for beam in beams)
    texts, origins = np.full((len(beams), width), pad, np.int64), np.full((len(beams), width), -1, np.int64)
    for row, beam in enumerate(beams):
        texts[row, : len(beam.tokens)], origins[row, : len(beam.tokens)] = beam.tokens, beam.origins
    return texts, origins, np.array([beam.score for beam in beams], np.float32)


def _recorded(record: Record, library: Library) -> dict[str, Any]:
    """The record of the steps as fields of an output."""

    def series(name: str, outputs: Outputs) -> tuple[Any, ...]:
        count = sum(key.startswith(f"{name}.") for key in outputs)
        return tuple(library.make(outputs[f"{name}.{layer}"]) for layer in range(count))

    made = {name: tuple(series(name, outputs) for outputs in record.outputs) for name in sorted(record.exposed)}
    kept = {"scores": record.scores, "logits": record.logits}
    return made | {name: tuple(map(library.make, steps)) for name, steps in kept.items() if steps is not None}
