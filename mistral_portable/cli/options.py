"""The options that several commands have: annotations for their parameters."""

import re
from typing import Annotated, Any, Literal

import typer

from mistral_portable.cli.ranges import with_range
from mistral_portable.config import Window

__all__ = [
    "AdapterOption",
    "AttentionOption",
    "BackendOption",
    "CacheRamOption",
    "ChatTemplateOption",
    "DeviceOption",
    "DraftOption",
    "DtypeOption",
    "JsonOption",
    "KVCacheOption",
    "MaxContextOption",
    "ModelArgument",
    "ModelOption",
    "NamedOption",
    "QuantizeOption",
    "RayOption",
    "RevisionOption",
    "SessionOption",
    "StagesOption",
    "TensorParallelOption",
    "ThreadsOption",
    "VerifyAttentionOption",
    "VerifyDtypeOption",
    "WindowOption",
    "cache_bytes_of",
    "ray_option",
    "window_of",
]


_MODELS = "'tiny' (built in), a folder, a .gguf file or a raw tar, or a hub id: owner/name or owner/name:file.gguf."
_DTYPES = "float32, float64, bfloat16, float16, or int8 (inputs of quantized weights); by default "
_ATTENTION = (
    "The torch executor's attention kernel: triton, flash_attn, varlen, flex, sdpa or eager; by default the best one."
)
_THREADS = "CPU threads; by default the physical cores that this process may use."


def _model(help: str, metavar: str = "NAME", *names: str, **settings: Any) -> Any:
    return typer.Option(*names, metavar=metavar, rich_help_panel="Model", **with_range(help, **settings))


def ray_option(help: str, metavar: str = "N", **settings: Any) -> Any:
    """An option of the panel "Many machines"."""
    return typer.Option(
        metavar=metavar, rich_help_panel="Many machines", show_default=False, **with_range(help, **settings)
    )


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
ThreadsOption = Annotated[int | None, _model(_THREADS, "N", "--threads", "-t", low=1)]
RevisionOption = Annotated[str | None, _model("Branch, tag or commit of a hub id.")]
AdapterOption = Annotated[
    list[str] | None,
    _model(
        "A LoRA adapter, and how much of it (serve: for requests that name it); may be given several times.",
        "PATH[=SCALE]",
    ),
]
ChatTemplateOption = Annotated[
    str | None,
    _model("A file with a Jinja template for chats, the name of one of the model's, or 'mistral'.", "FILE|NAME"),
]
DraftOption = Annotated[
    str,
    _model(
        "Where a text repeats itself steps try several tokens, which changes no text: auto (on executors whose bits do "
        "not depend on it), suffix (on any) or off; MODEL: a small one with the same vocabulary says what to try, too.",
        "auto|suffix|off|MODEL",
    ),
]
ReasoningEffortOption = Annotated[
    str | None,
    typer.Option(
        help="How much the model reasons, in a word that it knows: none, low, high, ...",
        metavar="WORD",
        show_default=False,
    ),
]

# The arguments of `mistral_portable.load`. Two of them also go by the names of transformers' command line. MODEL and
# --model are the same: `placed`.
ModelArgument = Annotated[str | None, typer.Argument(help=_MODELS, metavar="MODEL", show_default=False)]
ModelOption = Annotated[str, _model(_MODELS, "MODEL", "--model", "-m")]
NamedOption = Annotated[str | None, _model("The same as MODEL.", "MODEL", "--model", "-m")]
BackendOption = Annotated[str, _model("The executor; 'backends' lists them.")]
DtypeOption = Annotated[
    str | None, _model(_DTYPES + "('auto') the backend's choice.", "TYPE", "--dtype", "--torch_dtype")
]
VerifyDtypeOption = Annotated[str | None, _model(_DTYPES + "the backend's choice.", "TYPE")]
QuantizeOption = Annotated[
    str | None,
    _model(
        "Quantize float weights as they are read: q4_0, q4_1, q5_0, q5_1 or q8_0; with torch (but not to verify) also "
        "nf4, fp4 or int8.",
        "TYPE",
    ),
]
KVCacheOption = Annotated[
    str | None,
    _model("Type of cached keys and values: float32, float16 or q8_0; by default the backend's choice.", "TYPE"),
]
DeviceOption = Annotated[
    str | None, _model("Where the torch executor runs: cuda, cuda:1, mps or cpu; by default the best.", "DEVICE")
]
AttentionOption = Annotated[
    str | None, _model(_ATTENTION, "KERNEL", "--attention", "--attn_implementation", show_default=False)
]
VerifyAttentionOption = Annotated[str | None, _model(_ATTENTION, "KERNEL")]
TensorParallelOption = Annotated[
    int | None, _model("Processes, started by torchrun, that share the model (torch).", "N", low=1)
]
StagesOption = Annotated[
    int | None,
    _model(
        "Processes that have a part of the layers each; with --threads they work on several texts at a time.",
        "N",
        low=1,
    ),
]
RayOption = Annotated[
    str | None,
    ray_option(
        "Run the stages on this Ray cluster; serve and batch without --stages: replicas. HOST:PORT of its head, auto "
        "(that of this machine), local (start Ray here).",
        "ADDRESS",
    ),
]
WindowOption = Annotated[
    str,
    _model(
        "Tokens that each token attends to, itself included; 'none': all; 'config': the checkpoint's.", "N|none|config"
    ),
]
CacheRamOption = Annotated[
    str | None,
    _model(
        "Memory for keys and values: 512 (MiB), 2G. Those of texts that have ended are kept, so that the same is not "
        "read twice; 0: they are not. By default up to 2G are.",
        "SIZE",
    ),
]
MaxContextOption = Annotated[
    int | None,
    _model(
        "The most tokens of prompt and answer together; by default the model's limit.",
        "N",
        "--max-context",
        "-c",
        low=1,
    ),
]

SessionOption = Annotated[
    str | None,
    _model("Keep what has been read in this file: the next call that begins alike goes on from there.", "FILE"),
]


def cache_bytes_of(text: str | None) -> int | None:
    """The value of a CacheRamOption for `load`: "512" -> 512 MiB, "2G" -> 2 GiB. Raises typer.BadParameter."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})(?:([KMGT])(?:i?B)?)?", text, re.IGNORECASE)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a size like 512 (MiB), 512M or 2G", param_hint="'--cache-ram'")
    return int(found[1]) << 10 * " KMGT".index((found[2] or "M").upper())


def window_of(text: str) -> Window | Literal["config"]:
    """The value of a WindowOption for `load`: "none" -> None, "4096" -> 4096. Raises typer.BadParameter."""
    if text == "config":
        return "config"
    if text == "none":
        return None
    if text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0:
        return int(text)
    raise typer.BadParameter(f"{text!r} is not 'config', 'none' or a whole number from 1", param_hint="'--window'")
