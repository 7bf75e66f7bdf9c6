"""The package imports no framework, and the examples in its docstrings hold."""

import doctest
import importlib
import subprocess
import sys

import pytest

from mistral_portable.transformers import AutoTokenizer
from mistral_portable.transformers.padding import Lengths, PaddingStrategy


def test_importing_it_imports_no_framework() -> None:
    code = (
        "import sys, mistral_portable.transformers\n"
        "foreign = ('torch', 'jax', 'tensorflow', 'mlx', 'transformers', 'mistral_common', 'huggingface_hub')\n"
        "print([name for name in foreign if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_encoding_imports_no_framework() -> None:
    code = (
        "import sys\n"
        "from mistral_portable.transformers import AutoTokenizer\n"
        "AutoTokenizer.from_pretrained('tiny')(['a', 'b c'], padding=True, return_tensors='np').to('cpu')\n"
        "print([name for name in ('torch', 'jax', 'tensorflow', 'mlx', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "name",
    ["auto_tokenizer", "batch_encoding", "padding", "tokenizer", "tokenizer_base", "tokenizer_encoding", "vocabulary"],
)
def test_the_examples_in_docstrings(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    names: dict[str, object] = {"tokenizer": tokenizer, "vocabulary": tokenizer._vocabulary}
    names |= {"Lengths": Lengths, "PaddingStrategy": PaddingStrategy}
    module = importlib.import_module(f"mistral_portable.transformers.{name}")
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed
