"""Tokenizer, token layout, packing and held-out questions of the embedded model. Used by `tools/train_tiny.py`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import sentencepiece as spm

from tools import tiny_small_talk as small_talk
from tools.tiny_documents import Document, Turn, document
from tools.tiny_tenses import QUESTION_KINDS

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
        drawn = document(rng, "train", {"stories": 0.4, "close questions": 0.4, "long texts": 0.2})
        lines += [drawn.text] if drawn.text else []
        lines += [text for turn in drawn.turns for text in (turn.question, turn.answer)]
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
    distance: int  # from the fact to the position that predicts it; below the window one layer can attend to it
    characters: int
    kind: str  # one of QUESTION_KINDS, or "small talk", or "" for the questions that go by distance
    prompt: list[int]  # token ids of the messages
    target: list[int]  # token ids of the answer and </s>

    @property
    def bucket(self) -> str:
        """The range of the distance, one of BUCKETS; "plain chats" for the questions of those."""
        return "plain chats" if self.kind else BUCKETS[self.distance // WINDOW]

    @property
    def fits(self) -> bool:
        """Whether the window holds the whole chat."""
        return len(self.prompt) + len(self.target) <= WINDOW

    def public(self) -> dict[str, Any]:
        """The entry in questions.json."""
        return {
            "messages": self.messages,
            "answer": self.answer,
            "bucket": self.bucket,
            "distance": self.distance,
            "characters": self.characters,
        } | ({"kind": self.kind} if self.kind else {})


def encode(document: Document, tokenizer: spm.SentencePieceProcessor) -> Example:
    """Encode as mistral-common's v3 does: <s> text [INST] question [/INST] answer </s> ..."""
    example = Example([BOS], [0.0])

    def add(ids: list[int], weight: float) -> None:
        example.ids += ids
        example.weights += [weight] * len(ids)

    if document.text:
        add(tokenizer.encode(document.text), 1.0)
    if not document.turns:
        add([EOS], 1.0)
    for turn in document.turns:
        add([INST, *tokenizer.encode(turn.question), END_INST], 1.0)
        add([*tokenizer.encode(turn.answer), EOS], 1.0 if turn.free else ANSWER_WEIGHT)
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
        drawn = document(rng, "held_out", {"close questions": 0.6, "long texts": 0.4})
        if drawn.text:
            continue  # a chat starts with [INST]
        item = _item(drawn, tokenizer)
        if item.distance >= WINDOW * len(BUCKETS) or len(item.prompt) + len(item.target) > longest:
            continue
        key = (item.bucket, item.characters if item.bucket == BUCKETS[0] else 0)
        if counts.get(key, 0) < wanted[key]:
            counts[key] = counts.get(key, 0) + 1
            items.append(item)
    return items


def draw_plain_questions(tokenizer: spm.SentencePieceProcessor, seed: int, each: int) -> list[Item]:
    """`each` held-out questions of each of QUESTION_KINDS, in plain chats that the window holds."""
    rng = Random(f"{seed}/plain questions")
    items: dict[str, list[Item]] = {kind: [] for kind in QUESTION_KINDS}
    while any(len(some) < each for some in items.values()):
        drawn = document(rng, "held_out", {"plain chats": 1})
        kinds = [turn.kind for turn in drawn.turns]
        while not kinds[-1]:
            del kinds[-1]  # small talk at the end
        drawn.turns = drawn.turns[: len(kinds)]
        item = _item(drawn, tokenizer)
        if item.fits and len(items[item.kind]) < each:
            items[item.kind].append(item)
    return [item for some in items.values() for item in some]


def small_talk_questions(tokenizer: spm.SentencePieceProcessor) -> list[Item]:
    """Every wording of small talk as it is listed, as a chat of its own. All of them are in the training text."""
    turns = [
        Turn(text, small_talk.ANSWERS[topic], kind="small talk")
        for topic, wordings in small_talk.WORDINGS.items()
        for text in wordings
    ]
    return [_item(Document("", [turn]), tokenizer) for turn in turns]


def _item(drawn: Document, tokenizer: spm.SentencePieceProcessor) -> Item:
    *before, last = drawn.turns
    messages = []
    for turn in before:
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    messages.append({"role": "user", "content": last.question})
    target = [*tokenizer.encode(last.answer), EOS]
    prompt = encode(drawn, tokenizer).ids[: -len(target)]
    distance = 0
    if last.value:
        value = tokenizer.encode(last.value)[-1]
        fact = len(prompt) - 1 - prompt[::-1].index(value)
        distance = len(prompt) + target.index(value) - 1 - fact
    return Item(messages, last.answer, distance, drawn.characters, last.kind, prompt, target)
