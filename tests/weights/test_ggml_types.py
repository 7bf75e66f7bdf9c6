"""Types have the numbers, names and blocks that they have in gguf, which is not imported to read a header."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from weights.files import random_tensors, small_config, write_gguf

from mistral_portable.weights.ggml_types import GGMLType, stored_type


@pytest.mark.parametrize("known", GGMLQuantizationType)
def test_every_type_is_that_of_gguf(known: GGMLQuantizationType) -> None:
    type, weights, size = stored_type(known.value)
    assert (type.name, type.value, (weights, size)) == (known.name, known.value, GGML_QUANT_SIZES[known])


def test_a_number_without_a_type() -> None:
    with pytest.raises(ValueError, match="1000"):
        stored_type(1000)


def test_all_that_can_be_read_is_in_gguf() -> None:
    assert {type.name: type.value for type in GGMLType}.items() <= {
        type.name: type.value for type in GGMLQuantizationType
    }.items()


def test_a_header_is_read_without_gguf(tmp_path: Path) -> None:
    """Its import takes 0.3 s, as it imports mistral-common."""
    config, path = small_config(), tmp_path / "model.gguf"
    write_gguf(path, config, random_tensors(config, np.random.default_rng(0), "Q4_0"), "Q4_0")
    code = (
        "import sys; from mistral_portable.weights import open_checkpoint\n"
        "tensors = open_checkpoint(sys.argv[1]).tensors.values()\n"
        "assert sum(tensor.nbytes for tensor in tensors) > 0\n"
        "assert not {'gguf', 'mistral_common'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)
