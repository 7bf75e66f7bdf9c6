"""SamplingOptions: how the next token is chosen, for the commands that generate."""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Annotated, Any

import typer

from mistral_portable.cli.text import text
from mistral_portable.engine.model import Model
from mistral_portable.sampling import SamplingParams, stated_sampling
from mistral_portable.sampling.params import RANGES, range_of

__all__ = ["SamplingOptions", "SamplingSource", "sampling_option"]

_DEFAULTS = SamplingParams()


class SamplingSource(StrEnum):
    """The values of `--sampling`."""

    MODEL = "model"


def sampling_option(help: str, metavar: str, *names: str, **settings: Any) -> Any:
    """An option in the help's panel "Sampling"."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Sampling", **settings)


def _option(name: str, help: str, *names: str) -> Any:
    """An option for a number of SamplingParams, whose check it has; help and errors say the same range."""

    def parse(text: str | float) -> float:
        try:
            value = float(text) if name in RANGES else int(text)
            checked: Any = {"max_tokens": None, name: value}  # a min_tokens above its default is none alone
            SamplingParams(**checked)
        except ValueError as error:
            raise typer.BadParameter(f"{text!r:.60} is not {range_of(name)}") from error
        return value

    return sampling_option(
        f"{help.rstrip('.')}; {range_of(name)}.", "X" if name in RANGES else "N", *names, parser=parse
    )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Fields of SamplingParams, as they stand on the command line (`grouped`)."""

    max_tokens: Annotated[int | None, _option("max_tokens", "The most tokens to generate.", "--max-tokens", "-n")] = (
        _DEFAULTS.max_tokens
    )
    temperature: Annotated[float, _option("temperature", "Randomness; 0: greedy, always the most probable token.")] = (
        _DEFAULTS.temperature
    )
    top_k: Annotated[int, _option("top_k", "Only the k most probable tokens; 0: all.")] = _DEFAULTS.top_k
    top_p: Annotated[float, _option("top_p", "Only the most probable tokens that together have this probability.")] = (
        _DEFAULTS.top_p
    )
    min_p: Annotated[
        float, _option("min_p", "Only tokens at least this probable, relative to the most probable one.")
    ] = _DEFAULTS.min_p
    typical_p: Annotated[
        float, _option("typical_p", "Only the most typical tokens that together have this probability.")
    ] = _DEFAULTS.typical_p
    repetition_penalty: Annotated[
        float, _option("repetition_penalty", "Above 1: tokens of the prompt and the answer become less probable.")
    ] = _DEFAULTS.repetition_penalty
    frequency_penalty: Annotated[
        float,
        _option("frequency_penalty", "Subtracted from a token's logit for each time that the answer contains it."),
    ] = _DEFAULTS.frequency_penalty
    presence_penalty: Annotated[
        float, _option("presence_penalty", "Subtracted from a token's logit once the answer contains it.")
    ] = _DEFAULTS.presence_penalty
    repeat_last_n: Annotated[
        int, _option("repeat_last_n", "How many of the last tokens these penalties count; -1: all.")
    ] = _DEFAULTS.repeat_last_n
    min_tokens: Annotated[int, _option("min_tokens", "So many tokens at least come before the end.")] = (
        _DEFAULTS.min_tokens
    )
    no_repeat_ngram_size: Annotated[
        int, _option("no_repeat_ngram_size", "No sequence of so many tokens stands twice; 0: off.")
    ] = _DEFAULTS.no_repeat_ngram_size
    top_n_sigma: Annotated[
        float,
        _option("top_n_sigma", "Only logits at most so many standard deviations below the highest; 0 or less: all."),
    ] = _DEFAULTS.top_n_sigma
    xtc_probability: Annotated[
        float,
        _option("xtc_probability", "XTC: how often the probable tokens but the last are left out; 0: off."),
    ] = _DEFAULTS.xtc_probability
    xtc_threshold: Annotated[float, _option("xtc_threshold", "XTC: what makes a token probable.")] = (
        _DEFAULTS.xtc_threshold
    )
    dry_multiplier: Annotated[
        float, _option("dry_multiplier", "DRY: the penalty of a token that lengthens a repetition; 0: off.")
    ] = _DEFAULTS.dry_multiplier
    dry_base: Annotated[float, _option("dry_base", "DRY: the factor of the penalty for each token more.")] = (
        _DEFAULTS.dry_base
    )
    dry_allowed_length: Annotated[
        int, _option("dry_allowed_length", "DRY: the length of a repetition from which on there is a penalty.")
    ] = _DEFAULTS.dry_allowed_length
    dry_penalty_last_n: Annotated[
        int, _option("dry_penalty_last_n", "DRY: how many of the last tokens it looks at; -1: all.")
    ] = _DEFAULTS.dry_penalty_last_n
    dry_sequence_breakers: Annotated[
        list[str] | None,
        sampling_option(
            'DRY: no repetition goes across this text; may be given several times, in place of newline, :, " and *; '
            "none: there is no such text.",
            "TEXT",
            "--dry-sequence-breaker",
            show_default=False,
            parser=text,
        ),
    ] = None
    dynatemp_range: Annotated[
        float, _option("dynatemp_range", "The temperature is up to this lower where the model is sure, or higher.")
    ] = _DEFAULTS.dynatemp_range
    dynatemp_exponent: Annotated[
        float,
        _option("dynatemp_exponent", "How it follows the entropy; above 1: later.", "--dynatemp-exp"),
    ] = _DEFAULTS.dynatemp_exponent
    mirostat: Annotated[int, _option("mirostat", "2: mirostat 2, in place of top-k, top-p and the like.")] = (
        _DEFAULTS.mirostat
    )
    mirostat_tau: Annotated[
        float, _option("mirostat_tau", "Mirostat: the surprise of a token to aim at, in bits.", "--mirostat-ent")
    ] = _DEFAULTS.mirostat_tau
    mirostat_eta: Annotated[float, _option("mirostat_eta", "Mirostat: how fast it learns.", "--mirostat-lr")] = (
        _DEFAULTS.mirostat_eta
    )
    samplers: Annotated[
        str | None,
        sampling_option(
            f"The rules that apply, in their order; of {';'.join(_DEFAULTS.samplers)}.", "A;B;C", show_default=False
        ),
    ] = None
    seed: Annotated[int | None, _option("seed", "The same seed gives the same text.", "--seed", "-s")] = _DEFAULTS.seed
    stop: Annotated[
        list[str] | None,
        sampling_option("Stop before this text; may be given several times.", "TEXT", show_default=False, parser=text),
    ] = None
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Continue after the end-of-sequence token.", rich_help_panel="Sampling")
    ] = _DEFAULTS.ignore_eos

    sampling: Annotated[
        SamplingSource | None,
        sampling_option(
            'What the options that are not given are: "model", as the model\'s generation_config.json says.', "model"
        ),
    ] = None

    def params(self, logprobs: int | None = None) -> SamplingParams:
        """Make the parameters, as if `--sampling` were not given. logprobs: theirs."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "sampling"}
        values["stop"] = tuple(self.stop or ())
        values["samplers"] = _DEFAULTS.samplers if self.samplers is None else tuple(self.samplers.split(";"))
        breakers = self.dry_sequence_breakers
        values["dry_sequence_breakers"] = _DEFAULTS.dry_sequence_breakers if breakers is None else _breakers(breakers)
        return SamplingParams(**values, logprobs=logprobs)

    def params_of(self, model: Model, context: typer.Context, logprobs: int | None = None) -> SamplingParams:
        """Make the parameters; with `--sampling model` options that are not given are as the model's
        generation_config.json says.

        Raises InputError if that says nothing, or what is not supported.
        """
        params = self.params(logprobs)
        if self.sampling is None:
            return params
        stated = stated_sampling(model.generation)
        return replace(params, **{name: value for name, value in stated.items() if not _is_given(context, name)})


def _breakers(given: list[str]) -> tuple[str, ...]:
    """The texts that are given; "none" alone, which is llama.cpp's word, stands for none."""
    return () if given == ["none"] else tuple(given)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and not source.name.startswith("DEFAULT")
