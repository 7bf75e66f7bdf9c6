"""Sessions: what one process has read, another one goes on from."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_sessions import CHAT, GREEDY, OTHER
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

import mistral_portable as mp
from mistral_portable.boundary.registry import candidates, select
from mistral_portable.config import Window
from mistral_portable.engine.session import read_messages
from mistral_portable.errors import BusyError, CapacityError, ClosedError, InputError

BACKENDS = [found.name for found in candidates() if found.availability.score > 0]
KINDS = [
    (name, dtype, kv_cache)
    for name in BACKENDS
    for dtype in ("float32", "bfloat16")
    if dtype in select(name).capabilities.dtypes
    for kv_cache in select(name).capabilities.dtypes[dtype]
]
NEXT = list(range(30, 45))
W = 8


def text(length: int, first: int = 5) -> list[int]:
    return [(first + 7 * at) % 500 for at in range(length)]


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "dtype", "kv_cache", "window"),
    [*((*kind, 7) for kind in KINDS), *((*kind, None) for kind in KINDS[:1])],
)
def test_another_process_goes_on(backend: str, dtype: str, kv_cache: str, window: Window, tmp_path: Path) -> None:
    file = tmp_path / "chat.session"
    options: dict[str, Any] = {"dtype": dtype, "kv_cache": kv_cache, "window": window}
    with mp.load("tiny", backend=backend, **options) as model:
        history = [*CHAT, *model.generate(CHAT, **GREEDY).tokens, *NEXT]
        assert model.save_session(file) == len(CHAT) + 5  # the last token of the answer was never read
        expected = model.generate(history, logprobs=1, **GREEDY)
        assert model.manager.lanes == ()
    with mp.load("tiny", backend=backend, **options) as model:
        model.generate(OTHER, **GREEDY)
        assert model.load_session(file) == len(CHAT) + 5
        found = model.generate(history, logprobs=1, **GREEDY)
        assert found.timings.cached_tokens == len(CHAT) + 5
        assert (found.tokens, found.logprobs) == (expected.tokens, expected.logprobs)
        assert model.manager.lanes == ()


@pytest.fixture(scope="module")
def windowed() -> Iterator[Callable[[Window], tuple[mp.Model, mp.Model]]]:
    """For a window two models of it, made once."""
    made: dict[Window, tuple[mp.Model, mp.Model]] = {}

    def pair(window: Window) -> tuple[mp.Model, mp.Model]:
        if window not in made:
            one, other = (mp.load("tiny", backend="numba", window=window, max_lanes=1) for _ in range(2))
            made[window] = one, other
        return made[window]

    yield pair
    for models in made.values():
        for model in models:
            model.close()


@settings(max_examples=60)
@given(
    window=st.none() | st.integers(1, W),
    length=st.sampled_from([W - 1, W, W + 1, 2 * W - 1, 2 * W, 2 * W + 1, 63, 64, 65]) | st.integers(2, 140),
    first=st.integers(0, 10**6),
)
def test_any_length_and_window(
    window: Window,
    length: int,
    first: int,
    windowed: Callable[[Window], tuple[mp.Model, mp.Model]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Bit for bit, also the log-probabilities. In a window of 1 no token sees another one: there is nothing to keep."""
    source, target = windowed(window)
    file, tokens = tmp_path_factory.mktemp("sessions") / "one", text(length, first)
    source.manager.forget()
    target.manager.forget()
    source.generate(tokens, max_tokens=1)
    assert source.save_session(file) == length
    known = length if window != 1 else 0
    assert target.load_session(file) == known
    found = target.generate([*tokens, 9], logprobs=3, **GREEDY)
    assert found.timings.cached_tokens == known
    source.manager.forget()
    expected = source.generate([*tokens, 9], logprobs=3, **GREEDY)
    assert expected.timings.cached_tokens == 0
    assert (found.tokens, found.logprobs) == (expected.tokens, expected.logprobs)


def test_a_prompt_names_what_is_saved(model: mp.Model, tmp_path: Path) -> None:
    file = tmp_path / "one"
    for prompt in (CHAT, OTHER):
        model.generate(prompt, **GREEDY)
    assert model.save_session(file) == len(OTHER) + 5
    assert model.save_session(file, CHAT) == len(CHAT)
    assert model.save_session(file, [*CHAT[:50], *OTHER]) == 50
    written = load_file(file)["tokens"]
    assert written.dtype == np.int32
    assert written.tolist() == CHAT[:50]
    messages = [{"role": "user", "content": "Hello"}]
    model.chat(messages, **GREEDY)
    assert model.save_session(file, messages) == len(model.tokenizer.chat(messages))
    model.generate("Once upon a time", **GREEDY)
    assert model.save_session(file, "Once upon a time") == len(model.tokenizer.encode("Once upon a time"))


def test_nothing_to_save_is_one_line(model: mp.Model, tmp_path: Path) -> None:
    file = tmp_path / "one"
    with pytest.raises(InputError, match="nothing to save: generate a text first"):
        model.save_session(file)
    with pytest.raises(InputError, match="nothing to save: this text is not in the cache"):
        model.save_session(file, CHAT)
    model.generate(CHAT, cache_salt="somebody's", **GREEDY)
    with pytest.raises(InputError, match="nothing to save: generate a text first"):
        model.save_session(file)
    with pytest.raises(InputError, match="nothing to save: this text is not in the cache"):
        model.save_session(file, CHAT)
    assert not file.exists()
    with mp.load("tiny", backend="numba", cache_bytes=0) as cold:
        cold.generate(CHAT, **GREEDY)
        for call in (cold.save_session, cold.load_session):
            with pytest.raises(InputError, match="cache_bytes=0: load the model with another value"):
                call(file)
    with pytest.raises(InputError, match="path=3 must be a string or a Path"):
        model.load_session(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_of_others_is_in_a_file(backend: str, tmp_path: Path) -> None:
    """Neither of a longer text in the same pages, nor of one that begins alike, nor what was taken back."""
    files = [tmp_path / "clean", tmp_path / "after others"]
    for number, file in enumerate(files):
        with mp.load("tiny", backend=backend, max_lanes=1) as model:
            if number:
                model.generate(OTHER * 2, **GREEDY)
                model.generate([*CHAT[:70], *OTHER], **GREEDY)
                model.generate(OTHER, **GREEDY)
                model.manager.forget()
                model.generate([*CHAT[:70], *OTHER], **GREEDY)
            else:
                model.generate(CHAT[:70], max_tokens=1)
            assert model.save_session(file, CHAT[:70]) == 70
    clean, after = (load_file(file) for file in files)
    assert clean.keys() == after.keys()
    for name, array in clean.items():
        if array.shape != after[name].shape:  # MLX's pages grow with their texts
            rest = after[name][:, :, array.shape[2] :]
            assert not rest.any()
            after[name] = after[name][:, :, : array.shape[2]]
        close = array.dtype != np.uint8  # executors that are not batch_invariant may round in another way
        assert np.allclose(array, after[name], rtol=1e-4, atol=1e-4) if close else np.array_equal(array, after[name])
        empty = [not row.any() for row in (array, after[name])]
        assert empty[0] == empty[1]


def test_a_chat_is_kept_beside_it(model: mp.Model, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Ünïcode \ud800 \U0001f600\n"}, {"role": "assistant", "content": "é"}]
    model.generate(CHAT, **GREEDY)
    model.save_session(tmp_path / "one", messages=messages)
    assert read_messages(tmp_path / "one") == messages
    assert model.load_session(tmp_path / "one") == len(CHAT) + 5
    model.save_session(tmp_path / "one")
    assert read_messages(tmp_path / "one") is None
    with pytest.raises(InputError, match="these messages cannot be written as JSON"):
        model.save_session(tmp_path / "one", messages=[{"role": object()}])


def test_a_file_is_safetensors_that_begins_with_its_kind(file: Path) -> None:
    assert file.read_bytes()[8:].startswith(b'{"__metadata__":{"mistral_portable.session":"')
    with safe_open(file, "numpy") as opened:
        digest, _, content = opened.metadata()["mistral_portable.session"].partition(" ")
    assert len(digest) == 64
    assert json.loads(content).keys() == {"version", "settings", "lane", "messages", "adapters"}


# --- beside others ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numba", "mlx"])
def test_beside_running_requests(backend: str, tmp_path: Path) -> None:
    """No request finds that a session has the only lane, and each text is the one that it is alone."""
    file = tmp_path / "chat"
    with mp.load("tiny", backend=backend, max_lanes=1) as model:
        prompts = [text(20, first) for first in range(6)]
        expected = [model.generate(prompt, **GREEDY).tokens for prompt in prompts]
        model.generate(CHAT, **GREEDY)
        model.save_session(file)
        errors: list[BaseException] = []
        end = threading.Event()

        def ask() -> None:
            try:
                while not end.wait(0.001):
                    assert [model.generate(prompt, **GREEDY).tokens for prompt in prompts] == expected
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        done = {"saved": 0, "loaded": 0, "busy": 0}
        try:
            while min(done["saved"], done["loaded"]) < 20 and not errors:
                try:
                    if done["loaded"] <= done["saved"]:
                        assert model.load_session(file) == len(CHAT) + 5
                        done["loaded"] += 1
                    else:
                        assert model.save_session(tmp_path / "again", CHAT) == len(CHAT)
                        done["saved"] += 1
                except BusyError:
                    done["busy"] += 1
        finally:
            end.set()
            thread.join()
        assert errors == []
        assert model.manager.lanes == ()


def test_every_lane_is_taken(model: mp.Model, file: Path) -> None:
    with model.lane(), model.lane():
        for call in (model.save_session, model.load_session):
            with pytest.raises(BusyError, match="all 2 lanes are taken"):
                call(file)
    assert model.load_session(file) == model.save_session(file) == len(CHAT) + 5


def test_a_closed_model(model: mp.Model, file: Path) -> None:
    model.close()
    for call in (model.save_session, model.load_session):
        with pytest.raises(ClosedError, match="load it again"):
            call(file)


@pytest.mark.parametrize("backend", ["numba", "mlx"])
def test_a_cache_without_room(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "one"
    with mp.load("tiny", backend=backend, window=None, max_context=512) as model:
        model.generate(OTHER * 3, **GREEDY)
        count = model.save_session(file)
        slot = model.program.slot_bytes(0)
    with mp.load("tiny", backend=backend, window=None, max_context=512, cache_bytes=256 * slot) as model:
        with pytest.raises(CapacityError, match=r"cache_bytes=.* raise it"):
            model.load_session(file)
        assert (model.manager.lanes, model.manager.bytes_in_use) == ((), 0)
        assert model.generate(CHAT[:20], **GREEDY).tokens
    with mp.load("tiny", backend=backend, window=None, max_context=512, cache_bytes=1024 * slot) as model:
        assert model.load_session(file) == count
