"""Tokenizer, token layout, packing and held-out questions of the embedded model. Used by `tools/train_tiny.py`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import sentencepiece as spm

from tools import tiny_grammar as grammar

VOCAB = 1024
WINDOW = 64
BOS, EOS, INST, END_INST = 1, 2, 3, 4
CONTROLS = [  # ids 3 to 9, as in Mistral's v3 tokenizer
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
]
ANSWER_WEIGHT = 10.0
BUCKETS = ("inside W", "1-2 W", "2-3 W")


def train_tokenizer(path: Path, seed: int, documents: int = 20000) -> None:
    """Train the sentencepiece model on grammar text, with the first ids of Mistral's v3 tokenizer."""
    rng = Random(f"{seed}/tokenizer")
    lines = []
    for _ in range(documents):
        document = grammar.document(rng, "train", (0, 0, 0.4, 0.4, 0.2))
        lines += [text for text in (document.text, *sum(document.turns, ())) if text]
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        control_symbols=CONTROLS,
        required_chars="".join(map(chr, range(33, 127))),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        pad_id=-1,
        num_threads=1,  # the result must not depend on the machine
        minloglevel=1,
    )
    path.write_bytes(model.getvalue())


@dataclass
class Example:
    """Token ids and, for each token, its weight in the loss."""

    ids: list[int]
    weights: list[float]


@dataclass
class Item:
    """A held-out question: chat messages, the answer to the last, and how far back its fact is."""

    messages: list[dict[str, str]]
    answer: str
    value: str
    distance: int  # from the fact to the position that predicts it; below the window one layer can attend to it
    characters: int
    prompt: list[int]  # token ids of the messages
    target: list[int]  # token ids of the answer and </s>

    @property
    def bucket(self) -> str:
        """The range of the distance, one of BUCKETS."""
        return BUCKETS[self.distance // WINDOW]

    def public(self) -> dict[str, Any]:
        """The entry in questions.json."""
        return {
            "messages": self.messages,
            "answer": self.answer,
            "bucket": self.bucket,
            "distance": self.distance,
            "characters": self.characters,
        }


def encode(document: grammar.Document, tokenizer: spm.SentencePieceProcessor) -> Example:
    """Encode as mistral-common's v3 does: <s> text [INST] question [/INST] answer </s> ..."""
    example = Example([BOS], [0.0])

    def add(ids: list[int], weight: float) -> None:
        example.ids += ids
        example.weights += [weight] * len(ids)

    if document.text:
        add(tokenizer.encode(document.text), 1.0)
    if not document.turns:
        add([EOS], 1.0)
    for (question, answer), value in zip(document.turns, document.values, strict=True):
        add([INST, *tokenizer.encode(question), END_INST], 1.0)
        add([*tokenizer.encode(answer), EOS], ANSWER_WEIGHT if value else 1.0)
    return example


def pack(examples: list[Example], rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pack whole documents into rows, the longest first; those that do not fit are left out.

    Returns ids, loss weights and document numbers (0: padding), each [rows, length].
    """
    ids = np.full((rows, length), EOS, np.int64)
    weights = np.zeros((rows, length), np.float32)
    documents = np.zeros((rows, length), np.int64)
    used = [0] * rows
    for number, example in enumerate(sorted(examples, key=lambda e: -len(e.ids)), start=1):
        size = len(example.ids)
        row = next((r for r in range(rows) if used[r] + size <= length), None)
        if row is None:
            continue
        part = slice(used[row], used[row] + size)
        ids[row, part], weights[row, part], documents[row, part] = example.ids, example.weights, number
        used[row] += size
    return ids, weights, documents


def draw_questions(
    tokenizer: spm.SentencePieceProcessor, seed: int, inside: int, beyond: int, longest: int
) -> list[Item]:
    """Held-out questions: `inside` per number of characters inside W, `beyond` in each bucket beyond it."""
    rng = Random(f"{seed}/questions")
    items: list[Item] = []
    counts: dict[tuple[str, int], int] = {}
    wanted = {("inside W", n): inside for n in (1, 2, 3)} | {(bucket, 0): beyond for bucket in BUCKETS[1:]}
    while any(counts.get(key, 0) < number for key, number in wanted.items()):
        document = grammar.document(rng, "held_out", (0, 0, 0, 0.6, 0.4))
        if document.text:
            continue  # a chat starts with [INST]
        item = _item(document, tokenizer)
        if item.distance >= WINDOW * len(BUCKETS) or len(item.prompt) + len(item.target) > longest:
            continue
        key = (item.bucket, item.characters if item.bucket == BUCKETS[0] else 0)
        if counts.get(key, 0) < wanted[key]:
            counts[key] = counts.get(key, 0) + 1
            items.append(item)
    return items


def _item(document: grammar.Document, tokenizer: spm.SentencePieceProcessor) -> Item:
    question, answer = document.turns[-1]
    messages = []
    for asked, answered in document.turns[:-1]:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    messages.append({"role": "user", "content": question})
    target = [*tokenizer.encode(answer), EOS]
    prompt = encode(document, tokenizer).ids[: -len(target)]
    value = tokenizer.encode(document.values[-1])[-1]
    fact = len(prompt) - 1 - prompt[::-1].index(value)
    distance = len(prompt) + target.index(value) - 1 - fact
    return Item(messages, answer, document.values[-1], distance, document.characters, prompt, target)
