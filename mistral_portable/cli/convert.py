"""`convert`: write a checkpoint in another format."""

from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Annotated

import typer

from mistral_portable.cli.adapter_option import scaled_path
from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.loading import reading
from mistral_portable.cli.model_name import placed
from mistral_portable.cli.options import NamedOption, RevisionOption, WindowOption, window_of
from mistral_portable.cli.output import printable, size
from mistral_portable.conversion import convert as convert_checkpoint
from mistral_portable.errors import InputError
from mistral_portable.graph import build
from mistral_portable.weights import open_checkpoint

__all__ = ["Format", "convert"]


class Format(StrEnum):
    """The values of `--to`."""

    HF = "hf"
    GGUF = "gguf"
    RAW = "raw"
    MLX = "mlx"


def convert(
    source: Annotated[
        str | None, typer.Argument(metavar="SRC", help="The model, as 'run' takes it.", show_default=False)
    ] = None,
    destination: Annotated[
        str | None,
        typer.Argument(metavar="DST", help="The folder to write; for gguf the file.", show_default=False),
    ] = None,
    name: NamedOption = None,
    to: Annotated[
        Format | None, typer.Option(help="The format; by default gguf for a DST that ends in .gguf, else hf.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, float16 or bfloat16 for all weights; by default floats stay as they are, and types that the "
            "format cannot hold become float32.",
            metavar="TYPE",
        ),
    ] = None,
    window: WindowOption = "config",
    merge_adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Add a LoRA adapter to the weights, times SCALE; once for each adapter.", metavar="PATH[=SCALE]"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it is a model.")] = False,
    revision: RevisionOption = None,
    input_dir: Annotated[str | None, typer.Option("--input_dir", help="The same as SRC.", metavar="SRC")] = None,
    output_dir: Annotated[str | None, typer.Option("--output_dir", help="The same as DST.", metavar="DST")] = None,
    model_size: Annotated[
        str | None,
        typer.Option("--model_size", help="Refuse a model that is not of this size, such as 7B.", metavar="SIZE"),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write a model in another format: hf (transformers), gguf (llama.cpp), raw (mistral-inference) or mlx (mlx-lm).

    The tokenizer, the chat template and the config go with it. DST appears when it is complete.
    """
    source, destination = placed(name, source, destination)
    source, destination = _one("SRC", source, input_dir), _one("DST", destination, output_dir)
    if to is None:
        to = _format_of(destination)
    sees = window_of(window)
    adapters = [scaled_path(text, "'--merge-adapter'") for text in merge_adapter or ()]
    if model_size is not None:
        _require_size(source, revision, model_size)
    with reading(f"converting {source}") as progress:
        written = convert_checkpoint(
            source,
            destination,
            to.value,
            dtype=dtype,
            window=sees,
            merge_adapters=adapters,
            overwrite=overwrite,
            revision=revision,
            progress=progress,
        )
    typer.echo(printable(f"{written}: {to.value}, {size(_bytes(written))}"))


def _one(name: str, argument: str | None, option: str | None) -> str:
    given = [value for value in (argument, option) if value is not None]
    if len(given) != 1:
        spelling = {"SRC": "--input_dir", "DST": "--output_dir"}[name]
        raise typer.BadParameter(f"give it once, as {name} or as {spelling}", param_hint=f"'{name}'")
    return given[0]


def _format_of(destination: str) -> Format:
    """The format that the name of a destination asks for. Raises typer.BadParameter for names of other files."""
    suffix = Path(destination).suffix.lower()
    if suffix in (".safetensors", ".bin", ".pth", ".pt", ".npz"):
        raise typer.BadParameter(
            f"{destination!r}: a model is a folder, or a file that ends in .gguf: choose such a name, or say --to",
            param_hint="'DST'",
        )
    return Format.GGUF if suffix == ".gguf" else Format.HF


def _require_size(source: str, revision: str | None, wanted: str) -> None:
    """Raise InputError if the model has another size, in whole billions of parameters; small ones in millions."""
    config = open_checkpoint(source, revision=revision).config
    count = sum(prod(parameter.shape) for parameter in build(config).parameters.values())
    found = f"{round(count / 1e9)}B" if count >= 5e8 else f"{round(count / 1e6)}M"
    if wanted.upper() != found:
        raise InputError(f"--model_size {wanted}: {source} has {count:,} parameters; say {found}, or leave it out")


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
