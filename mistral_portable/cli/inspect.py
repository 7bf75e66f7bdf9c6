"""`inspect`: show what a checkpoint holds and how much memory it needs, without reading its weights."""

import json
from collections import Counter
from dataclasses import asdict, replace
from enum import StrEnum
from math import prod
from typing import Annotated, Any

import typer

from mistral_portable.cache import CacheSpec
from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.loading import open_model
from mistral_portable.cli.model_name import hub_name, named, placed
from mistral_portable.cli.options import JsonOption, ModelArgument, NamedOption, RevisionOption
from mistral_portable.cli.output import size
from mistral_portable.cli.ranges import with_range
from mistral_portable.cli.table import print_table
from mistral_portable.config import MistralConfig
from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.graph import build, to_mermaid, to_text
from mistral_portable.graph.passes import select_rows
from mistral_portable.tokenizer import load_tokenizer
from mistral_portable.weights import Checkpoint
from mistral_portable.weights.hub_cache import read_cache

__all__ = ["GraphFormat", "inspect"]

_CONTEXT = 4096


class GraphFormat(StrEnum):
    """The values of `--graph`."""

    TEXT = "text"
    MERMAID = "mermaid"


def inspect(
    model: ModelArgument = None,
    name: NamedOption = None,
    graph: Annotated[
        GraphFormat | None, typer.Option(help="Print the graph that the engine runs, and nothing else.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors, and nothing else.")] = False,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            **with_range(f"Tokens to compute the cache's size for; by default {_CONTEXT} or the model's limit.", 1),
        ),
    ] = None,
    as_json: JsonOption = False,
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Show a model's configuration, its size, and the memory that weights and cache need."""
    [model] = placed(name, model)
    model = named(model)
    if graph and (tensors or as_json):
        raise typer.BadParameter("goes with neither --tensors nor --json", param_hint="'--graph'")
    checkpoint = open_model(model, revision)
    if graph:
        write = to_text if graph is GraphFormat.TEXT else to_mermaid
        typer.echo(write(select_rows(build(checkpoint.config), "logits")))
    elif tensors:
        _print_tensors(checkpoint, as_json)
    elif as_json:
        typer.echo(json.dumps(_summary(checkpoint, context) | {"cached": _cached(model)}, indent=2))
    else:
        _print_summary(_summary(checkpoint, context) | {"cached": _cached(model)})


def _print_tensors(checkpoint: Checkpoint, as_json: bool) -> None:
    rows = [(tensor.name, tensor.dtype, list(tensor.shape), tensor.nbytes) for tensor in checkpoint.tensors.values()]
    columns = ("name", "dtype", "shape", "bytes")
    if as_json:
        typer.echo(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    else:
        print_table(columns, [[*map(str, row)] for row in rows], right=["bytes"])


def _summary(checkpoint: Checkpoint, context: int | None) -> dict[str, Any]:
    config = checkpoint.config
    limit = config.max_position_embeddings
    tokens = min(_CONTEXT, limit) if context is None else context
    if tokens > limit:
        raise InputError(f"context={tokens} must be from 1 to max_position_embeddings={limit}")
    spec = CacheSpec.from_config(config, max_context=tokens, page_size=None)  # pages round up what this says
    parameters, stored = Counter[str](), Counter[str]()
    for tensor in checkpoint.tensors.values():
        parameters[tensor.dtype] += prod(tensor.shape)
        stored[tensor.dtype] += tensor.nbytes
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "tokenizer": _tokenizer(checkpoint),
        "parameters": parameters,
        "weights_bytes": {"stored": stored, "float32": 4 * parameters.total()},
        "context": tokens,
        "cache_bytes": {"float16": spec.lane_bytes(2), "float32": spec.lane_bytes(4)},
        "config": _described(config),
        "generation": checkpoint.generation,
        "notices": checkpoint.notices,
    }


def _cached(model: str) -> list[dict[str, Any]]:
    """The content of the hub's cache of a model's repository; nothing for a model that is not from the hub."""
    try:
        repository, _ = hub_name(model)
    except InputError:
        return []
    found = [own for own in read_cache().models if own.repository == repository]
    return [{"model": own.name, "revision": own.revision, "bytes": own.size} for own in found]


def _described(config: MistralConfig) -> dict[str, Any]:
    """`config.to_dict()`, with `query_scale` as a key of its own where YaRN and the query scale have different original
    lengths: config.json has no keys for the two."""
    yarn, queries = config.yarn, config.query_scale
    if yarn and queries and yarn.original_max_position_embeddings != queries.original_max_position_embeddings:
        return {**replace(config, query_scale=None).to_dict(), "query_scale": asdict(queries)}
    return config.to_dict()


def _tokenizer(checkpoint: Checkpoint) -> str:
    if checkpoint.tokenizer is None:
        return "none"
    try:
        tokenizer = load_tokenizer(checkpoint.tokenizer)
    except TokenizerError as error:
        return f"unusable: {error}"
    return f"{tokenizer.kind} {tokenizer.version}, {tokenizer.vocab_size} tokens"


def _print_summary(summary: dict[str, Any]) -> None:
    parameters, weights, cache = summary["parameters"], summary["weights_bytes"], summary["cache_bytes"]
    types = ", ".join(f"{dtype}: {count:,} in {size(weights['stored'][dtype])}" for dtype, count in parameters.items())
    rows = {
        "path": summary["path"],
        "format": summary["format"],
        "tokenizer": summary["tokenizer"],
        "parameters": f"{parameters.total():,} ({types})",
        "weights": f"{size(weights['stored'].total())} as stored, {size(weights['float32'])} in float32",
        "cache": f"{size(cache['float16'])} in float16, {size(cache['float32'])} in float32, "
        f"for a sequence of {summary['context']} tokens",
    }
    if summary["cached"]:
        held = [f"{own['model']} ({own['revision']}), {size(own['bytes'])}" for own in summary["cached"]]
        rows["in the hub's cache"] = "; ".join(held)
    rows[""] = ""
    fields = [*rows.items(), *((name, str(value)) for name, value in summary["config"].items())]
    if summary["generation"]:
        fields += [(" ", ""), *((name, str(value)) for name, value in summary["generation"].items())]
    print_table(["", ""], fields)
