"""Answers on a terminal: content on stdout, a line for each tool call, reasoning dim beside it."""

import sys

from mistral_portable.answers import Content, Reasoning, ToolCall
from mistral_portable.cli.output import dim, end_line, note, one_line, printable, show
from mistral_portable.engine import Generation, TextStreamer

__all__ = ["end_answer", "show_answer"]


def show_answer(streamer: TextStreamer) -> None:
    """Show content as it is generated, and reasoning, if stderr is a terminal. Tool calls come with `end_answer`."""
    reasons = False
    for delta in streamer.deltas():
        if reasons and not isinstance(delta, Reasoning):
            _think("\n")
            reasons = False
        if isinstance(delta, Reasoning):
            _think(delta.text)
            reasons = True
        elif isinstance(delta, Content):
            show(delta.text)


def end_answer(shown: str, generation: Generation) -> None:
    """End the line of the text that has been shown; show a line for each tool call, and why something is none."""
    if shown or not generation.tool_calls:
        end_line(shown)
    for call in generation.tool_calls:
        show(_line(call) + "\n")
    if generation.call_error:
        note(f"note: no tool call: {one_line(generation.call_error)}")


def _line(call: ToolCall) -> str:
    # White space within strings stays: JSON has newlines only between values.
    return f"{call.name}({' '.join(call.arguments.splitlines())})"


def _think(text: str) -> None:
    if sys.stderr.isatty():
        dim(printable(text))
