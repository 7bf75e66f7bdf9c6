"""`--draft`: who drafts, and what is said of it."""

import json

from cli.processes import invoke

from mistral_portable.cli.output import speed
from mistral_portable.engine import Timings

PROMPT = "red ball " * 20
GREEDY = ("-n", "40", "--temperature", "0", "--ignore-eos", "--json")


def test_answers_are_the_same_and_say_what_was_tried() -> None:
    off = json.loads(invoke("run", PROMPT, *GREEDY, "--draft", "off").out)
    assert off["timings"]["drafted_tokens"] == 0
    for draft in ("suffix", "tiny"):  # the latter is a model, which guesses for itself
        found = json.loads(invoke("run", PROMPT, *GREEDY, "--draft", draft).out)
        assert off["tokens"] == found["tokens"]
        assert 0 <= found["timings"]["accepted_tokens"] <= found["timings"]["drafted_tokens"]


def test_a_draft_model_that_is_not_there() -> None:
    result = invoke("run", "hi", "--draft", "often")
    assert result.status == 1
    assert """--draft 'often' must be "auto", "suffix", "off" or a model (""" in result.err


def test_the_line_behind_an_answer() -> None:
    timings = Timings(
        load_s=1, prefill_tokens=8, cached_tokens=0, prefill_s=2, decode_tokens=20, decode_s=4, peak_memory_bytes=0
    )
    assert speed(timings) == "prompt 8 tokens, 4.0/s; answer 21 tokens, 5.0/s"
    drafting = Timings(**{**vars(timings), "drafted_tokens": 12, "accepted_tokens": 9})
    assert speed(drafting) == "prompt 8 tokens, 4.0/s; answer 21 tokens, 5.0/s (9 of 12 drafted)"
