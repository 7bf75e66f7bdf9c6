"""The options that several commands share, and the two groups of them that become values of the engine."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Annotated, Any, Literal

import typer

from mistral_portable.config import Window
from mistral_portable.sampling import SamplingParams

__all__ = [
    "AttentionOption",
    "BackendOption",
    "DebugOption",
    "DeviceOption",
    "DtypeOption",
    "JsonOption",
    "KVCacheOption",
    "ModelArgument",
    "ModelOptions",
    "QuantizeOption",
    "RevisionOption",
    "SamplingOptions",
    "Settings",
    "WindowOption",
    "flatten",
    "window_of",
]

_MODELS = "'tiny' (built in), a folder, a .gguf file or a raw tar, or a hub id: owner/name or owner/name:file.gguf."
_DTYPES = "float32, float64, bfloat16, float16, or int8 (of quantized weights' inputs); by default the backend's choice"
_ATTENTION = "Its attention kernel: flash_attn, varlen, flex, sdpa or eager; by default the best usable one."
_DEFAULTS = SamplingParams()


@dataclass
class Settings:
    """What the error handling must know of the command line, also when a command has failed."""

    debug: bool = False


def _set_debug(context: typer.Context, debug: bool) -> None:
    context.obj.debug |= debug


def _model(help: str, metavar: str = "NAME", *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Model", **settings)


def _sampling(help: str, metavar: str = "X", **settings: Any) -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel="Sampling", **settings)


DebugOption = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
ModelArgument = Annotated[str, typer.Argument(help=_MODELS, show_default=False)]
BackendOption = Annotated[str, _model("The executor; 'backends' lists them.")]
DtypeOption = Annotated[str | None, _model(_DTYPES + ".", "TYPE")]
KVCacheOption = Annotated[
    str | None,
    _model("Type of cached keys and values: float32, float16 or q8_0; by default the backend's choice.", "TYPE"),
]
DeviceOption = Annotated[
    str | None, _model("Where the torch executor runs: cuda, cuda:1, mps or cpu; by default the best.", "DEVICE")
]
AttentionOption = Annotated[str | None, _model(_ATTENTION, "KERNEL")]
QuantizeOption = Annotated[
    str | None,
    _model(
        "Quantize float weights as they are read: q4_0, q4_1, q5_0, q5_1 or q8_0; with torch (but not to verify) also "
        "nf4, fp4 or int8.",
        "TYPE",
    ),
]
WindowOption = Annotated[
    str,
    _model("Tokens that a token sees, itself included; 'none': all; 'config': as the model says.", "N|none|config"),
]
RevisionOption = Annotated[str | None, _model("Branch, tag or commit of a hub id.")]


@dataclass(frozen=True)
class ModelOptions:
    """The arguments of `mistral_portable.load`."""

    model: Annotated[str, _model(_MODELS, "MODEL")] = "tiny"
    backend: BackendOption = "auto"
    dtype: Annotated[str | None, _model(_DTYPES + ", as 'auto'.", "TYPE", "--dtype", "--torch_dtype")] = None
    quantize: QuantizeOption = None
    kv_cache: KVCacheOption = None
    device: DeviceOption = None
    attention: Annotated[
        str | None, _model(_ATTENTION, "KERNEL", "--attention", "--attn_implementation", show_default=False)
    ] = None
    tensor_parallel: Annotated[
        int | None, _model("Processes, started by torchrun, that share the model (torch; needs --seed).", "N", min=1)
    ] = None
    window: WindowOption = "config"
    max_context: Annotated[
        int | None, _model("Most tokens of prompt and answer together; by default the model's limit.", "N", min=1)
    ] = None
    threads: Annotated[
        int | None, _model("CPU threads; by default the physical cores that this process may use.", "N", min=1)
    ] = None
    revision: RevisionOption = None

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for `load`; also of transformers' command line, whose names are read, too."""
        return dataclasses.asdict(self) | {
            "window": window_of(self.window),
            "dtype": None if self.dtype == "auto" else self.dtype,
            "device": f"cuda:{self.device}" if self.device and self.device.isdecimal() else self.device,
        }


@dataclass(frozen=True)
class SamplingOptions:
    """The fields of `SamplingParams`."""

    max_tokens: Annotated[int | None, _sampling("Most tokens to generate.", "N", min=1)] = _DEFAULTS.max_tokens
    temperature: Annotated[float, _sampling("How much chance; 0: always the likeliest token.", min=0, max=100)] = (
        _DEFAULTS.temperature
    )
    top_k: Annotated[int, _sampling("Only the k likeliest tokens; 0: all.", "N", min=0)] = _DEFAULTS.top_k
    top_p: Annotated[
        float, _sampling("Only the likeliest tokens that together have this probability.", min=0, max=1)
    ] = _DEFAULTS.top_p
    min_p: Annotated[
        float, _sampling("Only tokens at least this probable, relative to the likeliest.", min=0, max=1)
    ] = _DEFAULTS.min_p
    typical_p: Annotated[
        float, _sampling("Only the most typical tokens that together have this probability.", min=0, max=1)
    ] = _DEFAULTS.typical_p
    repetition_penalty: Annotated[
        float, _sampling("Above 1: tokens of the prompt and the answer become less likely.", min=0.01, max=100)
    ] = _DEFAULTS.repetition_penalty
    frequency_penalty: Annotated[
        float, _sampling("Taken off a token's logit for each time that the answer has it.", min=-2, max=2)
    ] = _DEFAULTS.frequency_penalty
    presence_penalty: Annotated[
        float, _sampling("Taken off a token's logit once the answer has it.", min=-2, max=2)
    ] = _DEFAULTS.presence_penalty
    seed: Annotated[int | None, _sampling("The same seed gives the same text.", "N", min=0)] = _DEFAULTS.seed
    stop: Annotated[
        list[str], _sampling("End before this text; may be given several times.", "TEXT", show_default=False)
    ] = field(default_factory=list)
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end token.", rich_help_panel="Sampling")
    ] = False

    def params(self) -> SamplingParams:
        """The value for `generate` and `stream`."""
        return SamplingParams(**dataclasses.asdict(self))


def flatten(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses: each of their fields becomes an option of the command line."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += map(_parameter, dataclasses.fields(parameter.annotation))
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{option.name: values.pop(option.name) for option in dataclasses.fields(group)})
        command(**values)

    # Where typer looks.
    flat.__dict__["__signature__"] = inspect.Signature(parameters)
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _parameter(option: dataclasses.Field[Any]) -> inspect.Parameter:
    default = option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option.type)


def window_of(text: str) -> Window | Literal["config"]:
    """The value of a WindowOption; a usage error if it is none."""
    if text == "config":
        return "config"
    if text == "none":
        return None
    if text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0:
        return int(text)
    raise typer.BadParameter(f"{text!r} is not 'config', 'none' or a whole number from 1", param_hint="'--window'")
