"""Write the model card of the embedded model, with the figures of its training run. Used by `tools/train_tiny.py`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece as spm

from tools.tiny_grammar import HELD_OUT_EVERY, NAMES, VALUES
from tools.tiny_measure import LENGTH, answer, continue_text
from tools.tiny_model import FFN, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, Weights
from tools.tiny_small_talk import ANSWERS, WORDINGS
from tools.tiny_tenses import QUESTION_KINDS
from tools.tiny_tokens import ANSWER_WEIGHT, BUCKETS, VOCAB, WINDOW, Item

EXAMPLES = {  # asked in `chat` with its default settings; the first is README's
    "Tom has a red ball. What color is the ball?": "The ball is red.",
    "Tom has a red ball. Who has the ball?": "Tom has the ball.",
    "Tom had a red ball. What color is Tom's ball?": "Tom's ball is red.",
    "Hi": ANSWERS["greeting"],
    "What can you do?": ANSWERS["abilities"],
}

CARD = """\
# tiny: the embedded model

A real Mistral, small enough to ship with the package: {parameters:,} parameters in bfloat16, {layers} layers,
hidden size {hidden}, {heads} heads and {kv} key/value heads of {head_dim}, feed-forward size {ffn}, vocabulary
{vocab}, sliding window W = {window}. It serves tests, demonstrations and comparisons between backends. It knows
short stories, questions about them and a little small talk, and nothing else. English only; not for any use where an
answer matters.

Licence: Apache-2.0, like the package. The weights were trained from scratch on text that `tools/tiny_grammar.py`
generates; no other data and no other model took part.

## Files
- `config.json`, `model.safetensors`: Hugging Face format (`MistralForCausalLM`).
- `tokenizer.model.v3`: sentencepiece BPE with byte fallback, first ids as in Mistral's v3 tokenizer. Loads with
  `MistralTokenizer.from_file` of mistral-common, whose v3 chat encoding is the layout of the training data.
- `questions.json`: {published_count} held-out questions: messages, answer, distance bucket ("plain chats" for the kinds
  of the second table below), distance, characters.
- `training.json`: the runs that made the weights.

## Training
Each run but the first continued from the weights of the one before, in FOLDER:
{runs}

In every run tokens of answers, but not of stories, weigh {answer_weight:.0f} times as much as others in the loss, rows
are {length} tokens ({row_windows} windows), and auxiliary losses on hidden states speed up learning (`Hints` in
`tools/tiny_measure.py`).

The text names {names} people and {attributes} kinds of facts with {values} values each. One in {every} of all
(name, kind, value) triples is held out: never in the training text, and nothing else in the figures below.

## Results
Exact answers, greedy, `</s>` included. Distance: tokens from the fact to the position that has to predict it.
Inside W one attention layer can look at the fact; beyond it only a chain of layers can, at most
{layers} * (W - 1) = {reach} tokens.

| distance | questions of the evaluation | in `questions.json` |
|---|---|---|
{table}

Plain chats state facts in the past or the present ("Tom has a red ball.") and ask by the person ("What does Tom
have?"), by the thing ("Who has the ball?") or for its color ("What color is the ball?"). Here the window holds the
whole chat:

| kind | questions of the evaluation | in `questions.json` |
|---|---|---|
{plain}

The same questions by the number of people in the chat; who has a thing is mostly guessed where there are several:

| kind | one | two | three |
|---|---|---|---|
{people}

Small talk: of {wordings} wordings of {topics} topics, all of which are in the training text, {small_talk:.1%} are
answered exactly.

Exact answers with the default settings of `chat` (temperature 0.7), {seeds} seeds each:

| message | answer | right |
|---|---|---|
{examples}

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

    results: `runs` (facts about the training), `figures` (of the evaluation), `published` (accuracy on `published`),
    `examples` (the share of `seeds` that gave each of EXAMPLES' answers).
    """
    figures, few = results["figures"], results["published"]
    distances = sorted((name for name in few if name.split(",")[0] in BUCKETS), key=_order)
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
            runs="\n".join(_run(number, run) for number, run in enumerate(results["runs"], start=1)),
            length=LENGTH,
            row_windows=LENGTH // WINDOW,
            answer_weight=ANSWER_WEIGHT,
            names=len(NAMES),
            attributes=len(VALUES),
            values=len(VALUES["color"]),
            every=HELD_OUT_EVERY,
            reach=LAYERS * (WINDOW - 1),
            table=_table(distances, figures, few),
            plain=_table(QUESTION_KINDS, figures, few),
            people="\n".join(f"| {kind} | {_by_people(kind, figures)} |" for kind in QUESTION_KINDS),
            wordings=sum(map(len, WORDINGS.values())),
            topics=len(WORDINGS),
            small_talk=figures["small talk"],
            seeds=results["seeds"],
            examples="\n".join(
                f"| {message} | {EXAMPLES[message]} | {share:.1%} |" for message, share in results["examples"].items()
            ),
            loss=figures["held-out loss"],
            samples="\n".join(f"- {text}" for text in samples),
        )
    )


def _run(number: int, run: dict[str, Any]) -> str:
    """A run's entry. The first begins with random weights, each later one with the weights of the one before."""
    command = f"python -m tools.train_tiny --run-dir RUN --tokens {run['budget']}"
    if number > 1:
        command += " --from FOLDER"
    stages = "\n".join(f"   - from {start}: {mix}" for start, mix in run["stages"].items())
    return f"""\
{number}. `{command}` (seed {run["seed"]}):
   {run["tokens"]:,} tokens, {run["steps"]:,} steps of up to {run["batch"]} tokens, learning rate {run["rate"]},
   {run["time"]}, {run["threads"]} threads, without accelerator (torch {run["torch"]}, float32).
   Documents by share of the budget:
{stages}"""


def _table(names: Iterable[str], figures: dict[str, float], few: dict[str, float]) -> str:
    return "\n".join(f"| {name} | {figures[name]:.1%} | {few[name]:.1%} |" for name in names)


def _by_people(kind: str, figures: dict[str, float]) -> str:
    return " | ".join(f"{figures[f'{kind}, people: {people}']:.1%}" for people in (1, 2, 3))


def _order(name: str) -> tuple[int, str]:
    return BUCKETS.index(name.split(",")[0]), name
