"""Calibration: the importance of each matrix column, as the mean square of its inputs on a text.

An error e of a weight changes an output by e times the weight's input. The mean square of this change over a text is
e^2 times the mean square of the input, so squared errors in column c are weighted by the mean square of input c.
llama.cpp calls a table of these values an importance matrix and computes it in the same way, from chunks of 512 tokens
that each begin with the first token of the text.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.boundary.registry import select
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.conversion.model import Source
from mistral_portable.engine.core import Core
from mistral_portable.errors import InputError, NumericsError, TokenizerError
from mistral_portable.graph import Graph, build, infer_shapes, verify
from mistral_portable.graph.passes import drop_dead_nodes
from mistral_portable.quantization.importance import Importance, relative
from mistral_portable.tokenizer import load_tokenizer

__all__ = ["calibrated"]

_CONTEXT = 512
_STEP_BYTES = 2**28  # limit of the outputs of one step


def calibrated(model: Source, path: Path, options: ExecutorOptions) -> Importance:
    """The importance of the columns of every matrix that a linear or an expert multiplies with, from a text file.

    Example: a matrix with the inputs [3, 0] and [1, 2] has the mean squares [5, 2] and the importance [1.43, 0.57].

    options: `progress`, called as ("calibrating", tokens done, in total), and `threads`, for backends that take it.

    Raises InputError if the file cannot be read or has no tokens, TokenizerError if the model has no tokenizer,
    NumericsError if the inputs of a matrix are NaN or infinite, and BackendError and CapacityError like
    `boundary.prepare` and `Program.step`. The program is closed in any case.
    """
    tokens = _tokens(model, path)
    graph, inputs = _with_inputs(build(model.config))
    context = min(_CONTEXT, model.config.max_position_embeddings)
    shapes = infer_shapes(graph)
    row_bytes = 4 * sum(int(shapes[value][-1]) for value in set(inputs.values()))
    step = max(1, min(context, _STEP_BYTES // row_bytes))
    squares = {value: np.zeros(int(shapes[value][-1])) for value in set(inputs.values())}
    backend = select()
    if "threads" not in backend.capabilities.options:  # meant for the quantizer then
        options = replace(options, threads=None)
    pages = backend.capabilities.page_size
    spec = CacheSpec.from_config(model.config, max_context=context, page_size=pages, max_chunk=step, max_lanes=1)
    core = Core(prepare(backend, graph, model.checkpoint.tensors, spec, options), CacheManager(spec))
    try:
        for begin in range(0, len(tokens), max(1, context - 1)):
            chunk = [tokens[0], *tokens[max(begin, 1) : begin + context]][:context]
            with core.lane() as lane:
                for start in range(0, len(chunk), step):
                    _, outputs = core.run([Chunk(lane, chunk[start : start + step])])
                    for value, total in squares.items():
                        total += np.square(outputs[value], dtype=np.float64).sum(0)
            if options.progress:
                options.progress("calibrating", min(begin + context, len(tokens)), len(tokens))
    finally:
        core.close()
    try:
        return {name: relative(squares[value]) for name, value in inputs.items()}
    except ValueError as error:
        raise NumericsError(
            f"{model.checkpoint.path}: NaN or infinite inputs of its matrices on {path}; its weights are corrupt"
        ) from error


def _with_inputs(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """A graph that outputs the inputs of all its matrices, and the name of the input by that of each matrix.

    The gate and up matrices of all experts of a layer share one input. Down matrices of experts are left out, as their
    inputs are no values of the graph.
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
        raise InputError(f"{path}: not a text file in UTF-8: {error}") from error
    tokens = load_tokenizer(model.checkpoint.tokenizer).encode(text)
    if len(tokens) < 2:
        raise InputError(f"{path} holds no text to calibrate on")
    return tokens
