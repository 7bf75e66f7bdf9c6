"""Train the embedded model `tiny`: python -m tools.train_tiny --run-dir RUN [--tokens N], from the repository root.

Writes the model, its tokenizer, questions.json and the card to mistral_portable/assets/tiny (or --assets), and prints
losses, speed, evaluations and at the end the results as JSON. Needs the extras test and peers (torch, sentencepiece).
Every batch is a function of the seed and the step, and a run resumes from RUN/checkpoint.pt; --tokens may change at a
resume, and the schedule follows it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece as spm
import torch
from torch import Tensor

from tools import tiny_grammar as grammar
from tools.tiny_card import write_card
from tools.tiny_measure import LENGTH, Hints, accuracy, continue_text, held_out_loss, loss_of
from tools.tiny_model import Weights, export, init_weights, rounded
from tools.tiny_tokens import Example, Item, draw_questions, encode, pack, train_tokenizer

ASSETS = Path(__file__).parent.parent / "mistral_portable" / "assets" / "tiny"
ROWS = 4
KINDS = ("simple chats", "namesakes", "stories", "close questions", "long texts")
# (from this share of the budget, weights of the kinds). Looking up one fact in a short text comes first, then telling
# people apart, then everything.
STAGES: list[tuple[float, grammar.Mix]] = [
    (0.0, (0.3, 0.5, 0.2, 0, 0)),
    (0.4, (0, 0.2, 0.2, 0.6, 0)),
    (0.55, (0, 0.05, 0.4, 0.35, 0.2)),
]
LEARNING_RATE, FINAL_RATE, WARM_UP_STEPS = 2e-3, 0.05, 100


@dataclass
class State:
    """Everything that a run needs to resume."""

    weights: Weights
    optimizer: torch.optim.AdamW
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training, without evaluations
    history: list[dict[str, float]] = field(default_factory=list)


def new_state(seed: int) -> State:
    """The state before the first step."""
    weights = {name: tensor.requires_grad_() for name, tensor in init_weights(seed).items()}
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights.values() if w.ndim == 2], "weight_decay": 0.05},
        {"params": [w for w in weights.values() if w.ndim == 1], "weight_decay": 0.0},
    ]
    return State(weights, torch.optim.AdamW(groups, LEARNING_RATE, betas=(0.9, 0.98), fused=True))


def save(state: State, path: Path) -> None:
    """Write a checkpoint, replacing the last one atomically."""
    content = vars(state) | {"optimizer": state.optimizer.state_dict()}
    torch.save(content, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load(path: Path, seed: int) -> State:
    """Read a checkpoint of `save`."""
    state = new_state(seed)
    content = torch.load(path)
    state.optimizer.load_state_dict(content.pop("optimizer"))
    with torch.no_grad():
        for name, tensor in content.pop("weights").items():
            state.weights[name].copy_(tensor)
    for name, value in content.items():
        setattr(state, name, value)
    return state


def batch(seed: int, step: int, progress: float, tokenizer: spm.SentencePieceProcessor) -> list[Tensor]:
    """Ids, loss weights and document numbers of one step."""
    rng = Random(f"{seed}/{step}")
    mix = [weights for start, weights in STAGES if start <= progress][-1]
    examples: list[Example] = []
    while sum(len(example.ids) for example in examples) < ROWS * LENGTH:
        examples.append(encode(grammar.document(rng, "train", mix), tokenizer))
    return [torch.from_numpy(array) for array in pack(examples, ROWS, LENGTH)]


def learning_rate(step: int, progress: float) -> float:
    """The learning rate: a linear warm-up, then a cosine. progress: share of the token budget, 0 to 1."""
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * cosine


def hints(tokenizer: spm.SentencePieceProcessor) -> Hints:
    """The auxiliary losses, with the token ids of names and values."""

    def ids(words: list[str]) -> Tensor:
        return torch.tensor([tokenizer.encode(word)[-1] for word in words])

    return Hints(ids(grammar.NAMES), ids([value for values in grammar.VALUES.values() for value in values]))


def train_step(state: State, seed: int, progress: float, tokenizer: spm.SentencePieceProcessor) -> float:
    """Train on one batch; returns its loss."""
    clock = time.monotonic()
    ids, scale, documents = batch(seed, state.step, progress, tokenizer)
    loss = loss_of(state.weights, ids, scale, documents, hints(tokenizer))
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.weights.values(), 1.0)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, progress)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    state.tokens += int((documents > 0).sum())
    state.seconds += time.monotonic() - clock
    return loss.item()


@torch.no_grad()
def evaluate(
    weights: Weights, tokenizer: spm.SentencePieceProcessor, items: list[Item], documents: int
) -> dict[str, float]:
    """Held-out loss over `documents` documents, and the share of exact answers by distance."""
    loss = held_out_loss(weights, tokenizer, documents, STAGES[-1][1])
    return {"held-out loss": loss} | accuracy(weights, items)


def train(args: argparse.Namespace, state: State, tokenizer: spm.SentencePieceProcessor) -> None:
    """Train until the token budget is used up, with reports, evaluations and checkpoints."""
    items = draw_questions(tokenizer, args.seed, inside=50, beyond=40, longest=LENGTH)
    losses: list[float] = []
    tokens, seconds = state.tokens, state.seconds
    while state.tokens < args.tokens:
        losses.append(train_step(state, args.seed, state.tokens / args.tokens, tokenizer))
        if state.step % args.report_every == 0:
            rate = (state.tokens - tokens) / (state.seconds - seconds)
            loss = sum(losses) / len(losses)
            print(f"step {state.step} tokens {state.tokens / 1e6:.3f}M loss {loss:.4f} {rate:.0f} tok/s", flush=True)
            losses, tokens, seconds = [], state.tokens, state.seconds
        if state.step % args.evaluate_every == 0:
            figures = evaluate(state.weights, tokenizer, items, documents=100)
            state.history.append({"step": state.step, "tokens": state.tokens, "seconds": state.seconds} | figures)
            save(state, args.run_dir / "checkpoint.pt")
            export(state.weights, args.assets)
            print(json.dumps(state.history[-1]), flush=True)
            with torch.no_grad():
                print(continue_text(state.weights, tokenizer, "Once upon a time", 80), flush=True)
    save(state, args.run_dir / "checkpoint.pt")


def _describe(mix: grammar.Mix) -> str:
    return ", ".join(f"{kind} {weight:.0%}" for kind, weight in zip(KINDS, mix, strict=True) if weight)


@torch.no_grad()
def finish(args: argparse.Namespace, state: State, tokenizer: spm.SentencePieceProcessor) -> None:
    """Export, measure what was exported, and write the question set and the model card."""
    export(state.weights, args.assets)
    weights = {name: tensor.float() for name, tensor in rounded(state.weights).items()}
    published = draw_questions(tokenizer, args.seed, inside=40, beyond=48, longest=LENGTH)
    lines = ",\n".join(json.dumps(item.public()) for item in published)
    (args.assets / "questions.json").write_text(f"[\n{lines}\n]\n")
    many = draw_questions(tokenizer, args.seed + 1, inside=300, beyond=300, longest=LENGTH)
    figures = evaluate(weights, tokenizer, many, documents=500)
    facts = {
        "tokens": state.tokens,
        "steps": state.step,
        "seconds": state.seconds,
        "seed": args.seed,
        "threads": args.threads,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "budget": args.tokens,
        "batch": ROWS * LENGTH,
        "stages": "\n".join(f"- from {start:.0%}: {_describe(mix)}" for start, mix in STAGES),
    }
    results = {"run": facts, "figures": figures, "published": accuracy(weights, published)}
    (args.run_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_card(args.assets / "README.md", results, weights, tokenizer, published)
    print(json.dumps(results), flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model `tiny`.")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder for the checkpoint and the results")
    parser.add_argument("--tokens", type=int, default=5_000_000, help="training budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report-every", type=int, default=50, help="steps between progress lines")
    parser.add_argument("--evaluate-every", type=int, default=400, help="steps between evaluations and checkpoints")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder for the exported model")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run_dir.mkdir(parents=True, exist_ok=True)
    args.assets.mkdir(parents=True, exist_ok=True)
    vocabulary = args.assets / "tokenizer.model.v3"
    checkpoint = args.run_dir / "checkpoint.pt"
    if not checkpoint.exists():
        train_tokenizer(vocabulary, args.seed)
    tokenizer = spm.SentencePieceProcessor(model_file=str(vocabulary))
    state = load(checkpoint, args.seed) if checkpoint.exists() else new_state(args.seed)
    train(args, state, tokenizer)
    finish(args, state, tokenizer)


if __name__ == "__main__":
    main()
