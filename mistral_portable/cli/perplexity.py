"""`perplexity`: measure how well a model predicts a text."""

import dataclasses
import json
from typing import Annotated, Any

import typer

from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.loading import loader, reading
from mistral_portable.cli.model_name import named, placed
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import JsonOption, ModelArgument, NamedOption
from mistral_portable.cli.ranges import with_range
from mistral_portable.cli.text import read_file
from mistral_portable.errors import InputError
from mistral_portable.evaluation import accuracy, read_questions
from mistral_portable.evaluation import perplexity as measure

__all__ = ["perplexity"]


@grouped
def perplexity(
    *,
    model: ModelArgument = None,
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="A text in UTF-8.", show_default=False)] = None,
    name: NamedOption = None,
    text_file: Annotated[
        str | None, typer.Option("--file", "-f", help="The same as FILE.", metavar="FILE", show_default=False)
    ] = None,
    context: Annotated[
        int, typer.Option(metavar="N", **with_range("Tokens of a chunk; its second half is scored.", 4))
    ] = 512,
    questions: Annotated[
        str | None,
        typer.Option(
            help="Also count right answers: a JSON list of messages and answers, or 'tiny' for the built-in model's.",
            metavar="FILE",
        ),
    ] = None,
    as_json: JsonOption = False,
    options: ModelOptions,
    debug: DebugOption = False,
) -> None:
    """Measure how well a model predicts a text, as llama-perplexity does; shows what a quantization costs.

    The text is cut into chunks, and the second half of each is scored. Lower is better; 1 is a perfect prediction.
    """
    model, file = placed(name, model, file)
    model = named(model)
    if (file is None) is (text_file is None):
        raise typer.BadParameter("give it once, as FILE or as --file", param_hint="'FILE'")
    text = read_file(path := text_file or str(file))
    if not text.strip():
        raise InputError(f"{path}: holds no text to measure")
    items = read_questions(questions) if questions else []
    with loader(model, options)() as loaded:
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
