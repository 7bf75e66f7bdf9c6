"""generate, stream, chat and logits, through the public face."""

import gc
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mistral_portable as mp
from mistral_portable.boundary.program import Inputs
from mistral_portable.cache import Chunk, StepPlan
from mistral_portable.errors import BusyError, CapacityError, ClosedError, InputError, NumericsError

PROMPT = "Once upon a time"
CHAT = [{"role": "user", "content": "Tom has a red ball. What color is Tom's ball?"}]


def test_greedy_tokens_are_the_argmax_of_the_teacher_forced_logits(tiny: mp.Model) -> None:
    prompt = tiny.tokenizer.encode(PROMPT)
    out = tiny.generate(PROMPT, max_tokens=150, temperature=0, ignore_eos=True)  # beyond twice the window
    logits = tiny.logits([*prompt, *out.tokens])
    assert logits.dtype == np.float32
    assert logits.shape == (len(prompt) + 150, tiny.config.vocab_size)
    assert list(out.tokens) == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert (out.finish_reason, out.logprobs) == ("length", None)


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=10),
    chunk=st.sampled_from([None, 1, 7, 64]),
    data=st.data(),
)
@settings(max_examples=10)
def test_a_ragged_batch_in_chunks_equals_each_sequence_alone(
    tiny: mp.Model, lengths: list[int], chunk: int | None, data: st.DataObject
) -> None:
    token = st.integers(0, tiny.config.vocab_size - 1)
    sequences = [data.draw(st.lists(token, min_size=n, max_size=n)) for n in lengths]
    batch = tiny.logits(sequences, chunk=chunk)
    assert len(batch) == len(sequences)
    for sequence, together in zip(sequences, batch, strict=True):
        alone = tiny.logits(sequence)
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4 * np.abs(alone).max())  # the figure


def test_text_ids_and_arrays_are_the_same_prompt(tiny: mp.Model) -> None:
    ids = tiny.tokenizer.encode(PROMPT)
    runs = [tiny.generate(prompt, max_tokens=8, temperature=0) for prompt in (PROMPT, ids, np.array(ids))]
    assert len({run.tokens for run in runs}) == 1
    assert len({run.text for run in runs}) == 1


def test_pieces_of_a_stream_join_to_the_text(tiny: mp.Model) -> None:
    stream = tiny.stream(PROMPT, max_tokens=60, seed=3, temperature=1.5)
    pieces = list(stream)
    assert "".join(pieces) == stream.generation.text
    assert stream.generation.text == tiny.generate(PROMPT, max_tokens=60, seed=3, temperature=1.5).text
    ids = tiny.tokenizer.encode(PROMPT)
    whole = tiny.tokenizer.decode([*ids, *stream.generation.tokens])
    assert whole == PROMPT + stream.generation.text


def test_the_seed_decides(tiny: mp.Model) -> None:
    runs = [tiny.generate(PROMPT, max_tokens=20, temperature=2.0, seed=seed).tokens for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_stop_string_ends_the_text_and_does_not_show(tiny: mp.Model) -> None:
    whole = tiny.generate(PROMPT, max_tokens=60, temperature=0, ignore_eos=True).text
    for start in (5, 11, 20):
        stop = whole[start : start + 6]
        stream = tiny.stream(PROMPT, max_tokens=60, temperature=0, ignore_eos=True, stop=stop)
        assert "".join(stream) == whole[: whole.index(stop)]
        assert stream.generation.finish_reason == "stop"


def test_stop_tokens_and_the_end_token(tiny: mp.Model) -> None:
    free = tiny.generate(PROMPT, max_tokens=30, temperature=0, ignore_eos=True)
    token = free.tokens[9]
    stopped = tiny.generate(PROMPT, max_tokens=30, temperature=0, ignore_eos=True, stop_token_ids=[token])
    assert stopped.tokens == free.tokens[: free.tokens.index(token) + 1]
    assert stopped.finish_reason == "stop"
    eos = tiny.tokenizer.eos_id
    ended = tiny.generate(PROMPT, max_tokens=30, temperature=0, logit_bias={eos: 1e6})
    assert (ended.tokens, ended.text, ended.finish_reason) == ((eos,), "", "stop")
    assert len(tiny.generate(PROMPT, max_tokens=5, temperature=0, logit_bias={eos: 1e6}, ignore_eos=True).tokens) == 5


def test_nothing_ends_the_first_min_tokens(tiny: mp.Model) -> None:
    whole = tiny.generate(PROMPT, max_tokens=30, temperature=0, ignore_eos=True)
    least = tiny.generate(PROMPT, max_tokens=12, temperature=0, ignore_eos=True)
    stopped = tiny.generate(PROMPT, max_tokens=30, temperature=0, ignore_eos=True, stop=" ", min_tokens=12)
    assert " " in least.text
    assert stopped.text == least.text + whole.text[len(least.text) :].split(" ")[0]
    eos = tiny.tokenizer.eos_id
    ended = tiny.generate(PROMPT, max_tokens=30, temperature=0, logit_bias={eos: 1e6}, min_tokens=4)
    assert (len(ended.tokens), ended.tokens.index(eos), ended.finish_reason) == (5, 4, "stop")


def test_logprobs_are_those_of_the_logits(tiny: mp.Model) -> None:
    out = tiny.generate(PROMPT, max_tokens=4, temperature=0, logprobs=3)
    logits = tiny.logits([*tiny.tokenizer.encode(PROMPT), *out.tokens])[-5:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert out.logprobs is not None
    for row, sampled in zip(expected, out.logprobs, strict=True):
        assert sampled.logprob == pytest.approx(row[sampled.token], abs=1e-3)
        assert [top.token for top in sampled.top_logprobs] == np.argsort(-row)[:3].tolist()


def test_chat_is_generate_on_the_template(tiny: mp.Model) -> None:
    ids = tiny.tokenizer.chat(CHAT)
    runs = [
        tiny.chat(CHAT, max_tokens=8, temperature=0),
        tiny.generate(CHAT, max_tokens=8, temperature=0),
        tiny.generate(ids, max_tokens=8, temperature=0),
    ]
    assert len({run.tokens for run in runs}) == 1
    assert runs[0].text == tiny.tokenizer.decode(runs[0].tokens)


def test_timings_count_tokens_and_seconds(tiny: mp.Model) -> None:
    out = tiny.generate([1] * 600, max_tokens=7, temperature=0, ignore_eos=True)  # two prefill chunks
    timings = out.timings
    assert (timings.prefill_tokens, timings.decode_tokens) == (600, 6)
    assert min(timings.load_s, timings.prefill_s, timings.decode_s) > 0
    assert timings.peak_memory_bytes > 2**20


def test_generation_ends_with_the_context() -> None:
    with mp.load("tiny", backend="reference", max_context=12) as model:
        out = model.generate([1] * 9, max_tokens=None, temperature=0, ignore_eos=True)
        assert (len(out.tokens), out.finish_reason) == (4, "length")  # 9 + 3 cached, one sampled beyond
        assert len(model.generate([1] * 12, max_tokens=None, temperature=0).tokens) == 1


def test_a_stream_that_is_left_gives_its_lane_back(tiny: mp.Model) -> None:
    lanes = tiny.manager.spec.max_lanes
    for _ in range(2 * lanes):
        stream = tiny.stream(PROMPT, max_tokens=5)
        next(stream)
        stream.close()
    assert tiny.manager.lanes == ()


def test_a_stream_that_is_dropped_gives_its_lane_back_at_once(tiny: mp.Model) -> None:
    gc.disable()  # not some time later
    try:
        for _ in range(2 * tiny.manager.spec.max_lanes):
            for _ in tiny.stream(PROMPT, max_tokens=5):
                break
        assert tiny.manager.lanes == ()
    finally:
        gc.enable()


def test_a_collection_during_a_step_does_not_hang(tiny: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = tiny.stream(PROMPT, max_tokens=5)
    next(stream)
    cycle: list[object] = [stream]
    cycle.append(cycle)
    del stream, cycle
    step = tiny.program.step

    def collecting(plan: StepPlan, inputs: Inputs) -> Mapping[str, NDArray[np.float32]]:
        gc.collect()  # frees the stream, and so its lane, in the middle of a step
        return step(plan, inputs)

    monkeypatch.setattr(tiny.program, "step", collecting)
    assert len(tiny.generate(PROMPT, max_tokens=3, temperature=0, ignore_eos=True).tokens) == 3
    assert tiny.manager.lanes == ()


def test_logits_run_in_the_lanes_that_are_free(tiny: mp.Model) -> None:
    with tiny.stream(PROMPT, max_tokens=5) as stream:
        next(stream)
        assert len(tiny.logits([[1, 2]] * 20)) == 20
    assert tiny.manager.lanes == ()


def test_logits_of_thousands_of_sequences(tiny: mp.Model) -> None:
    assert len(tiny.logits([[1]] * 8100)) == 8100


def test_logits_in_two_threads_share_the_lanes(tiny: mp.Model) -> None:
    expected = tiny.logits([[1, 2, 3]])[0]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: tiny.logits([[1, 2, 3]] * 20), range(8)):
            assert len(found) == 20
            assert np.allclose(found[-1], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert tiny.manager.lanes == ()


def test_where_lanes_are_held_by_hand_the_rest_is_refused() -> None:
    with mp.load("tiny", backend="reference", max_lanes=1) as model:
        with model.lane():
            for call in (lambda: model.logits([1, 2]), lambda: model.generate(PROMPT)):
                with pytest.raises(BusyError, match="every lane is held by others: close one or raise max_lanes"):
                    call()
        assert len(model.generate(PROMPT, max_tokens=2).tokens) == 2


def test_rows_in_place_of_embeddings_are_refused_where_the_graph_takes_none(tiny: mp.Model) -> None:
    rows = np.zeros((1, tiny.config.hidden_size), np.float32)
    with tiny.lane() as lane, pytest.raises(InputError, match="this program takes token ids only"):
        tiny.step([Chunk(lane, [1], [0], rows)])


def test_logits_that_are_not_finite_are_an_error_of_numerics(tiny: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    step = tiny.program.step
    broken = {"logits": np.full((1, tiny.config.vocab_size), np.nan, np.float32)}
    monkeypatch.setattr(tiny.program, "step", lambda *given: step(*given) and broken)
    for temperature in (0, 1):
        with pytest.raises(NumericsError, match="the weights are corrupt"):
            tiny.generate(PROMPT, max_tokens=3, temperature=temperature)


def test_a_lane_that_closes_during_a_failing_step_does_not_hide_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with mp.load("tiny", backend="reference", max_lanes=2) as model, model.lane() as kept:
        other = model.manager.open()

        def fails(plan: StepPlan, inputs: Inputs) -> Mapping[str, NDArray[np.float32]]:
            model.manager.close(other)
            raise CapacityError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(model.program, "step", fails)
            with pytest.raises(CapacityError, match="no memory"):
                model.step([Chunk(other, [1, 2]), Chunk(kept, [3, 4])])
        assert model.manager.length(kept) == 0


def test_a_closed_model_says_so() -> None:
    model = mp.load("tiny", backend="reference")
    model.close()
    model.close()
    for call in (lambda: model.generate(PROMPT), lambda: model.chat(CHAT), lambda: model.logits([1, 2])):
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_the_number_of_threads_changes_nothing_but_the_speed(tiny: mp.Model) -> None:
    with mp.load("tiny", backend="reference", threads=1) as model:
        run = model.generate(PROMPT, max_tokens=20, temperature=0)
    assert run.tokens == tiny.generate(PROMPT, max_tokens=20, temperature=0).tokens


def test_interleaved_streams_and_threads_do_not_disturb_each_other(tiny: mp.Model) -> None:
    prompts = [PROMPT, "The cat", "A red ball"]
    alone = [tiny.generate(prompt, max_tokens=12, temperature=0, ignore_eos=True).text for prompt in prompts]
    streams = [tiny.stream(prompt, max_tokens=12, temperature=0, ignore_eos=True) for prompt in prompts]
    texts = ["", "", ""]
    running = set(range(3))
    while running:
        for i in sorted(running):
            piece = next(streams[i], None)
            if piece is None:
                running.remove(i)
            else:
                texts[i] += piece
    assert texts == alone
    results: dict[int, str] = {}

    def work(i: int) -> None:
        results[i] = tiny.generate(prompts[i], max_tokens=12, temperature=0, ignore_eos=True).text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(3)] == alone


def test_a_step_that_fails_leaves_all_sequences_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the program may have written some of its keys, at every length up to beyond twice the window."""
    with mp.load("tiny", backend="reference", max_lanes=3) as model, model.lane() as a, model.lane() as b:
        window = model.config.sliding_window
        assert isinstance(window, int)
        calm = model.program.step

        def fails(plan: StepPlan, inputs: Inputs) -> Mapping[str, NDArray[np.float32]]:
            calm(plan, inputs)
            raise CapacityError("no memory")

        tokens = np.random.default_rng(0).integers(5, model.config.vocab_size, 2 * window + 9).tolist()
        for start in range(0, len(tokens), 16):
            chunk = tokens[start : start + 16]
            with monkeypatch.context() as patch:
                patch.setattr(model.program, "step", fails)
                with pytest.raises(CapacityError, match="no memory"):
                    model.step([Chunk(a, chunk[::-1]), Chunk(b, chunk[:1])])
            last = model.step([Chunk(a, chunk, [len(chunk) - 1])])
            assert np.allclose(last[0], model.logits(tokens[: start + 16])[-1], atol=1e-4)
        assert (model.manager.length(a), model.manager.length(b)) == (len(tokens), 0)
