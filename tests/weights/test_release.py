"""`release` releases the pages of a mapped file and keeps its contents."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from weights.resident import resident_files

from mistral_portable.weights import DenseTensor, release
from mistral_portable.weights.source import map_file

CONTENT = np.arange(2**22, dtype=np.uint32).view(np.uint8)
SIZE = CONTENT.nbytes


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint8]:
    path = tmp_path_factory.mktemp("mapped") / "file"
    path.write_bytes(CONTENT.tobytes())
    return np.frombuffer(map_file(path), np.uint8)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_leave_the_memory_and_come_back(mapped: NDArray[np.uint8]) -> None:
    expected = int(mapped.sum())
    before = resident_files()
    release(mapped)
    assert resident_files() < before - SIZE // 2
    assert int(mapped.sum()) == expected
    assert resident_files() > before - SIZE // 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_only_the_pages_of_the_array_leave(mapped: NDArray[np.uint8]) -> None:
    int(mapped.sum())
    before = resident_files()
    release(mapped[100 : SIZE // 4].reshape(-1, 4).view(np.uint16))
    assert before - SIZE // 2 < resident_files() < before - SIZE // 8


@given(st.integers(0, SIZE), st.integers(0, SIZE), st.integers(1, 3))
def test_any_view_can_be_released(mapped: NDArray[np.uint8], begin: int, end: int, step: int) -> None:
    release(mapped[begin:end:step])
    np.testing.assert_array_equal(mapped[begin:end:step], CONTENT[begin:end:step])


def test_arrays_that_are_no_views_of_a_file_stay_as_they_are(mapped: NDArray[np.uint8]) -> None:
    for array in (np.ones(2**14), np.ones((2**7, 2**7))[1:], np.frombuffer(b"x" * 2**14, np.uint8), mapped.copy()):
        copy = array.copy()
        release(array)
        np.testing.assert_array_equal(array, copy)


def test_what_was_written_to_a_private_mapping_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2**16))
    with path.open("rb") as file:
        array = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    array[:] = 7
    release(array)
    assert (array == 7).all()


def test_a_range_of_rows_is_a_view_where_rows_lie_in_order() -> None:
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    tensor = DenseTensor("w", "float32", values)
    assert np.shares_memory(tensor.rows(slice(2, 4)).array, values)
    order = np.array([5, 0, 4, 1, 3, 2])
    part = tensor.permute_rows(order).rows(slice(2, 9))
    assert part.shape == (4, 2)
    np.testing.assert_array_equal(part.numpy(), values[order][2:9])
