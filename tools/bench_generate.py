"""Measure whole generations: what a step takes together with the choice of its token. Used by `tools/bench.py`."""

from mistral_portable.bench import Engine, ModelEngine
from tools.bench_engines import MlxLm

__all__ = ["generated_per_second", "temperature_of"]

_PROMPT = "Once upon a time"
_WORD = "generate:"


def temperature_of(text: str) -> float | None:
    """The temperature of a measurement `generate:TEMPERATURE`; None for any other text."""
    return float(text.removeprefix(_WORD)) if text.startswith(_WORD) else None


def generated_per_second(engine: Engine, tokens: int, temperature: float) -> float | None:
    """Tokens per second after the first one, of `tokens` or up to the end of the text; None for engines that generate
    nothing by themselves. Nothing is drafted."""
    if isinstance(engine, MlxLm):
        return engine.generated_per_second(tokens, temperature)
    if not isinstance(engine, ModelEngine):
        return None
    made = engine.model.generate(_PROMPT, max_tokens=tokens, temperature=temperature, seed=0, draft="off")
    timings = made.timings
    if not timings.decode_tokens:
        raise RuntimeError(f"the text ended after one token: generate:{temperature} has nothing to measure")
    return timings.decode_tokens / timings.decode_s
