"""`run`: continue a text, or answer one message."""

import dataclasses
import json
from typing import Annotated, Any

import typer

from mistral_portable.cli.answer import end_answer, show_answer
from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.loading import loader
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import (
    ModelOption,
    ReasoningEffortOption,
    SessionOption,
)
from mistral_portable.cli.output import aside, show, speed
from mistral_portable.cli.prompt import FileOption, PromptArgument, PromptOption, SystemOption, read_prompt
from mistral_portable.cli.ranges import with_range
from mistral_portable.cli.rule import GrammarOption, JsonSchemaOption, RegexOption, Rule
from mistral_portable.cli.sampling_options import SamplingOptions
from mistral_portable.cli.session import resume
from mistral_portable.engine import Generation

__all__ = ["run"]


@grouped
def run(
    *,
    context: typer.Context,
    prompt: PromptArgument = None,
    text: PromptOption = None,
    file: FileOption = None,
    system: SystemOption = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw", help="Answer a message, or continue a text; by default the latter, without --system."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead.")] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(
            **with_range("With --json: log-probabilities, also of the N most probable tokens.", 0),
            metavar="N",
        ),
    ] = None,
    model: ModelOption = "tiny",
    options: ModelOptions,
    session: SessionOption = None,
    sampling: SamplingOptions,
    reasoning_effort: ReasoningEffortOption = None,
    json_schema: JsonSchemaOption = None,
    grammar: GrammarOption = None,
    regex: RegexOption = None,
    debug: DebugOption = False,
) -> None:
    """Generate text and show it as it comes.

    With --raw the prompt is printed too, so that the text reads whole; with --chat only the answer is.
    """
    if logprobs is not None and not as_json:
        raise typer.BadParameter("only --json shows them", param_hint="'--logprobs'")
    if system is not None and chat is False:
        raise typer.BadParameter("a text that is continued has none: leave out --raw", param_hint="'--system'")
    chat = system is not None if chat is None else chat
    load = loader(model, options)
    rule = Rule(json_schema, grammar, regex, prompt_is_piped=prompt is text is file is None)
    asked = read_prompt(prompt, text, file, piped=json_schema != "-")
    sampling.params(logprobs)  # whatever the model, they must be right
    messages = [{"role": "user", "content": asked}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    interrupted = False
    with load() as loaded:
        resume(loaded, session)
        params = sampling.params_of(loaded, context, logprobs)
        params = dataclasses.replace(params, grammar=rule.compile(loaded))
        with loaded.stream(messages if chat else asked, params, reasoning_effort=reasoning_effort) as streamer:
            try:
                if not chat and not as_json:
                    show(asked)
                if as_json:
                    for _ in streamer.deltas():
                        pass
                else:
                    show_answer(streamer)
            except KeyboardInterrupt:
                interrupted = True
        generation = streamer.generation
        if as_json:
            report = _report(generation) | {"model": loaded.source, "backend": loaded.backend}
            show(json.dumps(report | {"finish_reason": "abort"} if interrupted else report) + "\n")
        else:
            end_answer(generation.text if chat else asked + generation.text, generation)
        aside(speed(generation.timings))
        if session is not None and generation.tokens:
            loaded.save_session(session)
    if interrupted:
        raise typer.Exit(130)


def _report(generation: Generation) -> dict[str, Any]:
    logprobs = generation.logprobs and [
        {
            "token": sampled.token,
            "logprob": sampled.logprob,
            "top_logprobs": [top._asdict() for top in sampled.top_logprobs],
        }
        for sampled in generation.logprobs
    ]
    return dataclasses.asdict(generation) | {"logprobs": logprobs}
