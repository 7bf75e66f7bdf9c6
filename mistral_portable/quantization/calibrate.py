"""How much the columns of each matrix matter: mean squares of what they are multiplied with, on some text.

An error e of a weight moves an output by e times its input. Over a text, the mean square of that is e^2 times the mean
square of the input: so squared errors of column c count by the mean square of input c. llama.cpp calls the table of
these an importance matrix, and takes them as here, from chunks of 512 tokens that each begin with the first token.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.boundary.registry import select
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.conversion.model import Source
from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.graph import Graph, build, infer_shapes, verify
from mistral_portable.graph.passes import drop_dead_nodes
from mistral_portable.quantization.importance import Importance, relative
from mistral_portable.tokenizer import load_tokenizer

__all__ = ["calibrated"]

_CONTEXT = 512
_STEP_BYTES = 2**28  # of inputs that a step may return


def calibrated(model: Source, path: Path, options: ExecutorOptions) -> Importance:
    """Of each matrix that is multiplied with.

    Example: inputs [3, 0] and [1, 2] have the mean squares [5, 2], and [1.43, 0.57] is returned.

    Raises InputError if the file cannot be read or has no tokens, TokenizerError if the model has no tokenizer.
    """
    tokens = _tokens(model, path)
    graph, inputs = _with_inputs(build(model.config))
    context = min(_CONTEXT, model.config.max_position_embeddings)
    shapes = infer_shapes(graph)
    row_bytes = 4 * sum(int(shapes[value][-1]) for value in set(inputs.values()))
    step = max(1, min(context, _STEP_BYTES // row_bytes))
    spec = CacheSpec.from_config(model.config, max_context=context, max_chunk=step, max_lanes=1)
    manager = CacheManager(spec)
    squares = {value: np.zeros(int(shapes[value][-1])) for value in set(inputs.values())}
    program = prepare(select(), graph, model.checkpoint.tensors, spec, options)
    try:
        for begin in range(0, len(tokens), max(1, context - 1)):
            lane = manager.open()
            chunk = [tokens[0], *tokens[max(begin, 1) : begin + context]][:context]
            for start in range(0, len(chunk), step):
                outputs = program.step(manager.plan([Chunk(lane, chunk[start : start + step])]))
                for value, total in squares.items():
                    total += np.square(outputs[value], dtype=np.float64).sum(0)
            manager.close(lane)
            if options.progress:
                options.progress("calibrating", min(begin + context, len(tokens)), len(tokens))
    finally:
        program.close()
    try:
        return {name: relative(squares[value]) for name, value in inputs.items()}
    except ValueError as error:
        raise InputError(f"the model's values on the text are no numbers, its weights are corrupt: {error}") from error


def _with_inputs(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The graph whose outputs are the inputs of its linears, and for each of their weights the name of its input.

    Experts' gate and up count by what reaches any of them; what their down projections get is no value of the graph.
    """
    weights = {"linear": slice(1, 2), "moe": slice(2, 4)}
    inputs = {
        part: node.inputs[0]
        for node in graph.nodes
        if node.op in weights
        for matrix in node.inputs[weights[node.op]]
        for part in graph.parameters[matrix].parts
    }
    outputs = {value: value for value in inputs.values()}
    return verify(drop_dead_nodes(replace(graph, outputs=outputs))), inputs


def _tokens(model: Source, path: Path) -> list[int]:
    if model.checkpoint.tokenizer is None:
        raise TokenizerError(f"{model.checkpoint.path} has no tokenizer, which calibrating on text needs")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no text file in UTF-8: {error}") from error
    tokens = load_tokenizer(model.checkpoint.tokenizer).encode(text)
    if len(tokens) < 2:
        raise InputError(f"{path} holds no text to calibrate on")
    return tokens
