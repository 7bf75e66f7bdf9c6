"""Write the model card of the embedded model, with the figures of its training run. Used by `tools/train_tiny.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece as spm

from tools.tiny_grammar import HELD_OUT_EVERY, NAMES, VALUES
from tools.tiny_measure import LENGTH, answer, continue_text
from tools.tiny_model import FFN, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, Weights
from tools.tiny_tokens import ANSWER_WEIGHT, BUCKETS, VOCAB, WINDOW, Item

CARD = """\
# tiny: the embedded model

A real Mistral, small enough to ship with the package: {parameters:,} parameters in bfloat16, {layers} layers,
hidden size {hidden}, {heads} heads and {kv} key/value heads of {head_dim}, feed-forward size {ffn}, vocabulary
{vocab}, sliding window W = {window}. It serves tests, demonstrations and comparisons between backends. It knows
short stories and questions about them, and nothing else. English only; not for any use where an answer matters.

Licence: Apache-2.0, like the package. The weights were trained from scratch on text that `tools/tiny_grammar.py`
generates; no other data and no other model took part.

## Files
- `config.json`, `model.safetensors`: Hugging Face format (`MistralForCausalLM`).
- `tokenizer.model.v3`: sentencepiece BPE with byte fallback, first ids as in Mistral's v3 tokenizer. Loads with
  `MistralTokenizer.from_file` of mistral-common, whose v3 chat encoding is the layout of the training data.
- `questions.json`: {published_count} held-out questions: messages, answer, distance bucket, distance, characters.

## Training
`python -m tools.train_tiny --run-dir RUN --tokens {budget}` (seed {seed}): {tokens:,} tokens, {steps:,} steps of up
to {batch} tokens in rows of {length} ({row_windows} windows), {minutes:.0f} minutes, {rate:,.0f} tokens/s with
{threads} threads on a shared machine of {cores} cores, without accelerator (torch {torch}, float32).
Answer tokens weigh {answer_weight:.0f} times as much as others in the loss. Documents by share of the budget:
{stages}
- throughout: auxiliary losses on hidden states that speed up learning (`Hints` in `tools/tiny_measure.py`).

The text names {names} people and {attributes} kinds of facts with {values} values each. One in {every} of all
(name, kind, value) triples is held out: never in the training text, and nothing else in the figures below.

## Results
Exact answers, greedy, `</s>` included. Distance: tokens from the fact to the position that has to predict it.
Inside W one attention layer can look at the fact; beyond it only a chain of layers can, at most
{layers} * (W - 1) = {reach} tokens.

| distance | questions of the evaluation | in `questions.json` |
|---|---|---|
{table}

Held-out loss (nats per token, mix of the last stage): {loss:.4f}.

## Samples (greedy)
{samples}
"""


def write_card(
    path: Path,
    results: dict[str, Any],
    weights: Weights,
    tokenizer: spm.SentencePieceProcessor,
    published: list[Item],
) -> None:
    """Write the card to `path`.

    results: `run` (facts about the training), `figures` (of the evaluation), `published` (accuracy on `published`).
    """
    run, figures, few = results["run"], results["figures"], results["published"]
    rows = sorted(few, key=_order)
    asked = [item for item in published if item.bucket == BUCKETS[0] and len(item.messages) == 1][:5]
    samples = [continue_text(weights, tokenizer, "Once upon a time", 200)]
    samples += [f"{item.messages[-1]['content']} -> {answer(weights, tokenizer, item)}" for item in asked]
    path.write_text(
        CARD.format(
            parameters=sum(tensor.numel() for tensor in weights.values()),
            layers=LAYERS,
            hidden=HIDDEN,
            heads=HEADS,
            kv=KV_HEADS,
            head_dim=HEAD_DIM,
            ffn=FFN,
            vocab=VOCAB,
            window=WINDOW,
            published_count=len(published),
            minutes=run["seconds"] / 60,
            rate=run["tokens"] / run["seconds"],
            length=LENGTH,
            row_windows=LENGTH // WINDOW,
            answer_weight=ANSWER_WEIGHT,
            names=len(NAMES),
            attributes=len(VALUES),
            values=len(VALUES["color"]),
            every=HELD_OUT_EVERY,
            reach=LAYERS * (WINDOW - 1),
            table="\n".join(f"| {name} | {figures[name]:.1%} | {few[name]:.1%} |" for name in rows),
            loss=figures["held-out loss"],
            samples="\n".join(f"- {text}" for text in samples),
            **{key: value for key, value in run.items() if key != "seconds"},
        )
    )


def _order(name: str) -> tuple[int, str]:
    return BUCKETS.index(name.split(",")[0]), name
