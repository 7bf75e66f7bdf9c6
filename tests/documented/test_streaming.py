"""Streamers show what transformers' show, and answers end where its criteria end them."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from documented_models import VALUES, pair
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral_portable as mp
from mistral_portable import transformers as ours

PROMPT = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


class Seen:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, value: Any) -> None:
        self.seen.append(value.tolist())

    def end(self) -> None:
        self.seen.append("end")


class Texts:
    """A tokenizer whose tokens are these strings."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(self.pieces[id] for id in np.ravel(ids).tolist())


@settings(max_examples=20)  # 30 ms each
@given(seed=st.integers(0, 99), new=st.integers(1, 9), steps=st.booleans(), draws=st.booleans())
def test_any_object_is_given_the_tokens(seed: int, new: int, steps: bool, draws: bool) -> None:
    mine, theirs = pair("MistralForCausalLM", VALUES, seed)
    call = {"max_new_tokens": new, "eos_token_id": [7, 9, 11], "pad_token_id": 0, "return_dict_in_generate": steps}
    seen, expected = Seen(), Seen()
    made = mine.generate(torch.tensor(PROMPT), streamer=seen, do_sample=draws, seed=seed, **call)
    made = made.sequences if steps else made
    assert seen.seen == [PROMPT, *made[:, 3:].T.tolist(), "end"]
    if not draws:
        theirs.generate(torch.tensor(PROMPT), attention_mask=torch.ones(3, 3), streamer=expected, **call)
        assert seen.seen == expected.seen


class Kept(ours.TextStreamer):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.shown: list[tuple[str, bool]] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.shown.append((text, stream_end))


class TheirKept(transformers.TextStreamer):  # type: ignore[misc]  # transformers is not typed
    shown: list[tuple[str, bool]]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.shown.append((text, stream_end))


pieces = st.lists(
    st.sampled_from(["a", "Ä", " b", "c ", "\n", ".", ", ", "中", "あ", "'", "9", " ", "x\n", "-"]), max_size=30
)


@given(prompt=pieces.filter(bool), answer=pieces, skip=st.booleans())
def test_pieces_of_text(prompt: list[str], answer: list[str], skip: bool) -> None:
    tokenizer = Texts([*prompt, *answer])
    mine, theirs = Kept(tokenizer, skip_prompt=skip), TheirKept(tokenizer, skip_prompt=skip)
    theirs.shown = []
    for streamer in (mine, theirs):
        for _ in range(2):  # a streamer may be used again
            streamer.put(torch.tensor([[*range(len(prompt))]]))
            for id in range(len(prompt), len(prompt) + len(answer)):
                streamer.put(torch.tensor([id]))
            streamer.end()
    assert mine.shown == theirs.shown


def test_text_of_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    model = ours.AutoModelForCausalLM.from_pretrained("tiny", backend="numba")
    tokenizer = ours.AutoTokenizer.from_pretrained("tiny")
    ids = tokenizer("Once upon a time", return_tensors="np")
    options: dict[str, Any] = {"skip_prompt": True, "skip_special_tokens": True}
    made = model.generate(**ids, max_new_tokens=30, streamer=ours.TextStreamer(tokenizer, **options))
    text = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert capsys.readouterr().out == text + "\n"
    streamer = ours.TextIteratorStreamer(tokenizer, timeout=60, **options)
    thread = threading.Thread(target=model.generate, kwargs={**ids, "max_new_tokens": 30, "streamer": streamer})
    thread.start()
    shown = list(streamer)
    thread.join()
    assert "".join(shown) == text
    assert len(shown) > 3

    async def main() -> str:
        waiting = ours.AsyncTextIteratorStreamer(tokenizer, timeout=60, **options)
        made = asyncio.to_thread(model.generate, **ids, max_new_tokens=30, streamer=waiting)
        task = asyncio.create_task(made)
        found = "".join([piece async for piece in waiting])
        await task
        return found

    assert asyncio.run(main()) == text


@settings(max_examples=20)  # each generates with both libraries
@given(seed=st.integers(0, 99), steps=st.booleans())
def test_criteria_end_rows(seed: int, steps: bool) -> None:
    """Functions, in lists of transformers' class and ours, for all rows at once."""
    mine, theirs = pair("MistralForCausalLM", VALUES, seed)
    call = {"max_new_tokens": 12, "eos_token_id": 29, "pad_token_id": 0, "return_dict_in_generate": steps}

    def small(input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
        assert input_ids.shape[0] == 3
        return (input_ids[:, -1] < 4) & (input_ids.shape[1] > 4)

    criteria = transformers.StoppingCriteriaList([small, lambda ids, _: ids[:, -1] == 5])
    rows = torch.tensor(PROMPT)
    wanted = theirs.generate(rows, attention_mask=torch.ones_like(rows), stopping_criteria=criteria, **call)
    for own in (criteria, ours.StoppingCriteriaList(criteria)):
        found = mine.generate(rows, attention_mask=torch.ones_like(rows), stopping_criteria=own, **call)
        some, other = (found.sequences, wanted.sequences) if steps else (found, wanted)
        assert some.tolist() == other.tolist()
        assert mine.decoder.manager.lanes == () or steps


def test_criteria_are_given_scores_that_are_asked_for() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    steps = []

    def ends(input_ids: Any, scores: Any) -> bool:
        steps.append(None if scores is None else [step.shape for step in scores])
        return len(steps) == 2

    call: dict[str, Any] = {"max_new_tokens": 9, "stopping_criteria": [ends], "eos_token_id": 29}
    assert mine.generate(PROMPT, **call, return_dict_in_generate=True, output_scores=True).sequences.shape == (3, 5)
    assert steps == [[(3, 30)], [(3, 30), (3, 30)]]
    steps.clear()
    assert mine.generate(PROMPT, **call).shape == (3, 5)
    assert steps == [None, None]


def test_more_rows_than_lanes_end_by_criteria() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0, "float64")
    ids = np.random.default_rng(0).integers(1, 30, (300, 4))
    call: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": 7, "pad_token_id": 0}
    plain = mine.generate(ids, **call)
    found = mine.generate(ids, **call, stopping_criteria=[lambda ids, _: ids[:, -1] % 3 == 0])
    for row, wanted in zip(found.tolist(), plain.tolist(), strict=True):
        end = next((place for place in range(4, 10) if wanted[place] % 3 == 0), 9)
        assert row == (wanted[: end + 1] + [0] * 9)[: found.shape[1]]
    assert mine.decoder.manager.lanes == ()


def test_time() -> None:
    """A row that would go on ends once its time is over; without any time, behind one token."""
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    assert mine.generate(PROMPT, max_new_tokens=20, max_time=0, eos_token_id=29).shape == (3, 4)

    def slow(_: Any, scores: Any) -> Any:
        time.sleep(0.02)
        return scores

    assert (
        mine.generate(PROMPT, max_new_tokens=60, max_time=0.2, eos_token_id=29, logits_processor=[slow]).shape[1] < 20
    )


@settings(max_examples=40)  # each generates twice
@given(data=st.data())
def test_stop_strings(data: st.DataObject) -> None:
    """Every text is cut behind the token that completes a string, wherever tokens are cut."""
    mine, _ = pair("MistralForCausalLM", VALUES, 3)
    parts = data.draw(st.lists(st.text("ab ", min_size=1, max_size=3), min_size=30, max_size=30))
    stops = data.draw(st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=3))
    call: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": 29, "pad_token_id": 0}
    plain = mine.generate(PROMPT, **call)[:, 3:].tolist()
    found = mine.generate(PROMPT, **call, stop_strings=stops, tokenizer=Texts(parts))[:, 3:].tolist()
    for prompt, whole, answer in zip(PROMPT, plain, found, strict=True):
        kept = next((count for count in range(1, 13) if completes(prompt, whole[:count], parts, stops)), len(whole))
        assert answer == (whole[:kept] + [0] * 12)[: len(answer)]


def completes(prompt: list[int], answer: list[int], parts: list[str], stops: list[str]) -> bool:
    """Whether the last token has the end of a string's occurrence."""
    texts = [parts[id] for id in (*prompt, *answer)]
    whole, before = "".join(texts), len("".join(texts[:-1]))
    return any(whole.find(stop, max(0, before - len(stop) + 1)) >= 0 for stop in stops)


@pytest.mark.parametrize("name", ["common", "library"])
def test_stop_strings_of_our_tokenizers(name: str, tmp_path: Path) -> None:
    model = ours.AutoModelForCausalLM.from_pretrained("tiny", backend="numba")
    tokenizer = ours.AutoTokenizer.from_pretrained("tiny")
    ids = tokenizer("Once upon a time", return_tensors="np")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=30)[0], skip_special_tokens=True)
    words = text.split()
    stop = f"{words[6][-2:]} {words[7][:2]}" if name == "common" else words[8]
    made = model.generate(**ids, max_new_tokens=30, stop_strings=stop, tokenizer=tokenizer)
    found = tokenizer.decode(made[0], skip_special_tokens=True)
    assert stop in found
    assert stop not in tokenizer.decode(made[0, :-1], skip_special_tokens=True)
    assert mp.load("tiny").tokenizer.encode("Once upon a time") == ids["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"stop_strings": ["a"]}, "stop_strings are found in text: pass the model's tokenizer="),
        ({"stop_strings": [""], "tokenizer": Texts(["a"])}, "stop_strings=.* must be a string or a list of strings"),
        ({"max_time": "soon"}, "max_time='soon' must be seconds"),
        ({"streamer": object()}, "streamer is a object: pass an object with the methods put and end"),
        ({"streamer": ours.TextStreamer(Texts(["a"] * 30))}, "TextStreamer shows one answer: the batch has 3 rows"),
        ({"stopping_criteria": [3]}, r"stopping_criteria=\[3\]: pass functions of input_ids and scores"),
        ({"stopping_criteria": lambda ids, _: [True] * 2}, r"stopping_criteria has returned \[2\]: return a bool for"),
    ],
)
def test_wrong_arguments_are_one_line(call: dict[str, Any], message: str) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    with pytest.raises(ValueError, match=message) as caught:
        mine.generate(PROMPT, **call)
    assert "\n" not in str(caught.value)
    assert mine.decoder.manager.lanes == ()
