"""`quantize`: write a checkpoint in fewer bits."""

from pathlib import Path
from typing import Annotated

import typer

from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.loading import reading
from mistral_portable.cli.model_name import placed
from mistral_portable.cli.options import NamedOption, RevisionOption, ThreadsOption
from mistral_portable.cli.output import printable, size
from mistral_portable.quantization import MIXTURES
from mistral_portable.quantization import quantize as quantize_checkpoint

__all__ = ["quantize"]


def quantize(
    source: Annotated[
        str | None, typer.Argument(metavar="SRC", help="The model, as 'run' takes it.", show_default=False)
    ] = None,
    destination: Annotated[
        str | None, typer.Argument(metavar="DST", help="The GGUF file to write.", show_default=False)
    ] = None,
    kind: Annotated[str | None, typer.Argument(metavar="TYPE", help="The same as --type.", show_default=False)] = None,
    name: NamedOption = None,
    type: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(MIXTURES)}; by default q4_k_m.", metavar="TYPE")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="A text to run the model on first, so that errors are weighted by their effect on its outputs.",
            metavar="FILE",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(help="An importance matrix file of llama.cpp, instead of --calibrate.", metavar="FILE"),
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Accept weights that are quantized already.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it is a GGUF file.")] = False,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Write a model as a GGUF file of fewer bits, which llama.cpp runs as well.

    The mixtures are llama.cpp's: q4_k_m gives 4 bits to most matrices, and 6 to some that matter more. DST appears when
    it is complete. 'perplexity' measures what the quantization costs.
    """
    source, destination, kind = placed(name, source, destination, kind)
    if destination is None:
        raise typer.BadParameter("give a model and a file to write: SRC DST", param_hint="'DST'")
    if kind is not None and type is not None:
        raise typer.BadParameter(f"{kind!r} beside --type {type!r}: give one of them", param_hint="'TYPE'")
    mixture = (kind or type or "q4_k_m").lower()
    with reading(f"quantizing {source}") as progress:
        written = quantize_checkpoint(
            str(source),
            destination,
            mixture,
            calibrate=calibrate,
            imatrix=imatrix,
            allow_requantize=allow_requantize,
            threads=threads,
            overwrite=overwrite,
            revision=revision,
            progress=progress,
        )
    typer.echo(printable(f"{written}: {mixture}, {size(written.stat().st_size)}"))
