"""sample_rows: each row's result is that of its sampler alone, whatever the others are and however many threads run."""

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.errors import InputError
from mistral_portable.sampling import Sampled, Sampler, SamplingParams, sample_rows

LONG = 70_000  # entries: rows of this length are shared out among threads by default

settings: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**32), "dry_sequence_breakers": st.just(())},
    optional={
        "temperature": st.sampled_from([0, 0.3, 1, 5]),
        "top_k": st.integers(0, 40),
        "top_p": st.floats(0.01, 1),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0.01, 1),
        "repetition_penalty": st.floats(0.5, 2),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.just(0), st.sampled_from([-math.inf, 2])),
        "repeat_last_n": st.integers(0, 2),
        "top_n_sigma": st.floats(0.1, 3),
        "xtc_probability": st.just(0.5),
        "mirostat": st.just(2),
        "dry_multiplier": st.just(1),
        "dynatemp_range": st.just(0.5),
        "no_repeat_ngram_size": st.just(2),
        "logprobs": st.none() | st.integers(0, 1),
    },
)


@st.composite
def logits(draw: st.DrawFn, rows: int, size: int) -> NDArray[np.float32]:
    """Rows [rows, size], coarse or not, some entries -inf; some rows hold NaN or inf, or -inf alone."""
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    out = (random.standard_normal((rows, size)) * 3).round(draw(st.sampled_from([0, 9]))).astype(np.float32)
    out[random.random((rows, size)) < draw(st.sampled_from([0, 0.3]))] = -np.inf
    for row in out:
        row[random.integers(size)] = draw(st.sampled_from([0, 0, 0, math.nan, math.inf, -math.inf]))
    return out


def alone(sampler: Sampler, row: NDArray[np.float32]) -> Sampled | Exception:
    try:
        return sampler.sample(row)
    except Exception as error:
        return error


def told(results: list[Sampled | Exception]) -> list[object]:
    """Results that can be compared: an error by its type and message."""
    return [(type(each), str(each)) if isinstance(each, Exception) else each for each in results]


@pytest.mark.filterwarnings("ignore:invalid value encountered in add")  # a ban of +inf: NaN, which is then reported
@pytest.mark.parametrize("size", [1, 30, 5000])
@given(params=st.lists(settings, min_size=1, max_size=6), threads=st.none() | st.integers(1, 12), data=st.data())
def test_rows_together_are_the_rows_alone(
    size: int, params: list[dict[str, Any]], threads: int | None, data: st.DataObject
) -> None:
    together, apart = ([Sampler(SamplingParams(**each), prompt_tokens=[0]) for each in params] for _ in range(2))
    for _ in range(3):
        rows = data.draw(logits(len(params), size))
        expected = told([alone(sampler, row) for sampler, row in zip(apart, rows, strict=True)])
        assert told(sample_rows(together, rows, threads=threads)) == expected


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_long_rows_are_the_same_on_any_number_of_threads(threads: int | None) -> None:
    """All threads work on large arrays of their own at the same time."""
    params: list[dict[str, Any]] = [
        {}, {"top_p": 0.9}, {"top_k": 40, "top_p": 0.95}, {"logprobs": 5}, {"temperature": 0},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.5}, {"min_p": 0.01}, {"temperature": 1}, {"typical_p": 0.9},
    ]  # fmt: skip
    together, apart = ([Sampler(SamplingParams(seed=3, **each)) for each in params] for _ in range(2))
    random = np.random.default_rng(0)
    for _ in range(4):
        rows = (random.standard_normal((len(params), LONG)) * 3).astype(np.float32)
        rows[7, 5] = -np.inf
        expected: list[object] = [sampler.sample(row) for sampler, row in zip(apart, rows, strict=True)]
        assert sample_rows(together, rows, threads=threads) == expected


def test_an_error_stays_in_its_row_and_its_sampler_goes_on() -> None:
    samplers = [Sampler(SamplingParams(seed=seed)) for seed in range(3)]
    fresh = [Sampler(SamplingParams(seed=seed)) for seed in range(3)]
    rows = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    bad = rows.copy()
    bad[1, 7] = np.nan
    first, error, third = sample_rows(samplers, bad)
    assert [first, third] == [fresh[0].sample(rows[0]), fresh[2].sample(rows[2])]
    assert "the logit of token 7 is nan" in str(error)
    assert sample_rows(samplers, rows) == [sampler.sample(row) for sampler, row in zip(fresh, rows, strict=True)]


def test_no_rows_have_no_results() -> None:
    assert sample_rows([], np.zeros((0, 5), np.float32)) == []


@pytest.mark.parametrize(
    "logits", [np.zeros(4, np.float32), np.zeros((3, 4), np.float32), np.zeros((2, 4)), np.zeros((2, 4, 1), np.float32)]
)
def test_only_a_float32_row_a_sampler_is_taken(logits: Any) -> None:
    with pytest.raises(InputError, match=r"pass float32 \[2, vocab\]"):
        sample_rows([Sampler(SamplingParams()) for _ in range(2)], logits)


def test_a_sampler_has_one_row() -> None:
    sampler = Sampler(SamplingParams())
    with pytest.raises(InputError, match="two rows"):
        sample_rows([sampler, Sampler(SamplingParams()), sampler], np.zeros((3, 4), np.float32))


START = """
import os, signal, sys, threading
import numpy as np
from mistral_portable.sampling import Sampler, SamplingParams, sample_rows
rows = np.random.default_rng(0).standard_normal((8, 70000)).astype(np.float32)
def sample():
    return sample_rows([Sampler(SamplingParams(seed=seed)) for seed in range(8)], rows, threads=3)
expected = sample()
"""

FORKS = """
busy = True
def keep_busy():
    while busy:
        sample()
others = [threading.Thread(target=keep_busy) for _ in range(2)]
for other in others:
    other.start()
ended = set()
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that hangs
        os._exit(0 if sample() == expected else 1)
    ended.add(os.waitpid(child, 0)[1])
busy = False
for other in others:
    other.join()
sys.exit(0 if ended == {0} else str(ended))
"""

OUTLIVES = """
main = threading.main_thread()
def outlive():
    while main.is_alive():
        pass
    for _ in range(20):
        assert sample() == expected
    print("same")
threading.Thread(target=outlive).start()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_while_threads_sample_starts_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", START + FORKS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_thread_that_outlives_the_main_one_goes_on() -> None:
    """Python starts no thread then: the caller samples all rows."""
    done = subprocess.run([sys.executable, "-c", START + OUTLIVES], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("same\n", "")
