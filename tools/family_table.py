"""Write the table of docs/families.md: families x formats x backends, with a conformance run for each cell.

    python -m tools.family_table                # all, into the file; 11 minutes of a core
    python -m tools.family_table "Nemo 12B"     # some, to the terminal

A small model of each family, with random weights, is written in each format, opened again, and run on each backend in
chunks and as a ragged batch. Its logits must equal the float64 reference's within the self-calibrating tolerance, and
its config and floats those that were written.
"""

import argparse
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.boundary.registry import select
from mistral_portable.config import MistralConfig
from mistral_portable.conversion.convert import FORMATS
from mistral_portable.conversion.hf import hf_config
from mistral_portable.conversion.model import prepare
from mistral_portable.errors import MistralPortableError
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import Case, Feed, Scenario, check, nmse, random_weights
from mistral_portable.testing.case import Oracles
from mistral_portable.testing.families import FAMILIES, shrunk
from mistral_portable.weights import Checkpoint, open_checkpoint
from mistral_portable.weights.quantize_on_read import quantized
from tools.packed_weights import PACKED, pack_raw_fp8, write_packed

__all__ = ["BACKENDS", "COLUMNS", "outcomes", "table"]

BACKENDS = ("reference", "numba", "mlx", "torch", "jax")
_RAW_FP8 = "raw fp8"
COLUMNS = ("hf", "raw", "gguf", "gguf q4_0", "mlx", *PACKED, _RAW_FP8)
"""The formats; `convert` does not write those of PACKED and raw fp8."""

_FILE = Path(__file__).parent.parent / "docs" / "families.md"
_BEGIN, _END = "<!-- written by tools/family_table.py -->\n", "<!-- end -->"
_LENGTH = 40


def outcomes(config: MistralConfig, column: str, backends: Iterable[str] = BACKENDS) -> dict[str, str]:
    """By backend: "" if the model works there in this format, else the reason."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notices, such as that llama.cpp ignores windows
        try:
            opened = _written(config, column, Path(folder))
        except MistralPortableError as error:
            return dict.fromkeys(backends, str(error).replace(f"{folder}/source: ", ""))
        graph, oracles = select_rows(build(opened.config), "logits"), Oracles()
        found = {}
        for name in backends:
            case = Case(column, opened.config, graph, opened.tensors, _scenario(config.vocab_size))
            result = check(case, select(name), ExecutorOptions(), oracles)
            found[name] = "" if result.status == "pass" else result.note
        return found


def _written(config: MistralConfig, column: str, folder: Path) -> Checkpoint:
    """Write a checkpoint of random weights in the format and open it again.

    Raises MistralPortableError if config or weights differ from those written.
    """
    format, _, blocks = column.partition(" ")
    tensors = random_weights(build(config), seed=0)
    if column == "gguf q4_0":
        tensors = quantized(tensors, blocks)
    source = prepare(Checkpoint(folder / "source", "safetensors", config, tensors, None, (), {}), config, None)
    path = folder / ("model.gguf" if format == "gguf" else "model")
    if column in PACKED:
        floats = {name: tensor.numpy() for name, tensor in tensors.items()}
        write_packed(path, column, hf_config(source, "mlx" if format == "mlx" else "hf"), floats)
    else:
        plan, write = FORMATS[format]
        if format != "gguf":
            path.mkdir()
        write(path, source, plan(source), lambda part: None)
        if column == _RAW_FP8:
            pack_raw_fp8(path)
    opened = open_checkpoint(path)
    if _numbers(opened.config) != _numbers(config):
        raise MistralPortableError(f"the config differs: {opened.config}")
    for name, tensor in tensors.items():
        # Formats keep every bit unless they round; 4-bit rounding of normal numbers has an NMSE of at most 1 %.
        rounds = column in PACKED or column == _RAW_FP8
        error, limit = nmse(opened.tensors[name].numpy(), tensor.numpy()), 0.02 if rounds else 0.0
        if error > limit:
            raise MistralPortableError(f"{name} has other values")
    return opened


def _numbers(config: MistralConfig) -> MistralConfig:
    """The config with only those fields that change answers: GGUF files do not hold the others."""
    return replace(config, sliding_window=config.layer_windows, initializer_range=0.0, pad_token_id=None, extra={})


def _scenario(vocab_size: int) -> Scenario:
    """A text of 40 tokens in chunks of 7, then token by token, with a second sequence in one of the steps."""
    text = tuple(np.random.default_rng(0).integers(0, vocab_size, _LENGTH).tolist())
    chunks = [text[start : start + 7] for start in range(0, 28, 7)] + [(token,) for token in text[28:]]
    steps = [(Feed(0, chunk, len(chunk)),) for chunk in chunks]
    return Scenario((*steps[:2], (*steps[2], Feed(1, text[:11], 11)), *steps[3:]))


def table(names: Iterable[str]) -> Iterator[str]:
    """The lines of the table, and below it the reasons for what does not work."""
    yield f"| Family | {' | '.join(COLUMNS)} |"
    yield "|---" * (1 + len(COLUMNS)) + "|"
    notes: dict[str, int] = {}
    for name in names:
        cells = []
        for column in COLUMNS:
            found = outcomes(shrunk(FAMILIES[name]), column)
            failed = {backend: reason for backend, reason in found.items() if reason}
            marks = [f"{backend} [{notes.setdefault(reason, len(notes) + 1)}]" for backend, reason in failed.items()]
            if len(failed) == len(found) and len(set(failed.values())) == 1:
                marks = [f"[{notes[next(iter(failed.values()))]}]"]
            cells.append(f"not {', '.join(marks)}" if marks else "all")
        yield f"| {name} | {' | '.join(cells)} |"
    if notes:
        yield ""
    yield from (f"{number}. {reason}" for reason, number in notes.items())


def main() -> None:
    """Print the table of some families, or write that of all into the file."""
    parser = argparse.ArgumentParser(description="Families x formats x backends, for docs/families.md.")
    parser.add_argument(
        "families",
        nargs="*",
        choices=[*FAMILIES, []],
        help="families to print; all are written to the file by default",
    )
    names = parser.parse_args().families
    if names:
        print("\n".join(table(names)))
        return
    text = _FILE.read_text(encoding="utf-8")
    before, after = text.split(_BEGIN)[0], text.split(_END)[1]
    lines = "\n".join(table(FAMILIES))
    _FILE.write_text(f"{before}{_BEGIN}{lines}\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
