"""Measurements: the steps that an engine is asked for."""

from collections.abc import Sequence

import pytest

import mistral_portable as mp
from mistral_portable.bench import STANDARD, ModelEngine, Spread, measure, obstacle, parse, prepare
from mistral_portable.errors import InputError


class Recorder:
    """An engine that notes what it is asked for: "2x100" for a reset, (lengths of chunks, rows of each) for a step."""

    vocab_size = 7
    max_context = 1000
    peak_memory_bytes = 0

    def __init__(self) -> None:
        self.asked: list[object] = []

    def reset(self, sequences: int, room: int) -> None:
        self.asked.append(f"{sequences}x{room}")

    def step(self, chunks: Sequence[Sequence[int]], rows: int) -> None:
        assert all(0 <= token < self.vocab_size for chunk in chunks for token in chunk)
        self.asked.append(([len(chunk) for chunk in chunks], rows))


def asked(text: str, tokens: int, repeats: int) -> tuple[list[object], list[object]]:
    """The steps that `prepare` and each `measure` ask for."""
    engine, measurement = Recorder(), parse(text, tokens)
    prepare(engine, measurement, repeats)
    first, engine.asked = engine.asked, []
    assert measure(engine, measurement, repeats) > 0
    return first, engine.asked


def test_a_prompt_is_one_sequence_in_chunks_with_logits_at_its_end() -> None:
    first, each = asked("prefill:700", tokens=3, repeats=2)
    assert first == ["1x700", ([512], 1)]
    assert each == ["1x700", ([512], 0), ([188], 1)]


def test_decoding_at_a_depth_fills_the_cache_once() -> None:
    first, each = asked("decode:600", tokens=3, repeats=2)
    assert first == ["1x607", ([512], 0), ([88], 1), ([1], 1)]
    assert each == [([1], 1)] * 3


def test_a_prompt_at_a_depth_goes_on_where_the_last_one_ended() -> None:
    first, each = asked("prefill:100@600", tokens=3, repeats=2)
    assert first == ["1x900", ([512], 0), ([88], 1), ([100], 1)]
    assert each == [([100], 1)]


def test_drafted_tokens_are_verified_in_steps_whose_logits_are_all_wanted() -> None:
    first, each = asked("verify:4", tokens=9, repeats=2)
    assert first == ["1x8", ([4], 4)]
    assert each == ["1x8", ([4], 4), ([4], 4)]
    first, each = asked("verify:4@600", tokens=2, repeats=2)
    assert first == ["1x612", ([512], 0), ([88], 1), ([4], 4)]
    assert each == [([4], 4)]


def test_sequences_are_decoded_together_from_the_start() -> None:
    first, each = asked("batch:4", tokens=2, repeats=2)
    assert first == ["4x2", ([1, 1, 1, 1], 1)]
    assert each == ["4x2", ([1, 1, 1, 1], 1), ([1, 1, 1, 1], 1)]
    assert parse("batch:4", 2).rate(0.5) == 16
    assert parse("batch:4@9", 2).depth == 9


@pytest.mark.parametrize(
    "text",
    [
        "",
        "prefill",
        "prefill:",
        "prefill:0",
        "batch:0",
        "decode:-1",
        "run:3",
        "decode:1e3",
        "decode:1@2",
        "prefill:1@",
        "batch:2@",
        "verify:0",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"prefill:TOKENS\[@DEPTH\], decode:DEPTH, batch:SEQUENCES"):
        parse(text, 1)


def test_what_does_not_fit_has_a_reason() -> None:
    engine = Recorder()
    assert obstacle(engine, parse("decode:993", 3), repeats=2) is None
    reason = obstacle(engine, parse("decode:994", 3), repeats=2)
    assert reason == "needs 1001 positions, the context holds 1000"


def test_a_model_takes_the_steps() -> None:
    with mp.load("tiny", backend="reference", max_context=600, max_lanes=3) as model:
        engine = ModelEngine(model)
        for text, length in (("prefill:520", 520), ("decode:515", 515 + 1 + 2 * 2), ("batch:3", 2)):
            measurement = parse(text, 2)
            prepare(engine, measurement, 2)
            assert all(measure(engine, measurement, 2) > 0 for _ in range(2))
            assert [model.manager.length(lane) for lane in model.manager.lanes] == [length] * measurement.sequences
        engine.reset(0, 0)
        assert model.manager.lanes == ()


def test_the_standard_measurements_are_sound() -> None:
    assert [parse(text, 1).name for text in STANDARD] == list(STANDARD)


def test_spread() -> None:
    assert Spread.of([3, 1, 2]) == Spread(median=2, min=1, max=3)
