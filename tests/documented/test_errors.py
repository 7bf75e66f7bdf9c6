"""Errors of the documented models by who must act, as Python's own errors; calls that fail leave no trace."""

import copy
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented_models import VALUES, pair

from mistral_portable import errors
from mistral_portable import transformers as ours
from mistral_portable.cache import CacheManager, CacheSpec
from mistral_portable.errors import BusyError, CapacityError, CheckpointError, ClosedError, InputError, NumericsError
from mistral_portable.weights import DenseTensor

IDS = np.arange(1, 13).reshape(2, 6)
PAGE = Path(__file__).parent.parent.parent / "docs" / "documented-api.md"


def model(**changed: Any) -> Any:
    return pair("MistralForCausalLM", {**VALUES, **changed}, 0)[0]


def test_the_page_names_the_python_errors() -> None:
    rows = re.findall(r"^\| `(\w+Error)` \| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name for name, _ in rows}
    assert listed == set(errors.__all__) - {"MistralPortableError", "GraphError", "NotKeptWarning"}
    for name, python in rows:
        kind = getattr(errors, name)
        bases = [base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"]
        assert bases[0] == python


def test_a_closed_model_or_cache_is_a_runtime_error() -> None:
    mine = model()
    past = mine(IDS).past_key_values
    past.close()
    calls: tuple[Callable[[], object], ...] = (
        lambda: mine([[5], [6]], past_key_values=past),
        lambda: copy.copy(past),
        lambda: past.crop(3),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="past_key_values are closed") as raised:
            call()
        assert raised.type is ClosedError
    mine.close()
    with pytest.raises(RuntimeError, match="the model is closed") as raised:
        mine(IDS)
    assert raised.type is ClosedError


def test_no_lanes_are_a_runtime_error_until_a_cache_is_let_go_of() -> None:
    mine = model()
    held = mine(np.ones((256, 1), np.int64)).past_key_values
    with pytest.raises(RuntimeError, match="2 rows more: caches have at most 256 in all") as raised:
        mine(IDS)
    assert raised.type is BusyError
    del held
    assert mine(IDS).past_key_values.get_seq_length() == 6


def test_a_copy_that_finds_too_few_lanes_takes_none() -> None:
    mine = model()
    held = mine(np.ones((200, 1), np.int64)).past_key_values
    with pytest.raises(BusyError, match="200 rows more") as raised:
        copy.copy(held)
    assert raised.tb is not None  # whoever keeps it keeps no lanes
    assert len(mine.decoder.manager.lanes) == 200


def test_a_step_that_fails_leaves_a_copy_and_its_source_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both share a page, of which the step was to make a copy."""
    mine = model()
    past = mine(IDS).past_key_values
    copied = copy.copy(past)
    expected = mine(IDS, past_key_values=copy.copy(past)).logits

    def fail(*arguments: object) -> None:
        raise CapacityError("no memory for a longer cache")

    monkeypatch.setattr(mine.decoder.program, "step", fail)
    with pytest.raises(CapacityError):
        mine(IDS, past_key_values=past)
    monkeypatch.undo()
    assert past.get_seq_length() == copied.get_seq_length() == 6
    for cache in (past, copied):
        np.testing.assert_array_equal(mine(IDS, past_key_values=cache).logits, expected)


def test_lanes_of_a_cache_that_could_not_be_made_are_given_back() -> None:
    manager = CacheManager(
        CacheSpec.from_config(
            ours.MistralConfig(**VALUES).native(), max_context=64, page_size=16, max_chunk=8, max_lanes=3
        )
    )
    with pytest.raises(BusyError) as raised:
        ours.Cache(manager, 4, lambda cache, rows: copy.copy(cache))
    assert raised.tb is not None  # whoever keeps it keeps no lanes
    assert manager.lanes == ()


def test_outputs_that_do_not_fit_are_a_memory_error() -> None:
    mine = model(max_position_embeddings=2**22)
    past = mine([[1, 2, 3]]).past_key_values
    with pytest.raises(MemoryError, match=r"attentions.0 \[1, 3, 4000000, 4000003\] takes .* GB") as raised:
        mine(np.ones((1, 4_000_000), np.int64), past_key_values=past, output_attentions=True)
    assert raised.type is CapacityError
    assert past.get_seq_length() == mine.decoder.manager.length(past.lanes[0]) == 3


def test_corrupt_weights_are_an_arithmetic_error_of_generate() -> None:
    """Other calls return what is computed, as transformers does."""
    config = ours.MistralConfig(**VALUES)
    tensors = dict(ours.MistralForCausalLM(config, backend="reference").tensors)
    head = tensors["lm_head.weight"].numpy(np.float32).copy()
    head[3] = np.nan
    tensors["lm_head.weight"] = DenseTensor("lm_head.weight", "float32", head)
    mine = ours.MistralForCausalLM(config, backend="reference", tensors=tensors)
    assert np.isnan(mine(IDS).logits[..., 3]).all()
    with pytest.raises(ArithmeticError, match="the weights are corrupt or the dtype overflowed") as raised:
        mine.generate(IDS)
    assert raised.type is NumericsError


@pytest.mark.parametrize(
    ("call", "kind", "python"),
    [
        (lambda path: model()(IDS + 20), InputError, ValueError),
        (lambda path: ours.MistralConfig(num_key_value_heads=3), errors.ConfigError, ValueError),
        (lambda path: model().save_pretrained(path), CheckpointError, Exception),
        (lambda path: ours.AutoModel.from_pretrained("tiny", backend="frob"), errors.BackendError, Exception),
        (lambda path: ours.MistralCommonTokenizer(path), errors.TokenizerError, Exception),
    ],
)
def test_the_other_errors(
    call: Callable[[Path], Any], kind: type[Exception], python: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(python) as raised:
        call(tmp_path / "file" / "beneath")
    assert raised.type is kind
    assert "\n" not in str(raised.value)


LONG = np.ones((3, 1200), np.int64)  # eight steps of three rows


class FailingStep:
    """A program's `step` whose call number `at` runs `meanwhile` and fails."""

    def __init__(self, program: Any, at: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.step, self.at, self.meanwhile = program.step, at, meanwhile
        program.step = self

    def __call__(self, *arguments: Any) -> Any:
        self.at -= 1
        if self.at == 0:
            self.meanwhile()
            raise CapacityError("no memory for a longer cache")
        return self.step(*arguments)


@pytest.mark.parametrize("at", [1, 3])
def test_a_step_that_fails_leaves_every_row_as_it_was(at: int) -> None:
    mine = model(max_position_embeddings=2000, sliding_window=None)
    past = mine(LONG[:, :5]).past_key_values
    twin = copy.copy(past)
    program = mine.decoder.program
    step = FailingStep(program, at).step
    with pytest.raises(MemoryError, match="no memory for a longer cache"):
        mine(LONG, past_key_values=past)
    program.step = step
    assert [mine.decoder.manager.length(lane) for lane in past.lanes] == [5, 5, 5]
    more = [[5], [6], [7]]
    np.testing.assert_array_equal(mine(more, past_key_values=past).logits, mine(more, past_key_values=twin).logits)


def test_a_window_that_has_moved_on_closes_the_cache() -> None:
    mine = model(max_position_embeddings=2000)
    past = mine(LONG[:, :5]).past_key_values
    FailingStep(mine.decoder.program, 8)
    with pytest.raises(CapacityError, match="no memory for a longer cache"):
        mine(LONG, past_key_values=past)
    with pytest.raises(ClosedError):
        past.require_open()
    assert mine.decoder.manager.lanes == ()


def test_a_cache_that_another_thread_closes_hides_no_error() -> None:
    mine = model(max_position_embeddings=2000)
    past = mine(LONG[:, :5]).past_key_values

    def close() -> None:
        thread = threading.Thread(target=past.close)
        thread.start()
        thread.join()

    FailingStep(mine.decoder.program, 2, close)
    with pytest.raises(CapacityError, match="no memory for a longer cache"):
        mine(LONG, past_key_values=past)
    assert mine.decoder.manager.lanes == ()


@pytest.mark.parametrize("row", [0, 1, 2])
def test_one_lane_that_is_gone_keeps_no_other(row: int) -> None:
    mine = model(max_position_embeddings=2000)
    past = mine(LONG[:, :5]).past_key_values
    manager = mine.decoder.manager
    FailingStep(mine.decoder.program, 2, lambda: manager.close(past.lanes[row]))
    with pytest.raises(CapacityError, match="no memory for a longer cache"):
        mine(LONG, past_key_values=past)
    with pytest.raises(ClosedError):
        past.require_open()
    assert manager.lanes == ()
