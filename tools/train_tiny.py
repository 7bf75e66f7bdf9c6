"""Train the embedded model `tiny`: python -m tools.train_tiny --run-dir RUN [--tokens N], from the repository root.

Writes the model, its tokenizer, questions.json, training.json and the card to mistral_portable/assets/tiny (or
--assets), and prints losses, speed, evaluations and at the end the results as JSON. With --from it continues from the
weights and the vocabulary of a folder, with a schedule of its own; training.json lists all runs. Needs the extras test
and peers (torch, sentencepiece). Every batch is a function of the seed and the step, and a run resumes from
RUN/checkpoint.pt; --tokens may change at a resume, and the schedule follows it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece as spm
import torch
from safetensors.torch import load_file
from torch import Tensor

import mistral_portable as mp
from tools.positive import positive
from tools.tiny_card import EXAMPLES, write_card
from tools.tiny_documents import Mix, document
from tools.tiny_grammar import NAMES, VALUES
from tools.tiny_measure import LENGTH, Hints, accuracy, continue_text, held_out_loss, loss_of, share_of_seeds
from tools.tiny_model import Weights, export, init_weights, rounded
from tools.tiny_tokens import (
    Example,
    Item,
    draw_plain_questions,
    draw_questions,
    encode,
    pack,
    small_talk_questions,
    train_tokenizer,
)

ASSETS = Path(__file__).parent.parent / "mistral_portable" / "assets" / "tiny"
ROWS = 4
SEEDS = 40  # with which the card's examples are asked


@dataclass(frozen=True)
class Schedule:
    """The highest learning rate, and the mix of documents from each share of the budget on."""

    rate: float
    stages: list[tuple[float, Mix]]

    def mix(self, progress: float) -> Mix:
        """The mix at a share of the budget."""
        return [mix for start, mix in self.stages if start <= progress][-1]


# Looking up one fact in a short text comes first, then telling people apart, then everything.
FROM_NOTHING = Schedule(
    2e-3,
    [
        (0.0, {"simple chats": 0.3, "namesakes": 0.5, "stories": 0.2}),
        (0.4, {"namesakes": 0.2, "stories": 0.2, "close questions": 0.6}),
        (0.55, {"namesakes": 0.05, "stories": 0.4, "close questions": 0.35, "long texts": 0.2}),
    ],
)
CONTINUED = Schedule(
    1e-3,
    [
        (
            0.0,
            {
                "namesakes": 0.05,
                "stories": 0.2,
                "close questions": 0.2,
                "long texts": 0.15,
                "plain chats": 0.35,
                "small talk": 0.05,
            },
        )
    ],
)
FINAL_RATE, WARM_UP_STEPS = 0.05, 100


@dataclass
class State:
    """Everything that a run needs to resume."""

    weights: Weights
    optimizer: torch.optim.AdamW
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of CPU time, all threads together, without evaluations
    history: list[dict[str, float]] = field(default_factory=list)


def new_state(initial: Weights) -> State:
    """The state before the first step."""
    weights = {name: tensor.detach().float().requires_grad_() for name, tensor in initial.items()}
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights.values() if w.ndim == 2], "weight_decay": 0.05},
        {"params": [w for w in weights.values() if w.ndim == 1], "weight_decay": 0.0},
    ]
    return State(weights, torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True))


def save(state: State, path: Path) -> None:
    """Write a checkpoint, replacing the last one atomically."""
    content = vars(state) | {"optimizer": state.optimizer.state_dict()}
    torch.save(content, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load(path: Path) -> State:
    """Read a checkpoint of `save`; the optimizer's state goes by the order of the weights."""
    content = torch.load(path)
    state = new_state(content.pop("weights"))
    state.optimizer.load_state_dict(content.pop("optimizer"))
    for name, value in content.items():
        setattr(state, name, value)
    return state


def batch(seed: int, step: int, mix: Mix, tokenizer: spm.SentencePieceProcessor) -> list[Tensor]:
    """Ids, loss weights and document numbers of one step."""
    rng = Random(f"{seed}/{step}")
    examples: list[Example] = []
    while sum(len(example.ids) for example in examples) < ROWS * LENGTH:
        examples.append(encode(document(rng, "train", mix), tokenizer))
    return [torch.from_numpy(array) for array in pack(examples, ROWS, LENGTH)]


def learning_rate(highest: float, step: int, progress: float) -> float:
    """The learning rate: a linear warm-up, then a cosine. progress: share of the token budget, 0 to 1."""
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return highest * min(1.0, (step + 1) / WARM_UP_STEPS) * cosine


def hints(tokenizer: spm.SentencePieceProcessor) -> Hints:
    """The auxiliary losses, with the token ids of names and values."""

    def ids(words: list[str]) -> Tensor:
        return torch.tensor([tokenizer.encode(word)[-1] for word in words])

    return Hints(ids(NAMES), ids([value for values in VALUES.values() for value in values]))


def train_step(
    state: State, schedule: Schedule, seed: int, progress: float, tokenizer: spm.SentencePieceProcessor
) -> float:
    """Train on one batch; returns its loss."""
    clock = time.process_time()
    ids, scale, documents = batch(seed, state.step, schedule.mix(progress), tokenizer)
    loss = loss_of(state.weights, ids, scale, documents, hints(tokenizer))
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.weights.values(), 1.0)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(schedule.rate, state.step, progress)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    state.tokens += int((documents > 0).sum())
    state.seconds += time.process_time() - clock
    return loss.item()


@torch.no_grad()
def evaluate(
    weights: Weights, tokenizer: spm.SentencePieceProcessor, items: list[Item], documents: int, mix: Mix
) -> dict[str, float]:
    """Held-out loss over `documents` documents, and the share of exact answers by distance and kind."""
    loss = held_out_loss(weights, tokenizer, documents, mix)
    return {"held-out loss": loss} | accuracy(weights, items)


def questions(tokenizer: spm.SentencePieceProcessor, seed: int, inside: int, beyond: int, plain: int) -> list[Item]:
    """Held-out questions: by distance as `draw_questions` draws them, and `plain` of each kind of plain chats."""
    return [
        *draw_questions(tokenizer, seed, inside, beyond, longest=LENGTH),
        *draw_plain_questions(tokenizer, seed, plain),
    ]


def train(args: argparse.Namespace, schedule: Schedule, state: State, tokenizer: spm.SentencePieceProcessor) -> None:
    """Train until the token budget is used up, with reports, evaluations and checkpoints."""
    items = questions(tokenizer, args.seed, inside=50, beyond=40, plain=20) + small_talk_questions(tokenizer)
    losses: list[float] = []
    tokens, seconds = state.tokens, state.seconds
    while state.tokens < args.tokens:
        losses.append(train_step(state, schedule, args.seed, state.tokens / args.tokens, tokenizer))
        if state.step % args.report_every == 0:
            rate = (state.tokens - tokens) / (state.seconds - seconds)
            loss = sum(losses) / len(losses)
            print(f"step {state.step} tokens {state.tokens / 1e6:.3f}M loss {loss:.4f} {rate:.0f} tok/s", flush=True)
            losses, tokens, seconds = [], state.tokens, state.seconds
        if state.step % args.evaluate_every == 0:
            figures = evaluate(state.weights, tokenizer, items, 100, schedule.mix(1.0))
            state.history.append({"step": state.step, "tokens": state.tokens, "seconds": state.seconds} | figures)
            save(state, args.run_dir / "checkpoint.pt")
            export(state.weights, args.assets)
            print(json.dumps(state.history[-1]), flush=True)
            with torch.no_grad():
                print(continue_text(state.weights, tokenizer, "Once upon a time", 80), flush=True)
    save(state, args.run_dir / "checkpoint.pt")


def _describe(mix: Mix) -> str:
    return ", ".join(f"{kind} {weight:.0%}" for kind, weight in mix.items())


def _facts(args: argparse.Namespace, schedule: Schedule, state: State) -> dict[str, Any]:
    """The entry of a run in training.json."""
    return {
        "seed": args.seed,
        "budget": args.tokens,
        "tokens": state.tokens,
        "steps": state.step,
        "batch": ROWS * LENGTH,
        "time": f"{state.seconds / 60:.0f} minutes of CPU time on a machine of {os.cpu_count()} cores",
        "threads": args.threads,
        "torch": torch.__version__,
        "rate": schedule.rate,
        "stages": {f"{start:.0%}": _describe(mix) for start, mix in schedule.stages},
    }


@torch.no_grad()
def finish(args: argparse.Namespace, schedule: Schedule, state: State, tokenizer: spm.SentencePieceProcessor) -> None:
    """Export, measure what was exported, and write the question set, the list of runs and the model card."""
    export(state.weights, args.assets)
    weights = {name: tensor.float() for name, tensor in rounded(state.weights).items()}
    published = questions(tokenizer, args.seed, inside=40, beyond=48, plain=10)
    lines = ",\n".join(json.dumps(item.public()) for item in published)
    (args.assets / "questions.json").write_text(f"[\n{lines}\n]\n")
    earlier = json.loads((args.start / "training.json").read_text()) if args.start else []
    runs = [*earlier, _facts(args, schedule, state)]
    (args.assets / "training.json").write_text(json.dumps(runs, indent=2) + "\n")
    many = questions(tokenizer, args.seed + 1, inside=300, beyond=300, plain=300) + small_talk_questions(tokenizer)
    with mp.load(args.assets) as model:
        examples = {question: share_of_seeds(model, question, answer, SEEDS) for question, answer in EXAMPLES.items()}
    results = {
        "runs": runs,
        "figures": evaluate(weights, tokenizer, many, 500, schedule.mix(1.0)),
        "published": accuracy(weights, published),
        "examples": examples,
        "seeds": SEEDS,
    }
    (args.run_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_card(args.assets / "README.md", results, weights, tokenizer, published)
    print(json.dumps(results), flush=True)


def start(args: argparse.Namespace) -> tuple[State, Path]:
    """The state to train from, and the vocabulary, in --assets."""
    vocabulary, checkpoint = args.assets / "tokenizer.model.v3", args.run_dir / "checkpoint.pt"
    if checkpoint.exists():
        return load(checkpoint), vocabulary
    if args.start is None:
        train_tokenizer(vocabulary, args.seed)
        return new_state(init_weights(args.seed)), vocabulary
    if args.start != args.assets:
        shutil.copy(args.start / vocabulary.name, vocabulary)
    return new_state(load_file(args.start / "model.safetensors")), vocabulary


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model `tiny`.")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder for the checkpoint and the results")
    parser.add_argument("--tokens", type=positive, default=5_000_000, help="training budget")
    parser.add_argument("--from", dest="start", type=Path, help="folder of a model to continue from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--report-every", type=positive, default=50, help="steps between progress lines")
    parser.add_argument("--evaluate-every", type=positive, default=400, help="steps between evaluations, checkpoints")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder for the exported model")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run_dir.mkdir(parents=True, exist_ok=True)
    args.assets.mkdir(parents=True, exist_ok=True)
    state, vocabulary = start(args)
    tokenizer = spm.SentencePieceProcessor(model_file=str(vocabulary))
    schedule = CONTINUED if args.start else FROM_NOTHING
    train(args, schedule, state, tokenizer)
    finish(args, schedule, state, tokenizer)


if __name__ == "__main__":
    main()
