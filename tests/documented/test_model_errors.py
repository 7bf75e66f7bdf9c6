"""Wrong arguments raise ValueError where transformers does, where torch raises another error, and where both let them
through; docs/differences.md lists the last two."""

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from documented_models import VALUES, pair

from mistral_portable import transformers as ours

IDS = np.arange(1, 13).reshape(2, 6)
ONE_LABEL_TOO_MANY = np.array([0, 1, 1])

LM, SEQUENCE, TOKEN, QUESTION = (
    "MistralForCausalLM",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralForQuestionAnswering",
)

SAME: list[tuple[str, dict[str, Any]]] = [
    (LM, {}),
    (LM, {"input_ids": IDS, "labels": IDS[:, :3]}),
    (SEQUENCE, {"input_ids": IDS, "labels": ONE_LABEL_TOO_MANY}),
    (SEQUENCE, {"input_ids": IDS, "labels": np.ones((2, 2), np.float32)}),
    (QUESTION, {"input_ids": IDS, "start_positions": ONE_LABEL_TOO_MANY, "end_positions": ONE_LABEL_TOO_MANY}),
]
OTHERS: list[tuple[str, dict[str, Any], type[Exception]]] = [
    (LM, {"input_ids": IDS[0]}, RuntimeError),
    (LM, {"input_ids": IDS[:, :0]}, RuntimeError),
    (LM, {"input_ids": IDS + 0.5}, RuntimeError),
    (LM, {"input_ids": IDS + 20}, IndexError),
    (LM, {"input_ids": -IDS}, IndexError),
    (LM, {"input_ids": IDS, "labels": IDS + 20}, IndexError),
    (SEQUENCE, {"input_ids": IDS, "labels": np.array([0, 5])}, IndexError),
    (TOKEN, {"input_ids": IDS, "labels": IDS}, IndexError),
    (LM, {"input_ids": IDS, "past_key_values": 5}, AttributeError),
    (LM, {"input_ids": IDS, "past_key_values": ((IDS, IDS),)}, AttributeError),
]
LET_THROUGH: list[tuple[str, dict[str, Any]]] = [
    (LM, {"input_ids": IDS, "attention_mask": np.ones((2, 5))}),
    (LM, {"input_ids": IDS, "attention_mask": np.ones((3, 6))}),
    (LM, {"input_ids": IDS, "logits_to_keep": -1}),
]

JUNK: list[Any] = [
    *(True, -1, 3.5, 10**30, float("nan"), "x", b"x", 1j, object(), len, {"a": 1}, {1}, [None, None]),
    *([], [[]], [[1], [2, 3]], [["a"] * 6] * 2, np.zeros((2, 0)), np.array(["a", "b"]), np.array([[object()]])),
    *(np.full((2, 6), 2**62), np.ones((2, 6, 12), complex), np.datetime64("2020"), torch.tensor(3), torch.ones(2, 6)),
]

GENERATING_SAME: list[dict[str, Any]] = [
    {"input_ids": IDS, "inputs": IDS},
    {"inputs": IDS, "frob": 3},
    {"inputs": IDS, "max_new_tokens": 0},
    {"inputs": IDS, "max_new_tokens": -3},
    {"inputs": IDS, "max_length": 6},
    {"inputs": IDS, "num_return_sequences": 2},
    {"inputs": IDS, "do_sample": True, "temperature": -1.0},
    {"inputs": IDS, "do_sample": True, "top_k": -1},
    {"inputs": IDS, "do_sample": True, "min_p": 2.0},
    {"inputs": IDS, "repetition_penalty": -1.0},
]
GENERATING_LET_THROUGH: list[dict[str, Any]] = [
    {"inputs": IDS, "do_sample": "no"},
    {"inputs": IDS, "num_return_sequences": 0},
    {"inputs": IDS, "do_sample": True, "top_p": 2.0},
    {"inputs": IDS, "do_sample": True, "typical_p": 2.0},
    {"inputs": IDS, "max_new_tokens": 100},
]


def refused(model: Any, arguments: dict[str, Any], method: str = "forward") -> None:
    with pytest.raises(ValueError, match=r"\S") as raised:
        getattr(model, method)(**arguments)
    assert "\n" not in str(raised.value)


def ask_theirs(model: Any, arguments: dict[str, Any], method: str = "forward") -> None:
    """Make the same call of transformers' model."""
    tensors = {name: torch.tensor(v) if isinstance(v, np.ndarray) else v for name, v in arguments.items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(model, method)(**tensors)


@pytest.mark.parametrize(("name", "arguments"), SAME)
def test_what_raises_value_error_there_does_here(name: str, arguments: dict[str, Any]) -> None:
    mine, theirs = pair(name, VALUES, 0)
    refused(mine, arguments)
    with pytest.raises(ValueError, match=r"\S"):
        ask_theirs(theirs, arguments)


@pytest.mark.parametrize(("name", "arguments", "error"), OTHERS)
def test_what_torch_raises_there_is_a_value_error_here(
    name: str, arguments: dict[str, Any], error: type[Exception]
) -> None:
    mine, theirs = pair(name, VALUES, 0)
    refused(mine, arguments)
    with pytest.raises(error):
        ask_theirs(theirs, arguments)


@pytest.mark.parametrize(("name", "arguments"), LET_THROUGH)
def test_what_is_let_through_there_is_refused_here(name: str, arguments: dict[str, Any]) -> None:
    mine, theirs = pair(name, VALUES, 0)
    refused(mine, arguments)
    ask_theirs(theirs, arguments)


@pytest.mark.parametrize("arguments", GENERATING_SAME)
def test_generate_raises_value_error_as_there(arguments: dict[str, Any]) -> None:
    mine, theirs = pair(LM, VALUES, 0)
    refused(mine, arguments, "generate")
    with pytest.raises(ValueError, match=r"\S"):
        ask_theirs(theirs, arguments, "generate")


@pytest.mark.parametrize("arguments", GENERATING_LET_THROUGH)
def test_generate_refuses_what_is_let_through_there(arguments: dict[str, Any]) -> None:
    mine, theirs = pair(LM, VALUES, 0)
    refused(mine, arguments, "generate")
    ask_theirs(theirs, arguments, "generate")


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "forward") for name in ("MistralModel", LM, SEQUENCE, TOKEN, QUESTION)] + [(LM, "generate")],
)
def test_junk_is_taken_or_refused_and_no_lane_stays_open(name: str, method: str) -> None:
    mine, _ = pair(name, VALUES, 0)
    call = getattr(mine, method)
    right: dict[str, Any] = {"input_ids": IDS}
    right |= {"max_new_tokens": 2} if method == "generate" else {}
    right |= {"start_positions": [1, 2], "end_positions": [1, 2]} if name == QUESTION else {}
    fields = [name for name in vars(ours.GenerationConfig()) if not name.startswith("_")]
    named = [parameter for parameter in inspect.signature(call).parameters if parameter != "options"]
    functions = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")  # what they raise is the caller's
    unclear = []
    for argument in [*named, *([*fields, "frob"] if method == "generate" else ())]:
        for junk in JUNK if argument not in functions else [junk for junk in JUNK if not callable(junk)]:
            try:
                call(**{**right, argument: junk})
            except ValueError as error:
                if argument.removesuffix("s") not in str(error):
                    unclear.append((argument, str(error)))
    assert {argument for argument, _ in unclear} <= {"inputs", "cache"}  # names of the same argument
    assert mine.decoder.manager.lanes == ()
