"""`verify`: run the conformance suite on a user's checkpoint."""

from math import isnan

import typer

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.boundary.registry import select
from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.loading import open_model, working
from mistral_portable.cli.model_name import named, placed
from mistral_portable.cli.options import (
    BackendOption,
    DeviceOption,
    KVCacheOption,
    ModelArgument,
    NamedOption,
    QuantizeOption,
    RevisionOption,
    VerifyAttentionOption,
    VerifyDtypeOption,
)
from mistral_portable.cli.output import one_line
from mistral_portable.cli.table import print_table

__all__ = ["verify"]


def verify(
    model: ModelArgument = None,
    name: NamedOption = None,
    backend: BackendOption = "auto",
    dtype: VerifyDtypeOption = None,
    quantize: QuantizeOption = None,
    kv_cache: KVCacheOption = None,
    device: DeviceOption = None,
    attention: VerifyAttentionOption = None,
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Check a backend against the float64 reference, with a model's weights.

    The exit status is 1 if a check fails, or if the backend cannot run the model. NMSE: normalized mean squared error.
    error: the largest difference. allowed: its limit, from plain arithmetic that rounds to the same types. agree: how
    often the greedy token is the same.
    """
    from mistral_portable.testing import verify_checkpoint

    [model] = placed(name, model)
    model = named(model)
    chosen = select(backend)
    checkpoint = open_model(model, revision, quantize)
    with working(f"{chosen.name} on {model}") as progress:
        options = ExecutorOptions(dtype=dtype, kv_cache=kv_cache, device=device, attention=attention)
        results = verify_checkpoint(checkpoint, chosen, options, progress=progress)
    numbers = ["NMSE", "error", "allowed", "agree"]
    print_table(
        ["check", *numbers, "result"],
        [
            [
                result.name,
                *(_number(value, ".1e") for value in (result.nmse, result.error, result.limit)),
                _number(result.agreement, ".1%"),
                result.status,
            ]
            for result in results
        ],
        right=numbers,
    )
    for result in results:
        if result.status != "pass":
            typer.echo(one_line(f"{result.name}: {result.note}"))
    if any(result.status == "fail" or (result.status != "pass" and result.of_model) for result in results):
        raise typer.Exit(1)


def _number(value: float, form: str) -> str:
    return "" if isnan(value) else format(value, form)  # an unsupported check has no numbers
