"""Measure whole generations: what a step takes together with the choice of its token. Used by `tools/bench.py`."""

from mistral_portable.bench import Engine, ModelEngine
from mistral_portable.errors import InputError
from tools.bench_engines import MlxLm

__all__ = ["generated_per_second", "temperature_of"]

_PROMPT = "Once upon a time"
_WORD = "generate:"


def temperature_of(text: str) -> float | None:
    """The temperature of a measurement `generate:TEMPERATURE`; None for any other text. Raises InputError if it is no
    number."""
    if not text.startswith(_WORD):
        return None
    try:
        return float(text.removeprefix(_WORD))
    except ValueError:
        raise InputError(f"{text!r} is not {_WORD}TEMPERATURE, such as generate:0.7") from None


def generated_per_second(engine: Engine, tokens: int, temperature: float) -> float | None:
    """Tokens per second after the first one, of `tokens` or up to the end of the text; None for engines that generate
    nothing by themselves. Nothing is drafted. Raises InputError where there is no second token."""
    if tokens < 2:
        raise InputError(f"--tokens {tokens}: a text is measured from its second token on, give more")
    if isinstance(engine, MlxLm):
        return engine.generated_per_second(tokens, temperature)
    if not isinstance(engine, ModelEngine):
        return None
    made = engine.model.generate(_PROMPT, max_tokens=tokens, temperature=temperature, seed=0, draft="off")
    timings = made.timings
    if not timings.decode_tokens:
        raise InputError(f"generate:{temperature:g}: the text ended after one token, choose another temperature")
    return timings.decode_tokens / timings.decode_s
