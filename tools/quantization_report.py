"""Size and quality of the embedded model in each quantization type, on held-out stories, as a table and a plot.

    python -m tools.quantization_report docs/quantization.svg

prints the rows of docs/quantization.md. Four quantizers: ours, ours with `--calibrate` on stories of the training
split, and, if llama-cpp-python is installed, llama.cpp's without and with the same importances. All files run in this
library in float32, so that only the weights differ. `--text FILE` also writes the held-out stories, for
`perplexity tiny FILE`.
"""

import argparse
import importlib.util
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions
from mistral_portable.conversion.model import prepare
from mistral_portable.evaluation import accuracy, read_questions
from mistral_portable.quantization import MIXTURES
from mistral_portable.quantization.calibrate import calibrated
from mistral_portable.weights import open_checkpoint
from mistral_portable.weights.names import to_gguf
from tools.llama_cpp_quantizer import quantize_by_llama_cpp
from tools.positive import positive
from tools.tiny_documents import story_document
from tools.tiny_grammar import Split

__all__ = ["stories"]

_CONTEXT = 256
_THEIRS_CALIBRATED = "llama.cpp, calibrated"
_COLUMNS = ("type", "quantizer", "bits a weight", "error of weights", "loss", "divergence", "answers")


def stories(split: Split, characters: int) -> str:
    """Stories about the facts of a split, one per line, at least `characters` long; deterministic."""
    rng, lines = Random(f"quantization/{split}"), list[str]()
    while sum(map(len, lines)) < characters:
        if text := story_document(rng, split).text:
            lines.append(text)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Row:
    """The results of a type and a quantizer.

    bits: per weight of the matrices. error: relative root mean square error of the matrices. loss, divergence: means
    over the column orders; the divergence is that of the unquantized model's probabilities from the quantized one's
    (Kullback-Leibler, nats per token). spread: the standard error of the divergence. answers: right answers to the
    questions inside the window.
    """

    type: str
    quantizer: str
    bits: float
    error: float
    loss: float
    divergence: float
    spread: float
    answers: str


def reordered(folder: Path, seed: int) -> Path:
    """Write the embedded model with the columns of its hidden states and MLPs in another order; returns the folder.

    The function is the same, but other weights share a block, which changes the effect of rounding on so small a model.
    """
    checkpoint = open_checkpoint("tiny")
    hidden = np.random.default_rng(seed).permutation(checkpoint.config.hidden_size)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, tensor in checkpoint.tensors.items():
        values = tensor.numpy()
        if ".mlp." in name:
            layer = int(name.split(".")[2])
            inner = np.random.default_rng([seed, layer]).permutation(checkpoint.config.intermediate_size)
            values = values[hidden][:, inner] if "down_proj" in name else values[inner][:, hidden]
        else:
            values = values[hidden] if "o_proj" in name else values[..., hidden]
        tensors[name] = np.ascontiguousarray(values)
    shutil.copytree(checkpoint.path, folder)
    save_file(tensors, folder / "model.safetensors")
    return folder


@dataclass(frozen=True)
class Probabilities:
    """A model's predictions on a text. log: log probabilities, [scored tokens, vocabulary]. loss: nats per token."""

    log: NDArray[np.float64]
    loss: float


def probabilities(model: mp.Model, text: str) -> Probabilities:
    """Run the model on the same chunks as `perplexity`."""
    tokens = model.tokenizer.encode(text)
    begins = range(0, len(tokens) // _CONTEXT * _CONTEXT, _CONTEXT)
    chunks = [[model.tokenizer.bos_id, *tokens[begin + 1 : begin + _CONTEXT]] for begin in begins]
    log = np.concatenate([logits[_CONTEXT // 2 : -1] for logits in model.logits(chunks)]).astype(np.float64)
    log -= log.max(1, keepdims=True)
    log -= np.log(np.exp(log).sum(1, keepdims=True))
    targets = [token for chunk in chunks for token in chunk[_CONTEXT // 2 + 1 :]]
    return Probabilities(log, -float(log[np.arange(len(log)), targets].mean()))


def size_and_error(exact: Path, path: Path) -> tuple[float, float]:
    """Bits per weight of the matrices, and their relative root mean square error."""
    stored, made = open_checkpoint(exact).tensors, open_checkpoint(path).tensors
    matrices = [name for name, tensor in stored.items() if len(tensor.shape) == 2]
    count = sum(int(np.prod(stored[name].shape)) for name in matrices)
    off = sum(float(np.square(made[name].numpy() - stored[name].numpy()).sum()) for name in matrices)
    all_of_it = sum(float(np.square(stored[name].numpy()).sum()) for name in matrices)
    return 8 * sum(made[name].nbytes for name in matrices) / count, (off / all_of_it) ** 0.5


def measured(folder: Path, text: str, calibration: Path, orders: int) -> Iterator[Row]:
    """Measure all types with all quantizers; yields rows, from more bits to fewer."""
    sources = [reordered(folder / str(seed), seed) for seed in range(orders)]
    converted = {source: mp.convert(source, folder / f"{source.name}.gguf", "gguf") for source in sources}
    inside = [question for question in read_questions() if question.bucket == "inside W"]
    with mp.load("tiny", backend="numba", dtype="float32", threads=1) as model:
        exactly = probabilities(model, text)
    quantizers: dict[str, Callable[[str, Path, Path], object]] = {
        "ours": lambda type, source, path: mp.quantize(source, path, type, threads=1, overwrite=True),
        "calibrated": lambda type, source, path: mp.quantize(
            source, path, type, calibrate=calibration, threads=1, overwrite=True
        ),
    }
    if importlib.util.find_spec("llama_cpp"):
        importances = {source: _importance(source, calibration) for source in sources}
        quantizers["llama.cpp"] = lambda type, source, path: quantize_by_llama_cpp(
            converted[source], path, MIXTURES[type].file_type
        )
        quantizers[_THEIRS_CALIBRATED] = lambda type, source, path: quantize_by_llama_cpp(
            converted[source], path, MIXTURES[type].file_type, importances[source]
        )
    types = reversed([type for type in MIXTURES if type not in ("f16", "f32")])
    for type, (name, quantizer) in product(types, quantizers.items()):
        # llama.cpp makes q2_k_s only with an importance matrix; bf16 stores these weights exactly.
        if (name != "ours" and type == "bf16") or (name, type) == ("llama.cpp", "q2_k_s"):
            continue
        losses, divergences = [], []
        path = folder / "made.gguf"
        for source in reversed(sources):
            quantizer(type, source, path)
            with mp.load(path, backend="numba", dtype="float32", threads=1) as model:
                found = probabilities(model, text)
                answers = accuracy(model, inside) if source is sources[0] and name == "ours" else None
            losses.append(found.loss)
            divergences.append(float((np.exp(exactly.log) * (exactly.log - found.log)).sum(1).mean()))
        yield Row(
            type,
            name,
            *size_and_error(sources[0], path),
            mean(losses),
            mean(divergences),
            stdev(divergences) / len(divergences) ** 0.5 if orders > 1 else 0.0,
            f"{answers.right} of {answers.total}" if answers else "",
        )


def _importance(source: Path, calibration: Path) -> dict[str, NDArray[np.float32]]:
    """The importances that `--calibrate` computes, by GGUF name."""
    checkpoint = open_checkpoint(source)
    found = calibrated(prepare(checkpoint, checkpoint.config, None), calibration, ExecutorOptions(threads=1))
    return {to_gguf(name): values for name, values in found.items()}


def line(row: Row) -> str:
    """A row as a line of a Markdown table."""
    divergence = f"{row.divergence:.5f} ± {row.spread:.5f}"
    figures = (f"{row.bits:.2f}", f"{row.error:.4f}", f"{row.loss:.4f}", divergence)
    cells = (row.type, row.quantizer, *figures, row.answers)
    return f"| {' | '.join(cells)} |"


def draw(rows: list[Row], path: Path) -> None:
    """Plot the divergence from the unquantized model over bits per weight."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "quantization"  # makes the file reproducible
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    for name, marker in (("llama.cpp", "x"), (_THEIRS_CALIBRATED, "+"), ("ours", "o"), ("calibrated", "^")):
        some = sorted((row for row in rows if row.quantizer == name), key=lambda row: row.bits)
        if some:
            divergences = [row.divergence for row in some]
            axes.plot([row.bits for row in some], divergences, marker, label=name, markersize=6, fillstyle="none")
    for row in rows:
        if row.quantizer == "ours":
            place = (row.bits, row.divergence)
            axes.annotate(row.type, place, xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight")
    axes.set_ylabel("divergence from bfloat16, nats per token")
    axes.set_title("The embedded model on held-out stories")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the rows of the table and draw the plot."""
    parser = argparse.ArgumentParser(description="Measure what each quantization costs the embedded model.")
    parser.add_argument("plot", type=Path, help="the .svg file to write")
    parser.add_argument("--text", type=Path, help="where to write the held-out stories")
    parser.add_argument("--orders", type=positive, default=3, help="number of column orders")
    args = parser.parse_args()
    text = stories("held_out", 20_000)
    if args.text:
        args.text.write_text(text, encoding="utf-8")
    warnings.simplefilter("ignore")
    print(f"| {' | '.join(_COLUMNS)} |")
    print("|---|---|" + "---:|" * (len(_COLUMNS) - 2))
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        calibration = Path(folder) / "calibration.txt"
        calibration.write_text(stories("train", 15_000), encoding="utf-8")
        for row in measured(Path(folder), text, calibration, args.orders):
            rows.append(row)
            print(line(row), flush=True)
    draw([row for row in rows if row.type != "bf16"], args.plot)


if __name__ == "__main__":
    main()
