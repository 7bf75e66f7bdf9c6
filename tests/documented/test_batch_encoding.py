"""BatchEncoding: a dictionary with attributes, arrays on a device, rows by slices."""

import copy
import pickle

import numpy as np
import pytest
import torch

from mistral_portable.transformers import BatchEncoding


def encoding(tensors: str | None = None) -> BatchEncoding:
    return BatchEncoding({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 1]]}, tensors)


def test_entries_are_attributes_and_keywords() -> None:
    assert encoding().input_ids is not None
    assert {**encoding()} == encoding().data
    assert dict(encoding())["input_ids"] == encoding().data["input_ids"]
    assert encoding()[:1] == {"input_ids": [[1, 2]], "attention_mask": [[1, 1]]}
    assert "input_ids" in encoding()
    assert not hasattr(encoding(), "labels")
    with pytest.raises(KeyError):
        encoding()["labels"]


def test_copies_are_equal() -> None:
    assert pickle.loads(pickle.dumps(encoding())) == copy.deepcopy(encoding()) == encoding()


def test_arrays() -> None:
    assert encoding("np").input_ids.dtype == np.int64
    assert encoding("pt").input_ids.dtype == torch.int64
    assert encoding().convert_to_tensors("np").input_ids.tolist() == encoding().input_ids
    assert BatchEncoding({"input_ids": []}, "pt", prepend_batch_axis=True).input_ids.shape == (1, 0)
    with pytest.raises(ValueError, match="input_ids has rows of different lengths"):
        BatchEncoding({"input_ids": [[1], [2, 3]]}, "np")


def test_moving() -> None:
    moved = encoding("pt")
    assert moved.to("meta") is moved
    assert moved.input_ids.device == torch.device("meta")
    assert encoding("pt").to(torch.device("cpu")).input_ids.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(TypeError, match="float16 is no device"):
        encoding("pt").to(torch.float16)
