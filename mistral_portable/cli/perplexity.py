"""`perplexity`: measure how well a model predicts a text."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.loading import load_model, reading
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import JsonOption, ModelArgument, TensorParallelOption
from mistral_portable.errors import InputError
from mistral_portable.evaluation import accuracy, read_questions
from mistral_portable.evaluation import perplexity as measure

__all__ = ["perplexity"]


@grouped
def perplexity(
    *,
    model: ModelArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A text in UTF-8.", show_default=False)],
    context: Annotated[int, typer.Option(help="Tokens of a chunk; its second half is scored.", min=4)] = 512,
    questions: Annotated[
        str | None,
        typer.Option(
            help="Also count right answers: a JSON list of messages and answers, or 'tiny' for the built-in model's.",
            metavar="FILE",
        ),
    ] = None,
    as_json: JsonOption = False,
    options: ModelOptions,
    tensor_parallel: TensorParallelOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure how well a model predicts a text, as llama-perplexity does; shows what a quantization costs.

    The text is cut into chunks, and the second half of each is scored. Lower is better; 1 is a perfect prediction.
    """
    if tensor_parallel is not None:
        raise typer.BadParameter("several processes would measure the same: use one", param_hint="'--tensor-parallel'")
    text, items = _read(file), read_questions(questions) if questions else []
    with load_model(model, options, tensor_parallel=tensor_parallel) as loaded:
        with reading(f"{loaded.backend} on {model}") as progress:
            result = measure(loaded, text, context=context, progress=progress)
            answers = accuracy(loaded, items, progress=progress) if items else None
        report: dict[str, Any] = {
            "model": loaded.source,
            "backend": loaded.backend,
            "precision": dataclasses.asdict(loaded.program.precision),
            "perplexity": result.value,
            "error": result.error,
            **dataclasses.asdict(result),
            **({"answers": dataclasses.asdict(answers)} if answers else {}),
        }
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(
        f"perplexity {result.value:.4f} +/- {result.error:.4f} (loss {result.loss:.4f} +/- {result.loss_error:.4f}; "
        f"{result.tokens} tokens of {result.chunks} chunks of {result.context})"
    )
    if answers:
        buckets = ", ".join(f"{name}: {right} of {total}" for name, (right, total) in answers.buckets.items())
        typer.echo(f"right answers: {answers.right} of {answers.total} ({buckets})")


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: no text file in UTF-8: {error}") from error
