"""Losses and measurements of the embedded model: held-out loss, exact answers by distance, greedy text.

Used by `tools/train_tiny.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import sentencepiece as spm
import torch
from torch import Tensor
from torch.nn import functional as F

import mistral_portable as mp
from tools.tiny_documents import Mix, document
from tools.tiny_model import HIDDEN, Weights, attention_logs, forward, hidden_states, visible
from tools.tiny_tenses import QUESTION_KINDS
from tools.tiny_tokens import ANSWER_WEIGHT, BOS, BUCKETS, EOS, Item, encode, pack

LENGTH = 256  # of a training row: four windows


def loss_of(weights: Weights, ids: Tensor, scale: Tensor, documents: Tensor, hints: Hints | None = None) -> Tensor:
    """Mean cross entropy of the next token, weighted; the first token of a document has weight 0."""
    mask = visible(documents)
    states = hidden_states(weights, ids, mask)
    logits = F.linear(states[-1][:, :-1], weights["lm_head.weight"])
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    flat = scale[:, 1:].flatten()
    loss = (losses * flat).sum() / flat.sum()
    return loss if hints is None else loss + hints.loss(weights, ids, scale, mask, states)


@dataclass
class Hints:
    """Three auxiliary losses for training only. They break a deadlock: a layer can learn to look up facts by name only
    once an earlier layer copies the name to the fact, and that layer gains nothing from copying it before.
    """

    names: Tensor  # token ids
    values: Tensor

    def loss(self, weights: Weights, ids: Tensor, scale: Tensor, mask: Tensor, states: list[Tensor]) -> Tensor:
        """The sum of the three: after the first layer the last name is decoded with the names' embeddings; one head of
        the second layer attends to the fact that the answer needs; after that layer the value is decoded."""
        named, known = nearest(torch.isin(ids, self.names), mask)
        index = (ids.gather(1, named)[..., None] == self.names).int().argmax(-1)
        guesses = F.linear(F.rms_norm(states[1][known], (HIDDEN,)), weights["model.embed_tokens.weight"][self.names])
        loss = F.cross_entropy(guesses, index[known])
        target, wanted = self.facts(ids, scale, mask)
        if wanted.any():
            logs = attention_logs(weights, states, mask, layer=1, head=0)
            loss = loss - logs.gather(2, target[..., None])[..., 0][wanted].mean()
            early = F.rms_norm(states[2][wanted], (HIDDEN,), weights["model.norm.weight"])
            loss = loss + F.cross_entropy(F.linear(early, weights["lm_head.weight"]), torch.roll(ids, -1, 1)[wanted])
        return loss

    def facts(self, ids: Tensor, scale: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """For each position before the value in an answer: the last position in its window with this value.

        Returns (targets, mask of the positions that count), each [rows, length].
        """
        same = (torch.roll(ids, -1, 1)[:, :, None] == ids[:, None, :]) & mask[:, 0]
        answers = torch.isin(ids, self.values) & (scale == ANSWER_WEIGHT)
        answers = torch.roll(answers, -1, 1)
        answers[:, -1] = False
        position = torch.arange(ids.shape[1])
        target = torch.where(same, position, -1).amax(-1)
        return target.clamp(min=0), answers & (target >= 0)


def nearest(marked: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """For each position the last marked one that it attends to, and whether there is one."""
    position = torch.arange(marked.shape[1])
    last = torch.where(marked[:, None, :] & mask[:, 0], position, -1).amax(-1)
    return last.clamp(min=0), last >= 0


def held_out_loss(weights: Weights, tokenizer: spm.SentencePieceProcessor, documents: int, mix: Mix) -> float:
    """Plain mean loss per token over documents of the held-out split."""
    rng = Random("held-out loss")
    total, count = 0.0, 0.0
    for _ in range(documents):
        example = encode(document(rng, "held_out", mix), tokenizer)
        ids, scale, numbers = (torch.from_numpy(a) for a in pack([example], 1, len(example.ids)))
        scale = (scale > 0).float()
        total += loss_of(weights, ids, scale, numbers).item() * scale.sum().item()
        count += scale.sum().item()
    return total / count


def right_answers(weights: Weights, items: list[Item], rows: int = 16) -> list[bool]:
    """Whether the greedy answer is exact, </s> included: that is so if and only if each token of the right answer
    is the argmax after those before it."""
    right = [False] * len(items)
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        texts = [items[i].prompt + items[i].target for i in part]
        ids = torch.full((len(part), max(map(len, texts))), EOS)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        best = forward(weights, ids, visible(torch.zeros_like(ids))).argmax(-1)
        for row, i in enumerate(part):
            first = len(items[i].prompt) - 1
            right[i] = best[row, first : first + len(items[i].target)].tolist() == items[i].target
    return right


def accuracy(weights: Weights, items: list[Item]) -> dict[str, float]:
    """Share of exact answers by kind, or by distance where there is none; inside the window also by characters."""
    groups: dict[str, list[bool]] = {}
    for item, right in zip(items, right_answers(weights, items), strict=True):
        groups.setdefault(item.kind or item.bucket, []).append(right)
        if item.kind in QUESTION_KINDS or item.bucket == BUCKETS[0]:
            groups.setdefault(f"{item.kind or item.bucket}, people: {item.characters}", []).append(right)
    return {name: sum(group) / len(group) for name, group in sorted(groups.items())}


def share_of_seeds(model: mp.Model, question: str, answer: str, seeds: int) -> float:
    """The share of the seeds with which `chat`, with its default settings, gives this very answer."""
    return sum(model.chat(question, seed=seed).text == answer for seed in range(seeds)) / seeds


def greedy(weights: Weights, prompt: list[int], count: int) -> list[int]:
    """Tokens after the prompt, up to </s>. Recomputes everything: for samples only."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count and ids[-1] != EOS:
        row = torch.tensor([ids])
        ids.append(int(forward(weights, row, visible(torch.zeros_like(row)))[0, -1].argmax()))
    return ids[len(prompt) :]


def continue_text(weights: Weights, tokenizer: spm.SentencePieceProcessor, text: str, count: int) -> str:
    """A raw text and its greedy continuation."""
    prompt = [BOS, *tokenizer.encode(text)]
    return str(tokenizer.decode(prompt + greedy(weights, prompt, count)))


def answer(weights: Weights, tokenizer: spm.SentencePieceProcessor, item: Item) -> str:
    """The greedy answer to a question, up to 40 tokens."""
    return str(tokenizer.decode(greedy(weights, item.prompt, 40)))
